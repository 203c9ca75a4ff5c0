"""How kernels are compiled: by numba, cached on disk under the digest of every file a kernel is made of."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numba

PACKAGE = Path(__file__).parent
KERNEL_FILES = ("compilation.py", "simulator/*.py", "coherence/protocol.py")
CACHE_BASE = os.environ.get("NUMBA_CACHE_DIR") or str(PACKAGE / "__pycache__")
FASTMATH = {"nnan", "nsz", "arcp"}  # nothing here that lets the order of operations change

Function = TypeVar("Function", bound=Callable[..., Any])


def cache_folder(sources: Sequence[str] = ()) -> str:
    """Where compiled code is cached: a folder for these contents of the kernels' files.

    numba itself looks for changes only in the file of the function that is called, not in those of what it calls.
    """
    return str(Path(CACHE_BASE) / f"numba-{source_digest(sources)}")


def source_digest(sources: Sequence[str] = ()) -> str:
    """Short hash of the kernels' source and of these files: results of other sources are not comparable."""
    kernels = [file for pattern in KERNEL_FILES for file in sorted(PACKAGE.glob(pattern))]
    files = [*kernels, *map(Path, sources)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def compiled(function: Function, sources: Sequence[str] = ()) -> Function:
    """Compile with numba: cached on disk, without the interpreter lock, inlined, and without reference counts.

    Nothing compiled here makes an array, so none needs counting; counting every row view made a step of the
    simulator four times slower.

    Args:
        function: to be compiled.
        sources: files other than `KERNEL_FILES` whose compiled functions it calls.
    """
    numba.config.CACHE_DIR = cache_folder(sources)  # type: ignore[attr-defined]
    options: dict[str, Any] = {"fastmath": FASTMATH, "error_model": "numpy", "forceinline": True, "_nrt": False}
    jitted: Function = numba.njit(cache=True, nogil=True, **options)(function)
    return jitted
