"""The files of a Linux system that describe a machine, written from a machine: what the readers read back."""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

NODES, CPUS = "sys/devices/system/node", "sys/devices/system/cpu"


def ranges(numbers: Sequence[int]) -> str:
    """Numbers as the kernel lists them, one by one, which it reads too."""
    return ",".join(map(str, sorted(numbers)))


def mask(numbers: Sequence[int]) -> str:
    """Numbers as the kernel's masks: words of 32 bits, the highest first."""
    bits = sum(1 << number for number in numbers)
    words = [f"{bits >> shift & 0xFFFFFFFF:08x}" for shift in range(0, max(bits.bit_length(), 1), 32)]
    return ",".join(reversed(words))


def system_files(
    cores: Sequence[int],
    memory_kib: Sequence[int],
    distances: npt.ArrayLike | None = None,
    *,
    numbers: Sequence[int] | None = None,
    threads: int = 1,
    masks: bool = True,
    cache_kib: int = 0,
) -> dict[str, str]:
    """Files by path: nodes with cores of so many threads, processors numbered node by node.

    Args:
        cores: cores of each node.
        memory_kib: memory of each node.
        distances: SLIT distances.
        numbers: the nodes' numbers, ascending; 0, 1, ... when None.
        threads: of each core.
        masks: write processors as masks, not as lists.
        cache_kib: one last-level cache for each node that has cores, if > 0.
    """
    files, first = {}, 0
    names = range(len(cores)) if numbers is None else numbers
    for row, (number, count) in enumerate(zip(names, cores, strict=True)):
        folder = f"{NODES}/node{number}"
        processors = list(range(first, first + count * threads))
        first += count * threads
        files[f"{folder}/meminfo"] = (
            f"\nNode {number} MemTotal:       {memory_kib[row]} kB\nNode {number} MemFree: 1 kB\n"
        )
        written = ("cpumap", mask(processors)) if masks else ("cpulist", ranges(processors))
        files[f"{folder}/{written[0]}"] = f"{written[1]}\n"
        if distances is not None:
            files[f"{folder}/distance"] = " ".join(map(str, np.asarray(distances)[row])) + "\n"
        for at, processor in enumerate(processors):
            core = processors[at // threads * threads :][:threads]
            siblings = ("thread_siblings", mask(core)) if masks else ("core_cpus_list", ranges(core))
            files[f"{CPUS}/cpu{processor}/topology/{siblings[0]}"] = f"{siblings[1]}\n"
            if cache_kib:
                cache = f"{CPUS}/cpu{processor}/cache/index3"
                files |= {f"{cache}/level": "3\n", f"{cache}/size": f"{cache_kib}K\n", f"{cache}/type": "Unified\n"}
                files[f"{cache}/shared_cpu_map"] = f"{mask(processors)}\n"
    files[f"{NODES}/online"] = f"{ranges(list(names))}\n"
    files[f"{CPUS}/online"] = f"{ranges(list(range(first)))}\n"
    return files


def write_folder(root: Path, files: Mapping[str, str | bytes]) -> Path:
    """The files in a folder."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def archive(files: Mapping[str, str | bytes], mode: str = "w:gz", links: Mapping[str, str] | None = None) -> bytes:
    """The files in a tar archive, and links by their target."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return packed.getvalue()


def with_checksum(table: bytes) -> bytes:
    """An ACPI table whose bytes add up to 0 modulo 256."""
    return table[:9] + bytes([(-(sum(table) - table[9])) % 256]) + table[10:]


def locality(
    data_type: int, initiators: Sequence[int], targets: Sequence[int], entries: npt.ArrayLike, base: int, flags: int = 0
) -> bytes:
    """A locality structure of an HMAT."""
    values = np.asarray(entries, dtype="<u2")
    body = struct.pack("<BBBBIIIQ", flags, data_type, 0, 0, len(initiators), len(targets), 0, base)
    body += np.array([*initiators, *targets], dtype="<u4").tobytes() + values.tobytes()
    return struct.pack("<HHI", 1, 0, 8 + len(body)) + body


def side_cache(domain: int, size_bytes: int) -> bytes:
    """A memory-side cache structure of an HMAT."""
    return struct.pack("<HHI", 2, 0, 32) + struct.pack("<IIQIHH", domain, 0, size_bytes, 0x11, 0, 0)


def hmat_table(*structures: bytes, revision: int = 2) -> bytes:
    """An HMAT of these structures."""
    body = b"".join(structures)
    header = struct.pack(
        "<4sIBB6s8sI4sI4x", b"HMAT", 40 + len(body), revision, 0, b"TESTER", b"TABLE   ", 1, b"TEST", 1
    )
    return with_checksum(header + body)
