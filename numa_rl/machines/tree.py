"""Files of a system as a tree: a folder, or an archive of one that is read in memory and never unpacked to disk.

References:
    [1] hwloc, `hwloc-gather-topology`: an archive of the /sys and /proc files that describe a machine.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import posixpath
import tarfile
import zlib
from pathlib import Path
from typing import Protocol

from numa_rl.wording import quoted

MAX_ARCHIVE_BYTES = 64 * 2**20  # on disk; real ones take a few hundred KiB
MAX_UNPACKED_BYTES = 128 * 2**20  # a machine of 256 processors takes 20 MiB
MAX_FILE_BYTES = 16 * 2**20  # of one file in a tree: /proc/cpuinfo of a thousand processors takes 2 MiB
MAX_XZ_MEMORY_BYTES = 256 * 2**20
MAX_PATH = 4096  # characters of a name, Linux's own limit
MAX_LINKS = 40  # followed on the way to one file, Linux's own limit

GZIP, BZIP2, XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00"
TAR_MAGIC, TAR_MAGIC_AT = b"ustar", 257
PACKED = (GZIP, BZIP2, XZ)


class Tree(Protocol):
    """Files by their path from the tree's root, parts joined by slashes."""

    def names(self, folder: str) -> list[str]:
        """What is in a folder, sorted; nothing where there is no such folder."""

    def data(self, path: str) -> bytes | None:
        """What a file holds; None where there is no such file, or it may not be read."""


def read_bytes(path: Path, most: int, origin: str) -> bytes:
    """The content of a file of at most `most` bytes.

    Args:
        path: the file.
        most: how many bytes it may have.
        origin: what error messages call it.

    Raises:
        ValueError: no such file, one that cannot be read, or too large.
    """
    try:
        if not path.is_file():
            raise ValueError(f"{origin}: must be an existing file, got none.")
        content = _first_bytes(path, most + 1)
    except OSError as error:
        raise ValueError(f"{origin}: must be a file that can be read, got {error.strerror}.") from error
    if len(content) > most:
        raise ValueError(f"{origin}: must be at most {most} bytes, got {max(len(content), path.stat().st_size)}.")
    return content


def _first_bytes(path: Path, most: int) -> bytes:
    """The content of a file, or its first bytes; the size that /sys states for its files is not theirs."""
    with path.open("rb") as file:
        return file.read(most)


class FolderTree:
    """A folder's files; links that lead out of it are taken for missing files."""

    def __init__(self, root: Path) -> None:
        """Take a folder as the root of a tree."""
        self.root = root.resolve()

    def names(self, folder: str) -> list[str]:
        """What is in a folder, sorted; nothing where there is no such folder."""
        try:
            path = self._inside(folder)
            return sorted(entry.name for entry in path.iterdir()) if path else []
        except (OSError, RuntimeError):  # the latter for a circle of links
            return []

    def data(self, path: str) -> bytes | None:
        """What a file holds; None where there is no such file, or it may not be read.

        Raises:
            ValueError: the file is too large.
        """
        try:
            inside = self._inside(path)
            if inside is None or not inside.is_file():
                return None
            content = _first_bytes(inside, MAX_FILE_BYTES + 1)
        except (OSError, RuntimeError):  # the latter for a circle of links
            return None
        if len(content) > MAX_FILE_BYTES:
            raise ValueError(f"file {path!r}: must be at most {MAX_FILE_BYTES} bytes, got more.")
        return content

    def _inside(self, path: str) -> Path | None:
        """The file or folder at a path, if it is in the tree."""
        found = (self.root / path).resolve()
        return found if found.is_relative_to(self.root) else None


class ArchiveTree:
    """The files of a tar archive, plain or packed by gzip, bzip2 or xz, held in memory.

    Links are followed inside the archive only.
    """

    def __init__(self, content: bytes) -> None:
        """Read an archive.

        Raises:
            ValueError: not an archive, damaged, too large when unpacked, or a member's name or link leads out of it.
        """
        self._files: dict[str, bytes] = {}
        self._links: dict[str, str] = {}
        self._folders: dict[str, set[str]] = {"": set()}
        try:
            with tarfile.open(fileobj=io.BytesIO(unpacked(content)), mode="r:") as archive:
                for member in archive:
                    self._take(archive, member)
        except (tarfile.TarError, EOFError, OverflowError, UnicodeError) as error:
            raise ValueError(f"must be a whole tar archive, got {error}.") from None

    def names(self, folder: str) -> list[str]:
        """What is in a folder, sorted; nothing where there is no such folder."""
        found = self._followed(folder)
        return [] if found is None else sorted(self._folders.get(found, ()))

    def data(self, path: str) -> bytes | None:
        """What a file holds; None where there is no such file."""
        found = self._followed(path)
        return None if found is None else self._files.get(found)

    def _take(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Keep one member: a file's content, a link's target, a folder's name. Devices are left aside."""
        path = _inside(member.name, "a member's name")
        if member.isfile():
            if member.size > MAX_FILE_BYTES or member.issparse():
                return  # nothing of a topology is as large, or has holes that would be filled with zeros
            file = archive.extractfile(member)
            self._files[path] = file.read(MAX_FILE_BYTES) if file else b""
        elif member.issym():
            if member.linkname.startswith("/"):
                raise ValueError(
                    f"a link must stay inside the archive, got {quoted(path)} to {quoted(member.linkname)}."
                )
            self._links[path] = _inside(posixpath.join(posixpath.dirname(path), member.linkname), "a link", up=True)
        elif member.islnk():
            self._links[path] = _inside(member.linkname, "a link")
        elif not member.isdir():
            return
        self._enter(path, folder=member.isdir())

    def _enter(self, path: str, *, folder: bool) -> None:
        """Note a path in the folders above it."""
        if folder:
            self._folders.setdefault(path, set())
        while path:
            above, name = posixpath.split(path)
            known = self._folders.setdefault(above, set())
            if name in known:
                break
            known.add(name)
            path = above

    def _followed(self, path: str) -> str | None:
        """The path with every link on it followed; None where they go in circles."""
        parts, done, left = posixpath.normpath(path).split("/"), "", MAX_LINKS
        while parts:
            part = parts.pop(0)
            here = posixpath.normpath(posixpath.join(done, part))
            target = self._links.get(here)
            if target is None:
                done = "" if here == "." else here
            elif left:
                parts, done, left = [*target.split("/"), *parts], "", left - 1
            else:
                return None
        return done


def is_archive(content: bytes) -> bool:
    """Whether a file's content starts like a tar archive, plain or packed."""
    return content.startswith(PACKED) or content[TAR_MAGIC_AT : TAR_MAGIC_AT + len(TAR_MAGIC)] == TAR_MAGIC


def unpacked(content: bytes) -> bytes:
    """What gzip, bzip2 or xz packed, or the content itself where none of them did.

    Raises:
        ValueError: damaged, or too large when unpacked.
    """
    try:
        if content.startswith(GZIP):
            plain = gzip.GzipFile(fileobj=io.BytesIO(content)).read(MAX_UNPACKED_BYTES + 1)
        elif content.startswith(BZIP2):
            plain = bz2.BZ2File(io.BytesIO(content)).read(MAX_UNPACKED_BYTES + 1)
        elif content.startswith(XZ):
            unpacker = lzma.LZMADecompressor(memlimit=MAX_XZ_MEMORY_BYTES)
            plain = unpacker.decompress(content, MAX_UNPACKED_BYTES + 1)
            if not unpacker.eof and len(plain) <= MAX_UNPACKED_BYTES:
                raise EOFError("Compressed file ended before the end-of-stream marker was reached")
        else:
            plain = content
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"must be an archive packed by gzip, bzip2 or xz, whole, got {error}.") from None
    if len(plain) > MAX_UNPACKED_BYTES:
        raise ValueError(f"must be at most {MAX_UNPACKED_BYTES} bytes when unpacked, got more.")
    return plain


def _inside(name: str, what: str, *, up: bool = False) -> str:
    """A path of the archive in its shortest form.

    Raises:
        ValueError: it is absolute, or leads above the archive's root; steps up on the way only where allowed.
    """
    if len(name) > MAX_PATH:
        raise ValueError(f"{what} must have at most {MAX_PATH} characters, got {len(name)}.")
    path = posixpath.normpath(name)
    if name.startswith("/") or path.split("/")[0] == ".." or (".." in name.split("/") and not up):
        raise ValueError(f"{what} must stay inside the archive, got {quoted(name)}.")
    return "" if path == "." else path
