"""Low resolution: resampling along rows and columns, one small matrix for each axis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..linalg import expand_to
from .base import Shape, shaped_by
from .spectral import SpectralOperator

__all__ = ["Separable", "average_matrix", "bicubic_matrix", "downsample", "downsample_bicubic", "enlarged_shape"]


class Separable(SpectralOperator):
    """Y = L X R^T for each channel.

    With the singular value decompositions L = U diag(a) V^T and R = P diag(b) Q^T, the operator multiplies the
    coefficients V^T X Q by v_ij = a_i b_j, which gives A^+ and the proximal step in closed form.

    Values v below `cutoff` times the largest count as lost in the pseudo-inverse and in the singular values that
    `spectral` shows, so that |A A^+ A x - A x| is at most cutoff |A| |x|.

    Arguments:
        image_shape: (C, H, W).
        vertical: L (h, H), which acts on columns of pixels.
        horizontal: R (w, W), which acts on rows of pixels.
        cutoff: far above the rounding errors of the decomposition, 1e-16, and of the data.

    Raises:
        ValueError: if the matrices do not fit the image.
    """

    fields: ClassVar[tuple[str, ...]] = ("vertical", "horizontal", "cutoff")
    vertical: Tensor  # L
    horizontal: Tensor  # R

    def __init__(self, image_shape: Shape, *, vertical: Tensor, horizontal: Tensor, cutoff: float = 1e-8) -> None:
        super().__init__(image_shape)
        self.cutoff = cutoff
        _, height, width = self.image_shape
        if vertical.shape[1:] != (height,) or horizontal.shape[1:] != (width,):
            raise ValueError(
                f"Separable expects matrices (h, {height}) and (w, {width}) for images {self.image_shape}, got "
                f"{tuple(vertical.shape)} and {tuple(horizontal.shape)}; make them for the sides of the picture."
            )
        self.register_buffer("vertical", vertical.to(torch.float64))
        self.register_buffer("horizontal", horizontal.to(torch.float64))
        self._decomposition: _Decomposition | None = None

    def forward(self, x: Tensor) -> Tensor:
        return _sandwich(self.vertical, x, self.horizontal.mT)

    def adjoint(self, y: Tensor) -> Tensor:
        return _sandwich(self.vertical.mT, y, self.horizontal)

    def pinv(self, y: Tensor) -> Tensor:
        """The image V (U^T Y P / v) Q^T, without what is lost."""
        v = self._parts.kept.to(y.dtype)
        return self._synthesise(torch.where(v > 0, 1 / v, 0) * self._analyse_data(y))

    def prox(self, x: Tensor, y: Tensor, rho: Tensor) -> Tensor:
        """The step x + V (U^T (y - A x) P v / (v^2 + rho)) Q^T."""
        v = self._parts.values.to(x.dtype)
        return x + self._synthesise(v / (v**2 + expand_to(rho, x)) * self._analyse_data(y - self.forward(x)))

    def spectral(self, x: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """The image fn(0) x + V ((fn(v) - fn(0)) V^T X Q) Q^T: fn(0) for what the thin bases V and Q do not reach."""
        v = self._parts.kept.to(x.dtype)
        lost = fn(v.new_zeros(()))
        coefficients = _sandwich(self._parts.vertical_image.mT, x, self._parts.horizontal_image)
        return lost * x + self._synthesise((fn(v) - lost) * coefficients)

    def _analyse_data(self, y: Tensor) -> Tensor:
        return _sandwich(self._parts.vertical_data.mT, y, self._parts.horizontal_data)

    def _synthesise(self, coefficients: Tensor) -> Tensor:
        return _sandwich(self._parts.vertical_image, coefficients, self._parts.horizontal_image.mT)

    @property
    def _parts(self) -> _Decomposition:
        """Found when it is first needed: it takes long for large sides."""
        if self._decomposition is None or self._decomposition.values.device != self.vertical.device:
            self._decomposition = _decompose(self.vertical.double(), self.horizontal.double(), self.cutoff)
        return self._decomposition


@dataclass(frozen=True)
class _Decomposition:
    """L = U diag(a) V^T and R = P diag(b) Q^T."""

    vertical_data: Tensor  # U
    vertical_image: Tensor  # V
    horizontal_data: Tensor  # P
    horizontal_image: Tensor  # Q
    values: Tensor  # v_ij = a_i b_j
    kept: Tensor  # v, or 0 where it is lost


def _decompose(vertical: Tensor, horizontal: Tensor, cutoff: float) -> _Decomposition:
    u, a, vt = torch.linalg.svd(vertical, full_matrices=False)
    same = vertical.shape == horizontal.shape and torch.equal(vertical, horizontal)
    p, b, qt = (u, a, vt) if same else torch.linalg.svd(horizontal, full_matrices=False)
    values = torch.outer(a, b)
    kept = values.where(values > cutoff * values.max(), 0)
    return _Decomposition(u, vt.mT.contiguous(), p, qt.mT.contiguous(), values, kept)


def enlarged_shape(data_shape: Shape, *, factor: int) -> Shape:
    """The picture behind a small one, whose sides are then multiples of the factor.

    Raises:
        ValueError: if the factor is below 1.
    """
    _check_positive(factor)
    channels, height, width = data_shape
    return channels, height * factor, width * factor


@shaped_by(enlarged_shape)
def downsample(image_shape: Shape, *, factor: int = 4) -> Separable:
    """Mean of blocks of factor x factor pixels; a cut block at the lower or right border is averaged as far as it goes.

    Raises:
        ValueError: if the factor is not between 1 and the shorter side.
    """
    _check_factor(image_shape, factor)
    _, height, width = image_shape
    return Separable(image_shape, vertical=average_matrix(height, factor), horizontal=average_matrix(width, factor))


@shaped_by(enlarged_shape)
def downsample_bicubic(image_shape: Shape, *, factor: int = 4) -> Separable:
    """Antialiased bicubic down-sampling with the conventions of MATLAB's imresize.

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


def _sandwich(left: Tensor, x: Tensor, right: Tensor) -> Tensor:
    return left.to(x.dtype) @ x @ right.to(x.dtype)


def _check_factor(image_shape: Shape, factor: int) -> None:
    _check_positive(factor)
    if factor > (largest := min(image_shape[1:])):
        raise ValueError(
            f"factor is at most {largest} for pictures of {image_shape[1]} x {image_shape[2]} pixels, got {factor}; "
            f"choose a smaller one."
        )


def _check_positive(factor: int) -> None:
    if factor < 1:
        raise ValueError(f"factor must be a whole number of at least 1, got {factor}; 4 makes a quarter of each side.")
