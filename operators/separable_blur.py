"""Blurs whose kernel is a product of two lines, with zero, mirrored or unknown borders."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .base import Shape
from .boundary import SMALLEST_GAIN, Boundary, check_boundary, check_kernel, check_reach
from .resize import Separable

__all__ = ["SeparableBlur"]


class SeparableBlur(Separable):
    """A blur whose kernel is a product of two lines, by one matrix for each axis.

    Singular values below 1e-4 of the largest count as lost.

    Arguments:
        image_shape: (C, H, W).
        rows: profile along the columns of pixels, (h,) of odd length, sum 1.
        columns: profile along the rows of pixels, (w,) of odd length, sum 1.
        boundary: as for `PaddedBlur`.

    Raises:
        ValueError: if a profile is not of odd length and finite, the kernel reaches over the picture, or the boundary
            is another one.
    """

    fields: ClassVar[tuple[str, ...]] = ("rows", "columns", "boundary")
    rows: Tensor
    columns: Tensor

    def __init__(self, image_shape: Shape, *, rows: Tensor, columns: Tensor, boundary: Boundary) -> None:
        _, height, width = image_shape
        check_boundary(boundary, ("unknown", "zero", "reflect"))
        for profile in (rows, columns):
            check_kernel(profile[None])
        check_reach((len(rows), len(columns)), (height, width), boundary)
        super().__init__(
            image_shape,
            vertical=_line_matrix(rows, height, boundary),
            horizontal=_line_matrix(columns, width, boundary),
            cutoff=SMALLEST_GAIN,
        )
        self.boundary = boundary
        self.register_buffer("rows", rows.to(torch.float64))
        self.register_buffer("columns", columns.to(torch.float64))

    @property
    def border(self) -> tuple[int, int]:
        return (len(self.rows) // 2, len(self.columns) // 2) if self.boundary == "unknown" else (0, 0)


def _line_matrix(profile: Tensor, size: int, boundary: Boundary) -> Tensor:
    """Convolution of a line of `size` pixels with a profile (2 r + 1,), y_i = sum_p k_p x_{i - p}.

    Returns:
        float64 (size, size), or (size - 2 r, size) if the border is unknown.
    """
    radius = len(profile) // 2
    first, last = (radius, size - radius) if boundary == "unknown" else (0, size)
    source = torch.arange(first, last)[:, None] - torch.arange(-radius, radius + 1)
    weight = profile.expand(source.shape)
    if boundary == "zero":
        weight = weight.where((source >= 0) & (source < size), 0)
        source = source.clamp(0, size - 1)
    elif boundary == "reflect":
        source = source.abs()
        source = torch.where(source < size, source, 2 * (size - 1) - source)
    return torch.zeros(last - first, size, dtype=profile.dtype).scatter_add_(1, source, weight)
