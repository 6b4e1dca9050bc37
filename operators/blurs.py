"""The blurs of the table: each makes its kernel and hands it to `make_blur`."""

from __future__ import annotations

from ..operators import kernels
from .base import LinearOperator, Shape
from .blur import Boundary, make_blur

__all__ = ["blur", "blur_kernel", "blur_motion", "blur_shake", "blur_uniform", "defocus"]


def blur(image_shape: Shape, *, sigma: float = 2.0, boundary: Boundary = "unknown") -> LinearOperator:
    """Gaussian blur with standard deviation `sigma` in pixels."""
    return make_blur(image_shape, kernels.gaussian(sigma), boundary)


def blur_uniform(image_shape: Shape, *, size: int = 9, boundary: Boundary = "unknown") -> LinearOperator:
    """Mean over a square of size x size pixels, `size` odd."""
    return make_blur(image_shape, kernels.uniform(size), boundary)


def defocus(image_shape: Shape, *, radius: float = 3.0, boundary: Boundary = "unknown") -> LinearOperator:
    """Out of focus: the mean over a disk of `radius` pixels, which need not be whole."""
    return make_blur(image_shape, kernels.disk(radius), boundary)


def blur_motion(
    image_shape: Shape, *, length: float = 15.0, angle: float = 45.0, boundary: Boundary = "unknown"
) -> LinearOperator:
    """A straight movement over `length` pixels, `angle` degrees counter-clockwise from the horizontal."""
    return make_blur(image_shape, kernels.linear_motion(length, angle), boundary)


def blur_shake(
    image_shape: Shape, *, size: int = 31, seed: int = 0, intensity: float = 0.5, boundary: Boundary = "unknown"
) -> LinearOperator:
    """A trembling hand within size x size pixels; `intensity` 0 is a straight line, 1 is erratic."""
    return make_blur(image_shape, kernels.camera_shake(size, seed, intensity), boundary)


def blur_kernel(image_shape: Shape, *, kernel: str, boundary: Boundary = "unknown") -> LinearOperator:
    """The kernel in the grey picture or array (.npy) at the path `kernel`, normalised; black is 0.

    Its taps are kept.  The pixel next to its centre of mass becomes its middle.
    """
    taps = kernels.from_file(kernel)
    operator = make_blur(image_shape, taps, boundary)
    operator.notes = kernels.offset_note(taps)
    return operator
