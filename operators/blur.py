"""Blurs: convolution with a kernel that does not change over the picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..linalg import expand_to
from . import kernels
from .base import LinearOperator, Shape
from .resize import Separable
from .spectral import SpectralOperator

__all__ = ["Boundary", "CircularBlur", "PaddedBlur", "blur", "blur_kernel", "blur_motion", "blur_shake", "blur_uniform"]

Boundary = Literal["circular", "zero", "reflect"]

# Singular values (of a circular blur: frequencies) below this part of the largest count as lost: undoing them would
# amplify the rounding errors of float32 data, about 1e-7, by more than 1e4.
_SMALLEST_GAIN = 1e-4


class CircularBlur(SpectralOperator):
    """y = k * x on a torus: y[i, j] = sum_{p, q} k[p, q] x[i - p, j - q], the same kernel for every channel.

    The blur multiplies the spectrum of x by the gain, the spectrum of k.  Frequencies damped below 1e-4 of the
    strongest count as lost in the pseudo-inverse and in the singular values that `spectral` shows, so that
    |A A^+ A x - A x| is at most 1e-4 |A| |x|; the proximal step is exact.

    Arguments:
        image_shape: (C, H, W).
        kernel: k (h, w) of odd size, at most (H, W), its middle pixel being k[0, 0].

    Raises:
        ValueError: if the kernel is not an odd-sized finite picture, or larger than the image.
    """

    fields: ClassVar[tuple[str, ...]] = ("kernel",)
    kernel: Tensor
    gain: Tensor

    def __init__(self, image_shape: Shape, *, kernel: Tensor) -> None:
        super().__init__(image_shape)
        _check_kernel(kernel)
        picture = self.image_shape[1:]
        if any(k > n for k, n in zip(kernel.shape, picture, strict=True)):
            raise ValueError(
                f"The kernel {tuple(kernel.shape)} is larger than the picture {picture}; make the blur smaller, or use "
                f"boundary='zero'."
            )
        self.register_buffer("kernel", kernel.to(torch.float64))
        self.register_buffer("gain", _gain(self.kernel, picture))

    def forward(self, x: Tensor) -> Tensor:
        return _multiply(_cast(self.gain, x), x)

    def adjoint(self, y: Tensor) -> Tensor:
        return _multiply(_cast(self.gain, y).conj(), y)

    def pinv(self, y: Tensor) -> Tensor:
        """Division by the gain at every frequency that is not lost."""
        kept = self._singular_values(y) > 0
        gain = _cast(self.gain, y)
        return _multiply(torch.where(kept, 1 / torch.where(kept, gain, 1), 0), y)

    def prox(self, x: Tensor, y: Tensor, rho: Tensor) -> Tensor:
        """At every frequency (conj(gain) y + rho x) / (|gain|^2 + rho)."""
        gain, weight = _cast(self.gain, x), expand_to(rho, x)
        spectrum = gain.conj() * _spectrum(y) + weight * _spectrum(x)
        return torch.fft.irfft2(spectrum / (gain.abs() ** 2 + weight), s=x.shape[-2:])

    def spectral(self, x: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """At every frequency fn(|gain|) x, or fn(0) x where it is lost."""
        return _multiply(fn(self._singular_values(x)), x)

    def _singular_values(self, x: Tensor) -> Tensor:
        size = torch.view_as_complex(self.gain).abs()
        return size.where(size > _SMALLEST_GAIN * size.max(), 0).to(x.dtype)


class PaddedBlur(LinearOperator):
    """y = k * x on a picture that goes on beyond its border: pad, convolve circularly, crop, A = C K P.

    For kernels without a structure: of one that is a product of two lines, `Separable` knows the singular values.

    Arguments:
        image_shape: (C, H, W).
        kernel: k (h, w) of odd size, its middle pixel being k[0, 0].
        boundary: `zero` pads with 0 (mid grey), `reflect` mirrors the picture at the middle of its border pixels
            (c b | a b c d | c b).

    Raises:
        ValueError: if the kernel is not an odd-sized finite picture, or reaches over the mirrored picture, or the
            boundary is unknown.
    """

    fields: ClassVar[tuple[str, ...]] = ("kernel", "boundary")
    kernel: Tensor
    gain: Tensor

    def __init__(self, image_shape: Shape, *, kernel: Tensor, boundary: Literal["zero", "reflect"]) -> None:
        super().__init__(image_shape)
        _check_kernel(kernel)
        _, height, width = self.image_shape
        self.margin = (kernel.shape[0] // 2, kernel.shape[1] // 2)
        self.boundary = boundary
        if boundary not in ("zero", "reflect"):
            raise ValueError(f"boundary is one of zero, reflect for a padded blur, got {boundary!r}.")
        _check_reach(kernel, (height, width), boundary)
        self.register_buffer("kernel", kernel.to(torch.float64))
        # With the margin on both sides, what runs over one end of the torus stays within the part that is cropped.
        self.register_buffer("gain", _gain(self.kernel, (height + 2 * self.margin[0], width + 2 * self.margin[1])))

    def forward(self, x: Tensor) -> Tensor:
        return self._crop(_multiply(_cast(self.gain, x), self._pad(x)))

    def adjoint(self, y: Tensor) -> Tensor:
        """P^T K^T C^T y."""
        top, left = self.margin
        return self._pad_adjoint(_multiply(_cast(self.gain, y).conj(), F.pad(y, (left, left, top, top))))

    def _pad(self, x: Tensor) -> Tensor:
        top, left = self.margin
        if self.boundary == "zero":
            return F.pad(x, (left, left, top, top))
        return _mirror(_mirror(x, top, dim=-2), left, dim=-1)

    def _pad_adjoint(self, x: Tensor) -> Tensor:
        top, left = self.margin
        return self._crop(x) if self.boundary == "zero" else _fold(_fold(x, left, dim=-1), top, dim=-2)

    def _crop(self, x: Tensor) -> Tensor:
        (top, left), (_, height, width) = self.margin, self.image_shape
        return x[..., top : top + height, left : left + width]


def blur(image_shape: Shape, *, sigma: float = 2.0, boundary: Boundary = "circular") -> LinearOperator:
    """Gaussian blur with standard deviation `sigma` in pixels."""
    return _blur(image_shape, kernels.gaussian(sigma), boundary)


def blur_uniform(image_shape: Shape, *, size: int = 9, boundary: Boundary = "circular") -> LinearOperator:
    """Mean over a square of size x size pixels, `size` odd."""
    return _blur(image_shape, kernels.uniform(size), boundary)


def blur_motion(
    image_shape: Shape, *, length: float = 15.0, angle: float = 45.0, boundary: Boundary = "circular"
) -> LinearOperator:
    """A straight movement over `length` pixels, `angle` degrees counter-clockwise from the horizontal."""
    return _blur(image_shape, kernels.linear_motion(length, angle), boundary)


def blur_shake(
    image_shape: Shape, *, size: int = 31, seed: int = 0, intensity: float = 0.5, boundary: Boundary = "circular"
) -> LinearOperator:
    """A trembling hand within size x size pixels; `intensity` 0 is a straight line, 1 is erratic."""
    return _blur(image_shape, kernels.camera_shake(size, seed, intensity), boundary)


def blur_kernel(image_shape: Shape, *, kernel: str, boundary: Boundary = "circular") -> LinearOperator:
    """The kernel drawn in the grey picture at the path `kernel`, normalised and centred at its centre of mass."""
    return _blur(image_shape, kernels.from_file(kernel), boundary)


def line_matrix(profile: Tensor, size: int, boundary: Literal["zero", "reflect"]) -> Tensor:
    """Convolution of a line of `size` pixels with a profile (2 r + 1,), y_i = sum_p k_p x_{i - p}: (size, size)."""
    radius = len(profile) // 2
    source = torch.arange(size)[:, None] - torch.arange(-radius, radius + 1)
    weight = profile.expand(source.shape)
    if boundary == "zero":
        weight = weight.where((source >= 0) & (source < size), 0)
        source = source.clamp(0, size - 1)
    else:
        source = source.abs()
        source = torch.where(source < size, source, 2 * (size - 1) - source)
    return torch.zeros(size, size, dtype=profile.dtype).scatter_add_(1, source, weight)


def _blur(image_shape: Shape, kernel: Tensor, boundary: Boundary) -> LinearOperator:
    """The blur whose inverse is known best: for a kernel of sum 1 that is a product of two lines, one by lines."""
    if boundary not in get_args(Boundary):
        raise ValueError(f"boundary is one of {', '.join(get_args(Boundary))}, got {boundary!r}.")
    if boundary == "circular":
        return CircularBlur(image_shape, kernel=kernel)
    rows, columns = kernel.sum(dim=1), kernel.sum(dim=0)
    if (kernel - torch.outer(rows, columns)).abs().max() > 1e-12 * kernel.max():
        return PaddedBlur(image_shape, kernel=kernel, boundary=boundary)
    _, height, width = image_shape
    _check_reach(kernel, (height, width), boundary)
    return Separable(
        image_shape,
        vertical=line_matrix(rows, height, boundary),
        horizontal=line_matrix(columns, width, boundary),
        cutoff=_SMALLEST_GAIN,
    )


def _gain(kernel: Tensor, grid: tuple[int, int]) -> Tensor:
    """Spectrum of the kernel with its middle at the origin of the torus: (h, w // 2 + 1, 2), real and imaginary part.

    Stored as real numbers, because Module.to(dtype) would drop the imaginary part of a complex buffer.
    """
    (h, w), (height, width) = kernel.shape, grid
    corner = F.pad(kernel, (0, width - w, 0, height - h))
    return torch.view_as_real(torch.fft.rfft2(corner.roll((-(h // 2), -(w // 2)), dims=(0, 1))))


def _cast(gain: Tensor, x: Tensor) -> Tensor:
    return torch.view_as_complex(gain.to(x.dtype))


def _multiply(gain: Tensor, x: Tensor) -> Tensor:
    return torch.fft.irfft2(gain * _spectrum(x), s=x.shape[-2:])


def _spectrum(x: Tensor) -> Tensor:
    """Of real values; MKL's transforms in torch 2.7 refuse expanded tensors."""
    return torch.fft.rfft2(x.contiguous())


def _mirror(x: Tensor, margin: int, dim: int) -> Tensor:
    """Continue x by `margin` pixels on both sides of `dim`, mirrored at the middle of the border pixels.

    Unlike F.pad(mode="reflect"), its gradient is the same at every run on a GPU.
    """
    last = x.shape[dim] - 1
    before, after = x.narrow(dim, 1, margin), x.narrow(dim, last - margin, margin)
    return torch.cat((before.flip(dim), x, after.flip(dim)), dim)


def _fold(y: Tensor, margin: int, dim: int) -> Tensor:
    """The adjoint of `_mirror`: add the margins to the pixels they are copies of."""
    n = y.shape[dim] - 2 * margin
    before, middle, after = y.split((margin, n, margin), dim)
    x = middle.clone()
    x.narrow(dim, 1, margin).add_(before.flip(dim))
    x.narrow(dim, n - 1 - margin, margin).add_(after.flip(dim))
    return x


def _check_kernel(kernel: Tensor) -> None:
    if kernel.ndim != 2 or any(n % 2 == 0 for n in kernel.shape) or not kernel.isfinite().all():
        raise ValueError(
            f"A blur kernel is finite, (h, w), of odd height and width, got {tuple(kernel.shape)}; pad an even one by "
            f"a row or column of zeros."
        )


def _check_reach(kernel: Tensor, picture: tuple[int, int], boundary: str) -> None:
    if boundary == "reflect" and any(k // 2 >= n for k, n in zip(kernel.shape, picture, strict=True)):
        raise ValueError(
            f"The kernel {tuple(kernel.shape)} reaches over the mirrored picture {picture}; make the blur smaller, or "
            f"use boundary='zero'."
        )
