"""Memory that a process keeps: the C library gives large blocks back at once and then fetches them page by page."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_memory"]

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
LARGEST = 2**31 - 1  # bytes at the end of the heap that may stay unused


def keep_memory() -> bool:
    """Let this process keep what it frees, for its next tensors; whether the C library could do it (glibc can).

    For programs that do one thing, such as the command line: on a CPU a decoder with its gradient takes two thirds of
    the time, and the process never becomes smaller than its largest moment.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, LARGEST))
