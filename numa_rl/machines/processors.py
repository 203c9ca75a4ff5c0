"""What every reader of a system's files does with processors: sets of them as bits, clocks, and caches by node.

A set of processors is a Python integer, one bit for each by its number.

Dimension key: N nodes.

References:
    [1] Linux kernel documentation, "CPU lists in command-line parameters", and `bitmap_parse`: lists and masks.
    [2] hwloc, `hwloc_bitmap_snprintf`: the text of a cpuset.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from numa_rl.machines.assembly import ASSUMED_FLOPS_PER_CYCLE, ASSUMED_FREQUENCY_HZ, PER_CYCLE_SOURCE
from numa_rl.topology import DEFAULT_LLC_BYTES, FloatArray
from numa_rl.wording import quoted

MOST_PROCESSORS = 2**16  # eight times what Linux is built for
CPUSET = re.compile(r"0x[0-9a-f]{1,8}(,(0x[0-9a-f]{1,8})?)*", re.IGNORECASE)
MASK = re.compile(r"[0-9a-f]{1,8}(,[0-9a-f]{1,8})*", re.IGNORECASE)
RANGE = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")
CLOCK_IN_NAME = re.compile(r"([\d.]+) ?GHz")


def from_cpuset(text: str | None, what: str) -> int:
    """The bits of an hwloc cpuset: words of 32 bits in hexadecimal, the highest first, zero left out [2].

    >>> hex(from_cpuset("0x1,,0x00000003", "cpuset"))
    '0x10000000000000003'
    """
    if text is None or not CPUSET.fullmatch(text):
        raise ValueError(f"{what} must be 32-bit hexadecimal words, got {text!r}.")
    return int("".join(word[2:].zfill(8) for word in text.split(",")), 16)


def from_mask(text: str, what: str) -> int:
    """The bits of a mask as the kernel writes it: words of 32 bits in hexadecimal, the highest first [1].

    >>> hex(from_mask("1,00000003", "cpumap"))
    '0x100000003'
    """
    if not MASK.fullmatch(text):
        raise ValueError(f"{what} must be 32-bit hexadecimal words, got {quoted(text)}.")
    return int("".join(word.zfill(8) for word in text.split(",")), 16)


def from_list(text: str, what: str) -> int:
    """The bits of a list as the kernel writes it, numbers and ranges [1].

    >>> bin(from_list("0-2,5", "cpulist"))
    '0b100111'
    """
    bits = 0
    for part in text.split(",") if text else ():
        found = RANGE.fullmatch(part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last or last >= MOST_PROCESSORS:
            raise ValueError(f"{what} must be numbers and ranges below {MOST_PROCESSORS}, got {quoted(text)}.")
        bits |= (1 << last + 1) - (1 << first)
    return bits


def members(bits: int) -> list[int]:
    """The numbers in a set, lowest first.

    >>> members(0b100111)
    [0, 1, 2, 5]
    """
    numbers = []
    while bits:
        lowest = bits & -bits
        numbers.append(lowest.bit_length() - 1)
        bits ^= lowest
    return numbers


def union(sets: Iterable[int]) -> int:
    """The bits that are in any of the sets."""
    bits = 0
    for each in sets:
        bits |= each
    return bits


def peak_flops_per_s(
    owned: Sequence[Sequence[int]], clocks: Sequence[tuple[int, float]], origin: str, model: str | None
) -> tuple[FloatArray, str]:
    """Peak of one core of each node, shape (N,), and where it came from.

    A node without cores never uses its figure; it gets the fastest node's.

    Args:
        owned: each node's cores, as sets of processors.
        clocks: highest clock in Hz of sets of processors; left aside unless every core has one.
        origin: what the source calls the clocks.
        model: what the file calls the processor, which may tell its clock.
    """
    named = CLOCK_IN_NAME.search(model or "")
    highest: dict[int, float] = {}
    for cpuset, rate in clocks:
        highest |= {number: max(rate, highest.get(number, 0.0)) for number in members(cpuset)}
    if clocks and all(number in highest for cores in owned for core in cores for number in members(core)):
        hertz = [[max(highest[number] for number in members(core)) for core in cores] for cores in owned]
        source = f"derived: {origin}; {PER_CYCLE_SOURCE}"
    else:
        rate = float(named[1]) * 1e9 if named else ASSUMED_FREQUENCY_HZ
        hertz = [[rate] * len(cores) for cores in owned]
        found = f"derived: {named[0]} in the CPU model's name" if named else f"assumed: {rate / 1e9} GHz"
        source = f"{found}; {PER_CYCLE_SOURCE}"
    node_hertz = np.array([np.mean(rates) if rates else 0.0 for rates in hertz])
    node_hertz[node_hertz == 0.0] = node_hertz.max()
    return node_hertz * ASSUMED_FLOPS_PER_CYCLE, f"{source}{f'; {model.strip()}' if model else ''}"


def last_level_bytes(
    owned: Sequence[Sequence[int]], caches: Sequence[tuple[int, int]], origin: str
) -> tuple[FloatArray, str]:
    """Last-level cache of each node, shape (N,), and where it came from; one shared by nodes counts by its cores.

    A node whose cores have no such cache gets the assumed size.

    Args:
        owned: each node's cores, as sets of processors.
        caches: processors and bytes of every last-level cache.
        origin: what the source calls the caches.
    """
    node_bytes = [
        sum(size * (cpuset & union(cores)).bit_count() / cpuset.bit_count() for cpuset, size in caches if cpuset)
        for cores in owned
    ]
    with_cores = [found for found, cores in zip(node_bytes, owned, strict=True) if cores]
    if all(found > 0 for found in with_cores):
        source = f"file: {origin}"
    else:
        source = f"assumed: {DEFAULT_LLC_BYTES} bytes where the file names no cache of a node's cores"
    return np.array([found or DEFAULT_LLC_BYTES for found in node_bytes], dtype=np.float64), source
