"""Inpainting: some pixels are seen, the others are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from ..operators import masks
from .base import Shape
from .spectral import SpectralOperator

__all__ = ["Inpaint", "inpaint", "inpaint_box", "inpaint_brush", "inpaint_random"]


class Inpaint(SpectralOperator):
    """y = m * x with a mask m of zeros and ones; y keeps the shape of the image, and hidden pixels are 0 (mid grey).

    A^+ y = m * y leaves them mid grey.

    Arguments:
        image_shape: (C, H, W).
        observed: m, 1 where a pixel is seen and 0 where it is hidden; (H, W), (1, H, W) or, to hide channels
            separately, (C, H, W).

    Raises:
        ValueError: if the mask has another size or other values, or if it hides nothing or everything.
    """

    fields: ClassVar[tuple[str, ...]] = ("observed",)
    observed: Tensor

    def __init__(self, image_shape: Shape, *, observed: Tensor) -> None:
        super().__init__(image_shape)
        channels, height, width = self.image_shape
        mask = observed[None] if observed.ndim == 2 else observed
        if tuple(mask.shape) not in {(1, height, width), (channels, height, width)}:
            raise ValueError(
                f"Inpaint expects a mask ({height}, {width}) for images {self.image_shape}, "
                f"got {tuple(observed.shape)}; resize the mask without interpolation, or crop the picture."
            )
        if not ((mask == 0) | (mask == 1)).all():
            raise ValueError("Inpaint expects a mask of zeros (hidden) and ones (observed); threshold it first.")
        if (mask == mask.flatten()[0]).all():
            what = "observes every pixel" if mask.any() else "hides every pixel"
            raise ValueError(
                f"Inpaint expects observed and hidden pixels, but this mask {what}; in a mask file white marks the "
                f"hole to fill and black is kept."
            )
        self.register_buffer("observed", mask.to(torch.float32))

    @property
    def data_mask(self) -> Tensor:
        return self.observed

    def forward(self, x: Tensor) -> Tensor:
        return self.observed.to(x.dtype) * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.observed.to(y.dtype) * y

    def spectral(self, x: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """The product fn(m) x: the mask is its own singular values."""
        return fn(self.observed.to(x.dtype)) * x


def inpaint(image_shape: Shape, *, mask: str) -> Inpaint:
    """Fill the hole that is white in the picture at the path `mask`; black is kept, grey is cut at 127.5.

    Raises:
        ValueError: if the picture cannot be read, has another size, or is all black or all white.
    """
    return Inpaint(image_shape, observed=masks.from_file(mask))


def inpaint_box(image_shape: Shape, *, top: int, left: int, height: int, width: int) -> Inpaint:
    """Fill a box of height x width pixels whose first row and column are top and left.

    Raises:
        ValueError: if the box is empty, covers the picture, or reaches over its border.
    """
    return Inpaint(image_shape, observed=masks.box(image_shape[1:], top, left, height, width))


def inpaint_random(image_shape: Shape, *, fraction: float = 0.7, seed: int = 0) -> Inpaint:
    """Fill in pixels hidden at random, `fraction` of them, all channels together.

    Raises:
        ValueError: if the fraction is not in (0, 1).
    """
    return Inpaint(image_shape, observed=masks.random(image_shape[1:], fraction, seed))


def inpaint_brush(image_shape: Shape, *, fraction: float = 0.25, seed: int = 0) -> Inpaint:
    """Fill in brush strokes that hide about `fraction` of the pixels.

    Raises:
        ValueError: if the fraction is not in (0, 1).
    """
    return Inpaint(image_shape, observed=masks.brush(image_shape[1:], fraction, seed))
