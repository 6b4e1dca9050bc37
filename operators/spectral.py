"""Linear operators whose singular value decomposition is known."""

from __future__ import annotations

import abc
from collections.abc import Callable

import torch
from torch import Tensor

from ..linalg import expand_to
from .base import LinearOperator

__all__ = ["SpectralOperator"]


class SpectralOperator(LinearOperator):
    """A = U diag(v) V^T with a V that can be applied: every function of A^T A is one call.

    Pseudo-inverse and proximal step follow in closed form, and so does the noise shaping of DDNM+ and DDRM.  They go
    through A^T y, whose rounding errors they divide by v^2 or rho; an operator with small singular values replaces them
    by forms that keep the digits of float32.

    A value so small that undoing it would amplify little but rounding errors counts as zero in `spectral` and `pinv`:
    the class states from where on (1e-4 of the largest for blurs).
    """

    @abc.abstractmethod
    def spectral(self, x: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """V diag(fn(v)) V^T x on images x (B, *image_shape), without forming V.

        Arguments:
            x: images (B, *image_shape).
            fn: factors from singular values; it is given non-negative values in a shape that broadcasts over the
                coefficients of one image, exactly zero in the null space, and may return one set per image
                (B, 1, 1, 1).
        """

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y = V diag(1 / v^2) V^T A^T y, without the null space."""
        return self.spectral(self.adjoint(y), lambda v: torch.where(v > 0, 1 / v.square(), 0))

    def prox(self, x: Tensor, y: Tensor, rho: Tensor) -> Tensor:
        """The solution (A^T A + rho)^-1 (A^T y + rho x) = V diag(1 / (v^2 + rho)) V^T (A^T y + rho x)."""
        weight = expand_to(rho, x)
        return self.spectral(self.adjoint(y) + weight * x, lambda v: 1 / (v.square() + weight))
