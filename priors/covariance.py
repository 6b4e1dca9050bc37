"""Covariances that are diagonal in a known orthonormal basis: C = Q diag(lambda) Q^T."""

from __future__ import annotations

import abc
from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["Covariance", "Diagonal", "Full", "PowerLaw", "Stationary", "decompose"]

Spectrum = Callable[[Tensor], Tensor]  # eigenvalues -> factors, of a shape that broadcasts

_ROUNDING = 1e-4  # what a covariance of float32 may miss symmetry and definiteness by, relative to its size


class Covariance(nn.Module, abc.ABC):
    """A covariance over images (C, H, W)."""

    @abc.abstractmethod
    def apply_function(self, fn: Spectrum, x: Tensor) -> Tensor:
        """Q diag(fn(lambda)) Q^T x for images x (B, C, H, W)."""


class Diagonal(Covariance):
    """Independent pixels.

    Arguments:
        variance: of every pixel, (C, H, W) or anything that broadcasts to it.
    """

    variance: Tensor

    def __init__(self, variance: Tensor) -> None:
        super().__init__()
        self.register_buffer("variance", variance)

    def apply_function(self, fn: Spectrum, x: Tensor) -> Tensor:
        return fn(self.variance.to(x.dtype)) * x


class Full(Covariance):
    """Any covariance, for small images.

    Arguments:
        matrix: symmetric positive semi-definite (d, d), d = C * H * W.

    Raises:
        ValueError: if it is not.
    """

    values: Tensor
    vectors: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        values, vectors = decompose(matrix)
        self.register_buffer("values", values)
        self.register_buffer("vectors", vectors)

    def apply_function(self, fn: Spectrum, x: Tensor) -> Tensor:
        vectors = self.vectors.to(x.dtype)
        return ((x.flatten(1) @ vectors) * fn(self.values.to(x.dtype)).flatten() @ vectors.T).reshape(x.shape)


class Stationary(Covariance):
    """Pixels whose correlation depends on their distance only, on a torus: diagonal in the Fourier basis.

    Arguments:
        power: eigenvalues on the half plane of `rfft2`, (C, H, W // 2 + 1), symmetric as those of a real field.
    """

    power: Tensor

    def __init__(self, power: Tensor) -> None:
        super().__init__()
        self.register_buffer("power", power)

    def apply_function(self, fn: Spectrum, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # no Fourier transform takes half precision
        filtered = fn(self.power.to(wide.dtype)) * torch.fft.rfft2(wide)
        return torch.fft.irfft2(filtered, s=x.shape[-2:]).to(x.dtype)


class PowerLaw(Covariance):
    """The 1/f^exponent spectrum of photographs at any size, brightness and two colour contrasts independent.

    Arguments:
        std: standard deviation of a pixel in [-1, 1] units.
        exponent: of the power spectrum over spatial frequency (Field, 1987: about 2).
        contrast: variance of the two colour contrasts relative to brightness.
    """

    def __init__(self, std: float = 0.5, exponent: float = 2.0, contrast: tuple[float, float] = (0.06, 0.02)) -> None:
        super().__init__()
        self.std, self.exponent, self.contrast = std, exponent, contrast

    def apply_function(self, fn: Spectrum, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        dtype, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))  # no Fourier transform of half precision
        fy = torch.fft.fftfreq(height, device=x.device, dtype=x.dtype)[:, None]
        fx = torch.fft.rfftfreq(width, device=x.device, dtype=x.dtype)
        frequency = (fy.square() + fx.square()).sqrt().clamp_min(1 / max(height, width))
        power = frequency**-self.exponent
        full = torch.cat([power, power[:, 1 : (width + 1) // 2]], dim=1)  # every frequency counted once
        power = power * self.std**2 / full.mean()
        basis = _colour_basis(x)
        scale = x.new_tensor([1.0, *self.contrast] if x.shape[1] == 3 else [1.0])
        scale = scale * x.shape[1] / scale.sum()
        inner = torch.einsum("kc,bchw->bkhw", basis, x)
        inner = torch.fft.irfft2(fn(scale[:, None, None] * power) * torch.fft.rfft2(inner), s=(height, width))
        return torch.einsum("kc,bkhw->bchw", basis, inner).to(dtype)


def decompose(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (..., d), rounding errors below zero set to zero, and eigenvectors (..., d, d) of covariances.

    Raises:
        ValueError: if they are not square, finite, symmetric and positive semi-definite.
    """
    if matrices.ndim < 2 or matrices.shape[-1] != matrices.shape[-2] or not matrices.isfinite().all():
        raise ValueError(
            f"A covariance is a finite square matrix (d, d), got {tuple(matrices.shape)}; give it one row and one "
            f"column per pixel."
        )
    if (skew := (matrices - matrices.mT).abs().max()) > _ROUNDING * matrices.abs().max():
        raise ValueError(f"A covariance is symmetric, this one differs from its transpose by {skew:.2g}; check it.")
    values, vectors = torch.linalg.eigh(matrices)
    if (values[..., 0] < -_ROUNDING * values[..., -1].abs()).any():
        raise ValueError(
            f"A covariance has no negative eigenvalues, this one has {float(values.min()):.2g}; add at least that much "
            f"to its diagonal, or check how it was made."
        )
    return values.clamp_min(0), vectors


def _colour_basis(x: Tensor) -> Tensor:
    """Orthonormal brightness, red-blue and green-magenta axes (3, 3); the identity for other channel counts."""
    if x.shape[1] != 3:
        return torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    axes = x.new_tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]])
    return axes / axes.norm(dim=1, keepdim=True)
