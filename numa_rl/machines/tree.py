"""Files of a system as a tree: a folder, or an archive of one read in memory.

References:
    [1] hwloc, `hwloc-gather-topology`: a tarball of the /sys and /proc files that describe a machine.
"""

from __future__ import annotations

from pathlib import Path


def read_bytes(path: Path, most: int, origin: str) -> bytes:
    """The content of a file of at most `most` bytes.

    Args:
        path: the file.
        most: how many bytes it may have.
        origin: what error messages call it.

    Raises:
        ValueError: no such file, or too large.
    """
    if not path.is_file():
        raise ValueError(f"{origin}: must be an existing file, got none.")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{origin}: must be at most {most} bytes, got {max(len(content), path.stat().st_size)}.")
    return content
