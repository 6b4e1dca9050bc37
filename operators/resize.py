"""Low resolution: resampling along rows and columns, one small matrix for each axis."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..linalg import expand_to
from .base import LinearOperator, Shape

__all__ = ["Separable", "average_matrix", "bicubic_matrix", "downsample", "downsample_bicubic"]

# Squared singular values below this part of the largest one count as zero: those of the matrices here are far larger,
# and the rounding errors of the decomposition, about 1e-16, are far smaller.
_SMALLEST_POWER = 1e-12


class Separable(LinearOperator):
    """Y = L X R^T for each channel.

    With the eigen-decompositions L L^T = U diag(a) U^T and R R^T = V diag(b) V^T, the inverse of A A^T + rho is a
    division by a_i b_j + rho between two changes of basis, which gives A^+ and the proximal step in closed form.

    Arguments:
        image_shape: (C, H, W).
        vertical: L (h, H), which acts on columns of pixels.
        horizontal: R (w, W), which acts on rows of pixels.

    Raises:
        ValueError: if the matrices do not fit the image.
    """

    fields: ClassVar[tuple[str, ...]] = ("vertical", "horizontal")
    vertical: Tensor
    horizontal: Tensor
    vertical_basis: Tensor
    horizontal_basis: Tensor
    power: Tensor

    def __init__(self, image_shape: Shape, *, vertical: Tensor, horizontal: Tensor) -> None:
        super().__init__(image_shape)
        _, height, width = self.image_shape
        if vertical.shape[1:] != (height,) or horizontal.shape[1:] != (width,):
            raise ValueError(
                f"Separable expects matrices (h, {height}) and (w, {width}) for images {self.image_shape}, got "
                f"{tuple(vertical.shape)} and {tuple(horizontal.shape)}; make them for the sides of the picture."
            )
        self.register_buffer("vertical", vertical.to(torch.float64))
        self.register_buffer("horizontal", horizontal.to(torch.float64))
        a, vertical_basis = torch.linalg.eigh(self.vertical @ self.vertical.T)
        b, horizontal_basis = torch.linalg.eigh(self.horizontal @ self.horizontal.T)
        self.register_buffer("vertical_basis", vertical_basis)  # U
        self.register_buffer("horizontal_basis", horizontal_basis)  # V
        self.register_buffer("power", torch.outer(a, b))  # a_i b_j (h, w)

    def forward(self, x: Tensor) -> Tensor:
        return self.vertical.to(x.dtype) @ x @ self.horizontal.to(x.dtype).T

    def adjoint(self, y: Tensor) -> Tensor:
        return self.vertical.to(y.dtype).T @ y @ self.horizontal.to(y.dtype)

    def pinv(self, y: Tensor) -> Tensor:
        """A^T (A A^T)^+ y."""
        return self.adjoint(self._solve(y, y.new_zeros(())))

    def prox(self, x: Tensor, y: Tensor, rho: Tensor) -> Tensor:
        """u = x + A^T (A A^T + rho)^-1 (y - A x)."""
        return x + self.adjoint(self._solve(y - self.forward(x), rho))

    def _solve(self, residual: Tensor, rho: Tensor) -> Tensor:
        """(A A^T + rho)^-1 on the range of A, and 0 beyond it, where the adjoint that follows gives 0 in any case."""
        left, right = self.vertical_basis.to(residual.dtype), self.horizontal_basis.to(residual.dtype)
        power = self.power.to(residual.dtype)
        kept = power > _SMALLEST_POWER * power.max()
        inverse = torch.where(kept, 1 / torch.where(kept, power + expand_to(rho, residual), 1), 0)
        return left @ (inverse * (left.T @ residual @ right)) @ right.T


def downsample(image_shape: Shape, *, factor: int = 4) -> Separable:
    """Mean of blocks of factor x factor pixels; a cut block at the lower or right border is averaged as far as it goes.

    Raises:
        ValueError: if the factor is not between 1 and the shorter side.
    """
    _check_factor(image_shape, factor)
    _, height, width = image_shape
    return Separable(image_shape, vertical=average_matrix(height, factor), horizontal=average_matrix(width, factor))


def downsample_bicubic(image_shape: Shape, *, factor: int = 4) -> Separable:
    """Antialiased bicubic down-sampling, as MATLAB's imresize does it.

    Raises:
        ValueError: if the factor is not between 1 and the shorter side.
    """
    _check_factor(image_shape, factor)
    _, height, width = image_shape
    return Separable(image_shape, vertical=bicubic_matrix(height, factor), horizontal=bicubic_matrix(width, factor))


def average_matrix(size: int, factor: int) -> Tensor:
    """Mean of `factor` neighbours: (ceil(size / factor), size), float64, rows sum to 1."""
    block = torch.arange(size) // factor
    member = (block == torch.arange(int(block[-1]) + 1)[:, None]).to(torch.float64)
    return member / member.sum(dim=1, keepdim=True)


def bicubic_matrix(size: int, factor: int) -> Tensor:
    """Keys' kernel (a = -1/2) stretched by `factor`: (ceil(size / factor), size), float64, rows sum to 1.

    Output i is centred at (i + 1/2) factor - 1/2 and has up to 4 factor taps; beyond its border the picture goes on
    mirrored at the edge of the border pixels (c b a | a b c | c b a).

    References:
        Cubic convolution interpolation for digital image processing, R. Keys, 1981.
    """
    n_out = -(-size // factor)
    centre = (torch.arange(n_out, dtype=torch.float64)[:, None] + 0.5) * factor - 0.5
    tap = centre.floor() + torch.arange(-2 * factor, 2 * factor + 1)
    t = (tap - centre).abs() / factor
    near = 1.5 * t**3 - 2.5 * t**2 + 1
    far = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    weight = torch.where(t <= 1, near, torch.where(t < 2, far, 0))
    period = tap.long() % (2 * size)
    source = torch.where(period < size, period, 2 * size - 1 - period)
    matrix = torch.zeros(n_out, size, dtype=torch.float64).scatter_add_(1, source, weight)
    return matrix / matrix.sum(dim=1, keepdim=True)


def _check_factor(image_shape: Shape, factor: int) -> None:
    largest = min(image_shape[1:])
    if not 1 <= factor <= largest:
        raise ValueError(f"factor is a number of pixels from 1 to {largest}, the shorter side, got {factor}.")
