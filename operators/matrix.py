"""Any linear operator on small pictures, given as a dense matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from ..linalg import expand_to
from .base import Shape
from .spectral import SpectralOperator

__all__ = ["Matrix"]


class Matrix(SpectralOperator):
    """y = A vec(x) with data (m,): the pixels of x in the order (C, H, W).

    The singular value decomposition A = U diag(v) V^T is found once, in float64.  Values below eps max(m, d) of the
    largest, eps being that of the dtype in which A was given, count as zero.

    Arguments:
        image_shape: (C, H, W).
        matrix: A (m, d) with d = C * H * W.

    Raises:
        ValueError: if the matrix does not fit the image, or is zero or not finite.
    """

    fields: ClassVar[tuple[str, ...]] = ("matrix",)
    matrix: Tensor
    data_basis: Tensor  # U (m, rank)
    image_basis: Tensor  # V (d, rank)
    values: Tensor  # v (rank,)

    def __init__(self, image_shape: Shape, *, matrix: Tensor) -> None:
        super().__init__(image_shape)
        size = math.prod(self.image_shape)
        if matrix.ndim != 2 or matrix.shape[1] != size:
            raise ValueError(
                f"Matrix expects a matrix (m, {size}) for images {self.image_shape}, got {tuple(matrix.shape)}; give "
                f"it one column per pixel."
            )
        if not matrix.isfinite().all() or not matrix.any():
            raise ValueError("Matrix expects finite entries, not all zero; check how the matrix was made.")
        self.register_buffer("matrix", matrix.to(torch.float64))
        u, v, vt = torch.linalg.svd(self.matrix, full_matrices=False)
        precision = torch.finfo(matrix.dtype if matrix.is_floating_point() else torch.float64).eps
        rank = int((v > precision * max(matrix.shape) * v[0]).sum())
        self.register_buffer("data_basis", u[:, :rank].contiguous())
        self.register_buffer("image_basis", vt[:rank].mT.contiguous())
        self.register_buffer("values", v[:rank].contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.to(x.dtype).mT

    def adjoint(self, y: Tensor) -> Tensor:
        return self._picture(y @ self.matrix.to(y.dtype))

    def pinv(self, y: Tensor) -> Tensor:
        """The image V (U^T y / v)."""
        return self._synthesise(self._analyse_data(y) / self.values.to(y.dtype))

    def prox(self, x: Tensor, y: Tensor, rho: Tensor) -> Tensor:
        """The step x + V (v / (v^2 + rho) U^T (y - A x))."""
        v, weight = self.values.to(x.dtype), expand_to(rho, y)
        return x + self._synthesise(v / (v.square() + weight) * self._analyse_data(y - self.forward(x)))

    def spectral(self, x: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """The image fn(0) x + V ((fn(v) - fn(0)) V^T x): fn(0) for what the thin basis V does not reach."""
        coefficients = (x.flatten(1) @ self.image_basis.to(x.dtype))[:, None, None]  # (B, 1, 1, rank)
        lost = fn(x.new_zeros(()))
        return lost * x + self._synthesise(((fn(self.values.to(x.dtype)) - lost) * coefficients).flatten(1))

    def _analyse_data(self, y: Tensor) -> Tensor:
        return y @ self.data_basis.to(y.dtype)

    def _synthesise(self, coefficients: Tensor) -> Tensor:
        return self._picture(coefficients @ self.image_basis.to(coefficients.dtype).mT)

    def _picture(self, flat: Tensor) -> Tensor:
        return flat.reshape(-1, *self.image_shape)
