"""No degradation but the noise: denoising."""

from __future__ import annotations

from torch import Tensor

from ..linalg import expand_to
from .base import LinearOperator

__all__ = ["Identity"]


class Identity(LinearOperator):
    """y = x.

    Arguments:
        image_shape: (C, H, W).
    """

    def forward(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return y

    def pinv(self, y: Tensor) -> Tensor:
        return y

    def prox(self, x: Tensor, y: Tensor, rho: Tensor) -> Tensor:
        """u = (y + rho x) / (1 + rho)."""
        weight = expand_to(rho, x)
        return (y + weight * x) / (1 + weight)
