"""Blurs: convolution with a kernel that does not change over the picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, get_args

import torch
from torch import Tensor

from ..linalg import expand_to, proximal_cg
from .base import LinearOperator, Shape
from .boundary import SMALLEST_GAIN, Boundary, check_boundary, check_kernel, check_reach
from .convolution import cast, fast_size, fold, gain, mirror, multiply, place, spectral_dot, spectrum
from .separable_blur import SeparableBlur
from .spectral import SpectralOperator

__all__ = ["CircularBlur", "PaddedBlur", "make_blur", "picture_shape"]


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
        check_kernel(kernel)
        picture = self.image_shape[1:]
        if any(k > n for k, n in zip(kernel.shape, picture, strict=True)):
            raise ValueError(
                f"The kernel {tuple(kernel.shape)} is larger than the picture {picture}; make the blur smaller, or use "
                f"boundary='zero'."
            )
        self.register_buffer("kernel", kernel.to(torch.float64))
        self.register_buffer("gain", gain(self.kernel, picture))

    def forward(self, x: Tensor) -> Tensor:
        return multiply(cast(self.gain, x), x)

    def adjoint(self, y: Tensor) -> Tensor:
        return multiply(cast(self.gain, y).conj(), y)

    def pinv(self, y: Tensor) -> Tensor:
        """Division by the gain at every frequency that is not lost."""
        kept = self._singular_values(y) > 0
        gain = cast(self.gain, y)
        return multiply(torch.where(kept, 1 / torch.where(kept, gain, 1), 0), y)

    def prox(self, x: Tensor, y: Tensor, rho: Tensor) -> Tensor:
        """At every frequency (conj(gain) y + rho x) / (|gain|^2 + rho)."""
        gain, weight = cast(self.gain, x), expand_to(rho, x)
        solved = gain.conj() * spectrum(y) + weight * spectrum(x)
        return torch.fft.irfft2(solved / (gain.abs() ** 2 + weight), s=x.shape[-2:])

    def spectral(self, x: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """At every frequency fn(|gain|) x, or fn(0) x where it is lost."""
        return multiply(fn(self._singular_values(x)), x)

    def _singular_values(self, x: Tensor) -> Tensor:
        size = torch.view_as_complex(self.gain).abs()
        return size.where(size > SMALLEST_GAIN * size.max(), 0).to(x.dtype)


class PaddedBlur(LinearOperator):
    """y = k * x where x goes on beyond y, or beyond its own border: pad, convolve, crop, A = C K P.

    For kernels without a structure: of one that is a product of two lines, `SeparableBlur` knows the singular values.
    The proximal step comes from conjugate gradients with the circular blur as preconditioner, the pseudo-inverse from
    proximal steps.

    Arguments:
        image_shape: (C, H, W).
        kernel: k (h, w) of odd size, its middle pixel being k[0, 0].
        boundary: `unknown` takes nothing for granted: the picture is larger than the data, by the reach (h // 2,
            w // 2) of the kernel on every side.  `zero` pads with 0 (mid grey), `reflect` mirrors the picture at the
            middle of its border pixels (c b | a b c d | c b).

    Raises:
        ValueError: if the kernel is not an odd-sized finite picture, or reaches over the picture, or the boundary is
            another one.
    """

    fields: ClassVar[tuple[str, ...]] = ("kernel", "boundary")
    kernel: Tensor
    gain: Tensor  # on the torus of the padded picture

    def __init__(self, image_shape: Shape, *, kernel: Tensor, boundary: Boundary) -> None:
        super().__init__(image_shape)
        check_kernel(kernel)
        _, height, width = self.image_shape
        self.reach = (kernel.shape[0] // 2, kernel.shape[1] // 2)
        self.boundary = boundary
        check_boundary(boundary, ("unknown", "zero", "reflect"))
        check_reach(kernel.shape, (height, width), boundary)
        self.register_buffer("kernel", kernel.to(torch.float64))
        # With the reach on both sides, what runs over one end of the torus stays within the part that is cropped.
        wider = (0, 0) if boundary == "unknown" else self.reach
        self.grid = (fast_size(height + 2 * wider[0]), fast_size(width + 2 * wider[1]))
        self.register_buffer("gain", gain(self.kernel, self.grid))

    @property
    def border(self) -> tuple[int, int]:
        return self.reach if self.boundary == "unknown" else (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        return self._crop(multiply(cast(self.gain, x), self._pad(x)))

    def adjoint(self, y: Tensor) -> Tensor:
        """P^T K^T C^T y."""
        return self._pad_adjoint(multiply(cast(self.gain, y).conj(), place(y, self.grid, self.reach)))

    def prox(self, x: Tensor, y: Tensor, rho: Tensor) -> Tensor:
        """By conjugate gradients with P^T S (|K|^2 + rho)^-1 S P as preconditioner; see `proximal_cg`.

        S is 1 on the picture and falls from a half to zero over the mirrored pixels beyond the border, and the root of
        P^T S^2 P divides both sides.  With an unknown border the spectrum of the padded picture is what is solved for:
        two transforms a step.  The pixels by which the torus is larger than the picture touch no data.
        """
        k = cast(self.gain, x)
        conjugate = k.conj().resolve_conj()
        inverse = (1 / (k.abs().square() + expand_to(rho, x))).to(k.dtype)
        if self.boundary != "unknown":
            share = self._shares(x)
            root = self._pad_adjoint(share.square() * self._pad(torch.ones_like(x[:1, :1]))).rsqrt()

            def precondition(r: Tensor) -> Tensor:
                if self.boundary == "zero":
                    return self._pad_adjoint(multiply(inverse, self._pad(r)))
                return root * self._pad_adjoint(share * multiply(inverse, share * self._pad(root * r)))

            return proximal_cg(
                lambda u: self._crop(multiply(k, self._pad(u))),
                lambda r: self._pad_adjoint(multiply(conjugate, place(r, self.grid, self.reach))),
                *(x, y, rho),
                precondition=precondition,
            )
        solved = proximal_cg(
            lambda u: self._crop(torch.fft.irfft2(k * u, s=self.grid)),
            lambda r: conjugate * spectrum(place(r, self.grid, self.reach)),
            spectrum(self._pad(x)),
            y,
            rho,
            precondition=lambda r: inverse * r,
            inner=lambda a, b: spectral_dot(a, b, self.grid[1]),
        )
        return self._pad_adjoint(torch.fft.irfft2(solved, s=self.grid))

    def _shares(self, x: Tensor) -> Tensor:
        """1 on the picture in the middle of the torus, and beyond its border what needs the fewest steps."""
        profiles = []
        for size, n, reach in zip(self.grid, self.image_shape[1:], self.reach, strict=True):
            pixel = torch.arange(size, device=x.device, dtype=x.dtype)
            beyond = torch.maximum(reach - pixel, pixel - (reach + n - 1)).clamp_min(0)
            profiles.append((1 - beyond / (reach + 1)).clamp_min(0).square())
        share = torch.outer(*profiles)
        return torch.where(share < 1, share / 2, 1)

    def _pad(self, x: Tensor) -> Tensor:
        """On the torus: as it is if the border is unknown, else continued by the reach of the kernel."""
        top, left = self.reach
        padded = place(x, self.grid, (0, 0) if self.boundary == "unknown" else self.reach)
        if self.boundary == "reflect":
            _, height, width = self.image_shape
            mirror(mirror(padded, top, -2, height), left, -1, width)
        return padded

    def _pad_adjoint(self, x: Tensor) -> Tensor:
        (top, left), (_, height, width) = self.reach, self.image_shape
        if self.boundary == "unknown":
            return x[..., :height, :width]
        if self.boundary == "zero":
            return x[..., top : top + height, left : left + width]
        return fold(fold(x[..., : height + 2 * top, : width + 2 * left], left, dim=-1), top, dim=-2)

    def _crop(self, x: Tensor) -> Tensor:
        (top, left), (_, height, width) = self.reach, self.image_shape
        if self.boundary == "unknown":
            return x[..., top : height - top, left : width - left]
        return x[..., top : top + height, left : left + width]


def make_blur(image_shape: Shape, kernel: Tensor, boundary: Boundary) -> LinearOperator:
    """The blur whose inverse is known best: for a kernel of sum 1 that is a product of two lines, one by lines.

    Arguments:
        image_shape: (C, H, W).
        kernel: (h, w) of odd size, its middle pixel being k[0, 0].
        boundary: `unknown`, `circular`, `zero` or `reflect`.

    Raises:
        ValueError: if the kernel or the boundary cannot be.
    """
    check_boundary(boundary, get_args(Boundary))
    check_kernel(kernel)
    if boundary == "circular":
        return CircularBlur(image_shape, kernel=kernel)
    rows, columns = kernel.sum(dim=1), kernel.sum(dim=0)
    if (kernel - torch.outer(rows, columns)).abs().max() > 1e-12 * kernel.max():
        return PaddedBlur(image_shape, kernel=kernel, boundary=boundary)
    return SeparableBlur(image_shape, rows=rows, columns=columns, boundary=boundary)


def picture_shape(data_shape: Shape, kernel: Tensor, boundary: Boundary) -> Shape:
    """The picture behind a blurred one: larger by the reach of the kernel on every side if the border is unknown."""
    channels, height, width = data_shape
    top, left = (n // 2 for n in kernel.shape) if boundary == "unknown" else (0, 0)
    return channels, height + 2 * top, width + 2 * left
