"""Pieces of every blur: the spectrum of a kernel on a torus, and pictures that go on beyond their border."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["cast", "fast_size", "fold", "gain", "mirror", "multiply", "place", "spectral_dot", "spectrum"]


def gain(kernel: Tensor, grid: tuple[int, int]) -> Tensor:
    """Spectrum of the kernel (odd height, odd width) with its middle at the origin of a torus of `grid` pixels.

    A kernel larger than the torus is wound around it.

    Returns:
        float64 (h, w // 2 + 1, 2), real and imaginary part: Module.to(dtype) would drop the imaginary part of a
            complex buffer.
    """
    (h, w), (height, width) = kernel.shape, grid
    rows, columns = (torch.arange(h) - h // 2) % height, (torch.arange(w) - w // 2) % width
    wound = torch.zeros(height, w, dtype=torch.float64).index_add_(0, rows, kernel.double())
    torus = torch.zeros(height, width, dtype=torch.float64).index_add_(1, columns, wound)
    return torch.view_as_real(torch.fft.rfft2(torus))


def cast(gains: Tensor, x: Tensor) -> Tensor:
    """A spectrum of `gain` as complex numbers of the precision of x."""
    return torch.view_as_complex(gains.to(x.dtype))


def multiply(gains: Tensor, x: Tensor) -> Tensor:
    """The picture (..., H, W) whose spectrum is multiplied by `gains`, complex or real, (h, w // 2 + 1)."""
    found = spectrum(x)
    return torch.fft.irfft2(gains * found if gains.is_complex() else _scale(gains, found), s=x.shape[-2:])


def _scale(factors: Tensor, spectra: Tensor) -> Tensor:
    """Complex spectra times real factors; torch would make complex numbers of the factors first."""
    return torch.view_as_complex(factors[..., None] * torch.view_as_real(spectra))


def spectrum(x: Tensor) -> Tensor:
    """Of real pictures (..., H, W); MKL's transforms in torch 2.7 refuse expanded tensors."""
    return torch.fft.rfft2(x.contiguous())


def spectral_dot(a: Tensor, b: Tensor, width: int) -> Tensor:
    """Inner product per image of two real pictures (B, C, h, width), of which a and b are the `torch.fft.rfft2`."""
    left, right = torch.view_as_real(a), torch.view_as_real(b)
    whole = 2 * torch.linalg.vecdot(left.flatten(1), right.flatten(1))
    for end in [0, width // 2] if width % 2 == 0 else [0]:  # every other frequency stands for two
        whole = whole - torch.linalg.vecdot(left[..., end, :].flatten(1), right[..., end, :].flatten(1))
    return whole / (a.shape[-2] * width)


def fast_size(n: int) -> int:
    """The smallest even number from n on without a prime factor above 5: Fourier transforms of this size are fast."""
    size = n + n % 2
    while _rest(size) > 1:
        size += 2
    return size


def _rest(n: int) -> int:
    for prime in (2, 3, 5):
        while n % prime == 0:
            n //= prime
    return n


def mirror(x: Tensor, margin: int, dim: int, n: int) -> Tensor:
    """Fill `margin` places on both sides of the n in the middle of `dim`, mirrored at the middle of the border pixels.

    Unlike F.pad(mode="reflect"), its gradient is the same at every run on a GPU.

    Arguments:
        x: pictures; along `dim`, the n pixels come after `margin` places.
        margin: fewer than n.
        dim: -2 or -1.
        n: the length of the picture.

    Returns:
        x itself, changed.
    """
    first, last = margin, margin + n - 1
    x.narrow(dim, 0, margin).copy_(x.narrow(dim, first + 1, margin).flip(dim))
    x.narrow(dim, last + 1, margin).copy_(x.narrow(dim, last - margin, margin).flip(dim))
    return x


def fold(y: Tensor, margin: int, dim: int) -> Tensor:
    """The adjoint of `mirror`: (..., margin + n + margin, ...) to (..., n, ...), copies added to their pixels."""
    n = y.shape[dim] - 2 * margin
    before, middle, after = y.split((margin, n, margin), dim)
    x = middle.clone()
    x.narrow(dim, 1, margin).add_(before.flip(dim))
    x.narrow(dim, n - 1 - margin, margin).add_(after.flip(dim))
    return x


def place(x: Tensor, grid: tuple[int, int], at: tuple[int, int] = (0, 0)) -> Tensor:
    """Pictures (..., h, w) on a grid of zeros (..., *grid), their first pixel at row and column `at`."""
    (height, width), (top, left) = grid, at
    h, w = x.shape[-2:]
    return F.pad(x, (left, width - w - left, top, height - h - top))
