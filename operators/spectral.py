"""Linear operators whose singular value decomposition is known."""

from __future__ import annotations

import abc
from collections.abc import Callable

import torch
from torch import Tensor

from ..linalg import expand_to
from .base import LinearOperator

__all__ = ["SpectralOperator"]

RELATIVE_ZERO = 1e-6  # singular values below this share of the largest count as zero in the pseudo-inverse


class SpectralOperator(LinearOperator):
    """A = U diag(v) V^T with a V that can be applied: every function of A^T A is one call.

    Pseudo-inverse and proximal step follow in closed form, and so does the noise shaping of DDNM+ and DDRM.
    """

    @abc.abstractmethod
    def spectral(self, x: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """V diag(fn(v)) V^T x on images x (B, *image_shape), without forming V.

        Arguments:
            x: images (B, *image_shape).
            fn: factors from singular values; it is given non-negative values in a shape that broadcasts over the
                coefficients of one image, zero in the null space, and may return one set per image (B, 1, 1, 1).
        """

    @abc.abstractmethod
    def largest_singular_value(self) -> float:
        """max_i v_i."""

    def pinv(self, y: Tensor) -> Tensor:
        floor = RELATIVE_ZERO * self.largest_singular_value()

        def inverse(v: Tensor) -> Tensor:  # 1 / v^2 of the components that A keeps
            return torch.where(v > floor, 1 / v.clamp_min(floor).square(), 0)

        return self.spectral(self.adjoint(y), inverse)

    def prox(self, x: Tensor, y: Tensor, rho: Tensor) -> Tensor:
        weight = expand_to(rho, x)
        return self.spectral(self.adjoint(y) + weight * x, lambda v: 1 / (v.square() + weight))
