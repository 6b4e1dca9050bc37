"""What a kernel and a boundary may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

__all__ = ["SMALLEST_GAIN", "Boundary", "check_boundary", "check_kernel", "check_reach"]

Boundary = Literal["unknown", "circular", "zero", "reflect"]

# Singular values (of a circular blur: frequencies) below this part of the largest count as lost: undoing them would
# amplify the rounding errors of float32 data, about 1e-7, by more than 1e4.
SMALLEST_GAIN = 1e-4


def check_kernel(kernel: Tensor) -> None:
    """Refuse what is no kernel (h, w) of odd size."""
    if kernel.ndim != 2 or any(n % 2 == 0 for n in kernel.shape) or not kernel.isfinite().all():
        raise ValueError(
            f"A blur kernel is finite, (h, w), of odd height and width, got {tuple(kernel.shape)}; pad an even one by "
            f"a row or column of zeros."
        )


def check_boundary(boundary: str, known: Sequence[str]) -> None:
    """Refuse a boundary that is not known."""
    if boundary not in known:
        raise ValueError(f"boundary is one of {', '.join(known)}, got {boundary!r}.")


def check_reach(kernel: Sequence[int], picture: tuple[int, int], boundary: str) -> None:
    """Refuse a kernel that reaches over the picture."""
    reach = tuple(k // 2 for k in kernel)
    if boundary == "reflect" and any(r >= n for r, n in zip(reach, picture, strict=True)):
        raise ValueError(
            f"The kernel {tuple(kernel)} reaches over the mirrored picture {picture}; make the blur smaller, or "
            f"use boundary='zero'."
        )
    if boundary == "unknown" and any(2 * r >= n for r, n in zip(reach, picture, strict=True)):
        raise ValueError(
            f"Nothing is left of a picture {picture} without the border that the kernel {tuple(kernel)} reaches "
            f"over; make the blur smaller, take a larger picture, or use boundary='reflect'."
        )
