"""Blurs: convolution with a kernel that does not change over the picture."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..linalg import expand_to
from . import kernels
from .base import LinearOperator, Shape

__all__ = ["Blur", "Boundary", "blur", "blur_kernel", "blur_motion", "blur_shake", "blur_uniform"]

Boundary = Literal["circular", "zero", "reflect"]

# Frequencies damped below this part of the strongest one count as lost: undoing them would amplify the rounding
# errors of float32 data, about 1e-7, by more than 1e4.
_SMALLEST_GAIN = 1e-4


class Blur(LinearOperator):
    """y = k * x, the same kernel for every channel: y[i, j] = sum_{p, q} k[p, q] x[i - p, j - q].

    The picture is padded by a margin, convolved on the larger torus by FFT, and cropped: A = C K P.  There is no margin
    for `circular`; it is 0 (mid grey) for `zero`, and for `reflect` the picture mirrored at the middle of its border
    pixels (c b | a b c d | c b).  `circular` has a closed pseudo-inverse and proximal step; its A^+ drops
    the frequencies damped below 1e-4 of the strongest, so that A A^+ A x = A x to within 1e-4 |x|.

    Arguments:
        image_shape: (C, H, W).
        kernel: k (h, w) of odd size, its middle pixel being k[0, 0].
        boundary: how the picture goes on beyond its border.

    Raises:
        ValueError: if the kernel is not an odd-sized finite picture, is too large for the boundary, or the boundary
            is unknown.
    """

    fields: ClassVar[tuple[str, ...]] = ("kernel", "boundary")
    kernel: Tensor
    gain: Tensor

    def __init__(self, image_shape: Shape, *, kernel: Tensor, boundary: Boundary = "circular") -> None:
        super().__init__(image_shape)
        _check_kernel(kernel, boundary, self.image_shape)
        radius = (kernel.shape[0] // 2, kernel.shape[1] // 2)
        self.boundary: Boundary = boundary
        self.margin = (0, 0) if boundary == "circular" else radius
        _, height, width = self.image_shape
        grid = (height + 2 * self.margin[0], width + 2 * self.margin[1])

        self.register_buffer("kernel", kernel.to(torch.float64))
        origin = F.pad(self.kernel, (0, grid[1] - kernel.shape[1], 0, grid[0] - kernel.shape[0]))
        gain = torch.fft.rfft2(origin.roll((-radius[0], -radius[1]), dims=(0, 1)))
        # As a real tensor, because Module.to(dtype) would drop the imaginary part of a complex buffer.
        self.register_buffer("gain", torch.view_as_real(gain))

    def forward(self, x: Tensor) -> Tensor:
        return self._crop(_multiply(self._gain(x), self._pad(x)))

    def adjoint(self, y: Tensor) -> Tensor:
        """P^T K^T C^T y."""
        return self._pad_adjoint(_multiply(self._gain(y).conj(), self._crop_adjoint(y)))

    def pinv(self, y: Tensor) -> Tensor:
        """conj(gain) y / |gain|^2 at every frequency that is not lost; CG if the boundary is not circular."""
        if self.boundary != "circular":
            return super().pinv(y)
        gain = self._gain(y)
        kept = gain.abs() > _SMALLEST_GAIN * gain.abs().max()
        return _multiply(torch.where(kept, 1 / torch.where(kept, gain, 1), 0), y)

    def prox(self, x: Tensor, y: Tensor, rho: Tensor) -> Tensor:
        """u = (conj(gain) y + rho x) / (|gain|^2 + rho) at every frequency; CG if the boundary is not circular."""
        if self.boundary != "circular":
            return super().prox(x, y, rho)
        gain, weight = self._gain(x), expand_to(rho, x)
        spectrum = gain.conj() * torch.fft.rfft2(y) + weight * torch.fft.rfft2(x)
        return torch.fft.irfft2(spectrum / (gain.abs() ** 2 + weight), s=x.shape[-2:])

    def _gain(self, x: Tensor) -> Tensor:
        return torch.view_as_complex(self.gain.to(x.dtype))

    def _pad(self, x: Tensor) -> Tensor:
        (top, left), reflect = self.margin, self.boundary == "reflect"
        return _mirror(_mirror(x, top, -2), left, -1) if reflect else F.pad(x, (left, left, top, top))

    def _pad_adjoint(self, x: Tensor) -> Tensor:
        (top, left), reflect = self.margin, self.boundary == "reflect"
        return _fold(_fold(x, left, -1), top, -2) if reflect else self._crop(x)

    def _crop(self, x: Tensor) -> Tensor:
        (top, left), (_, height, width) = self.margin, self.image_shape
        return x[..., top : top + height, left : left + width]

    def _crop_adjoint(self, y: Tensor) -> Tensor:
        top, left = self.margin
        return F.pad(y, (left, left, top, top))


def blur(image_shape: Shape, *, sigma: float = 2.0, boundary: Boundary = "circular") -> Blur:
    """Gaussian blur with standard deviation `sigma` in pixels."""
    return Blur(image_shape, kernel=kernels.gaussian(sigma), boundary=boundary)


def blur_uniform(image_shape: Shape, *, size: int = 9, boundary: Boundary = "circular") -> Blur:
    """Mean over a square of size x size pixels, `size` odd."""
    return Blur(image_shape, kernel=kernels.uniform(size), boundary=boundary)


def blur_motion(
    image_shape: Shape, *, length: float = 15.0, angle: float = 45.0, boundary: Boundary = "circular"
) -> Blur:
    """A straight movement over `length` pixels, `angle` degrees counter-clockwise from the horizontal."""
    return Blur(image_shape, kernel=kernels.linear_motion(length, angle), boundary=boundary)


def blur_shake(
    image_shape: Shape, *, size: int = 31, seed: int = 0, intensity: float = 0.5, boundary: Boundary = "circular"
) -> Blur:
    """A trembling hand within size x size pixels; `intensity` 0 is a straight line, 1 is erratic."""
    return Blur(image_shape, kernel=kernels.camera_shake(size, seed, intensity), boundary=boundary)


def blur_kernel(image_shape: Shape, *, kernel: str, boundary: Boundary = "circular") -> Blur:
    """The kernel drawn in the grey picture at the path `kernel`, normalised and centred at its centre of mass."""
    return Blur(image_shape, kernel=kernels.from_file(kernel), boundary=boundary)


def _multiply(gain: Tensor, x: Tensor) -> Tensor:
    return torch.fft.irfft2(gain * torch.fft.rfft2(x), s=x.shape[-2:])


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


def _check_kernel(kernel: Tensor, boundary: str, image_shape: Shape) -> None:
    if boundary not in get_args(Boundary):
        raise ValueError(f"boundary is one of {', '.join(get_args(Boundary))}, got {boundary!r}.")
    if kernel.ndim != 2 or any(n % 2 == 0 for n in kernel.shape) or not kernel.isfinite().all():
        raise ValueError(
            f"Blur expects a finite kernel (h, w) of odd height and width, got {tuple(kernel.shape)}; pad an even one "
            f"by a row or column of zeros."
        )
    size, picture = tuple(kernel.shape), image_shape[1:]
    if boundary == "circular" and any(k > n for k, n in zip(size, picture, strict=True)):
        raise ValueError(f"The kernel {size} is larger than the picture {picture}; make the blur smaller.")
    if boundary == "reflect" and any(k // 2 >= n for k, n in zip(size, picture, strict=True)):
        raise ValueError(f"The kernel {size} reaches over the mirrored picture {picture}; make the blur smaller.")
