"""Colourisation: the picture is seen in grey."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from ..linalg import expand_to
from .base import Shape
from .spectral import SpectralOperator

__all__ = ["Grayscale", "Weights"]

Weights = Literal["mean", "luma"]

_REC_601 = (0.299, 0.587, 0.114)  # luma of red, green, blue in ITU-R BT.601


class Grayscale(SpectralOperator):
    """y = sum_c w_c x_c: images (C, H, W) to grey pictures (1, H, W).

    Arguments:
        image_shape: (C, H, W).
        weights: `mean` is 1 / C each, `luma` is 0.299, 0.587, 0.114 for red, green, blue.

    Raises:
        ValueError: if the weights are unknown, or `luma` is asked for without three channels.
    """

    fields: ClassVar[tuple[str, ...]] = ("weights",)
    weight: Tensor

    def __init__(self, image_shape: Shape, *, weights: Weights = "mean") -> None:
        super().__init__(image_shape)
        channels = self.image_shape[0]
        if weights not in get_args(Weights):
            raise ValueError(f"weights is one of {', '.join(get_args(Weights))}, got {weights!r}.")
        if weights == "luma" and channels != len(_REC_601):
            raise ValueError(f"weights='luma' is for red, green and blue, got {channels} channels; use weights='mean'.")
        self.weights: Weights = weights
        values = _REC_601 if weights == "luma" else [1 / channels] * channels
        self.register_buffer("weight", torch.tensor(values, dtype=torch.float64)[:, None, None])  # (C, 1, 1)

    @staticmethod
    def image_shape_of(data_shape: Shape, *, weights: Weights) -> Shape:  # noqa: ARG004 rules take every field
        """The colour picture behind a grey one.

        Raises:
            ValueError: if the data is not grey.
        """
        channels, height, width = data_shape
        if channels != 1:
            raise ValueError(f"grayscale expects a grey picture (1 channel), got {channels}; save it as grey.")
        return 3, height, width

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight.to(x.dtype) * x).sum(dim=1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.weight.to(y.dtype) * y

    def prox(self, x: Tensor, y: Tensor, rho: Tensor) -> Tensor:
        """The step x + A^T (y - A x) / (|w|^2 + rho)."""
        return x + self.adjoint(y - self.forward(x)) / (self._power(x) + expand_to(rho, x))

    def spectral(self, x: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """A factor fn(|w|) along w, fn(0) across it."""
        power = self._power(x)
        along = self.adjoint(self.forward(x)) / power
        return fn(power.sqrt()) * along + fn(power.new_zeros(())) * (x - along)

    def _power(self, x: Tensor) -> Tensor:
        return self.weight.square().sum().to(x.dtype)
