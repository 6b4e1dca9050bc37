"""Memory that a process keeps: the C library gives large blocks back at once and then fetches them page by page.

`scripts/bench_call.py` measures what that costs on a CPU.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

__all__ = ["keep_memory", "memory_kept"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of malloc.h
LARGEST = 2**31 - 1  # bytes at the end of the heap that may stay unused
MMAP_MAX = 65536  # glibc's default: blocks that are given back as soon as they are free
MMAP_THRESHOLD, TRIM_THRESHOLD = 2**25, 2**26  # bytes; where glibc's own adaptation ends in a program with large blocks
VARIABLE = "INVSOLVE_KEEP_MEMORY"  # of the environment: 0 leaves the C library as it is

_lock = threading.Lock()
_inside = 0  # solves that run now, in all threads
_forever = False


def keep_memory() -> bool:
    """Let this process keep what it frees, for its next tensors; whether the C library could do it (glibc can).

    For programs that do one thing, such as the command line: the process never becomes smaller than its largest moment.
    """
    global _forever
    with _lock:
        _forever = _forever or _keep()
        return _forever


@contextmanager
def memory_kept() -> Iterator[None]:
    """Inside, this process keeps what it frees, for its next tensors; afterwards it gives it back to the system.

    For the library, whose process belongs to somebody else.  Other threads may be inside, too; the last one gives back.
    Does nothing where the C library cannot (macOS, Windows, musl), after `keep_memory`, and where the environment has
    INVSOLVE_KEEP_MEMORY=0.
    """
    global _inside
    with _lock:
        mine = not _forever and os.environ.get(VARIABLE) != "0" and (_inside > 0 or _keep())
        _inside += mine
    try:
        yield
    finally:
        with _lock:
            _inside -= mine
            if mine and _inside == 0 and not _forever:
                _give_back()


def _keep() -> bool:
    library = _glibc()
    return library is not None and bool(library.mallopt(M_MMAP_MAX, 0) and library.mallopt(M_TRIM_THRESHOLD, LARGEST))


def _give_back() -> None:
    """What is free now, and from now on what becomes free as usual."""
    library = _glibc()
    if library is not None:
        library.mallopt(M_MMAP_MAX, MMAP_MAX)
        library.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD)
        library.mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD)
        library.malloc_trim(0)


@cache
def _glibc() -> Any:
    """The C library, if it has both functions."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
