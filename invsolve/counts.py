"""What counts as a whole number."""

from __future__ import annotations

from numbers import Integral
from typing import TypeGuard

__all__ = ["is_whole"]


def is_whole(value: object) -> TypeGuard[int]:
    """Whether that is an integer, of Python, NumPy or another library, and no boolean."""
    return isinstance(value, Integral) and not isinstance(value, bool)
