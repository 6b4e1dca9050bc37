"""The blurs of the table: each makes its kernel and hands it to `make_blur`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..operators import kernels
from .base import LinearOperator, Row, Shape, shaped_by
from .blur import make_blur, picture_shape
from .boundary import Boundary

__all__ = ["blur", "blur_kernel", "blur_motion", "blur_shake", "blur_uniform", "defocus"]


def blurred_by(kernel_of: Callable[..., Tensor]) -> Callable[[Row], Row]:
    """The picture of such a row is larger than its data by the reach of the kernel, if the border is unknown.

    Arguments:
        kernel_of: makes the kernel of all fields but `boundary`.
    """

    def rule(data_shape: Shape, *, boundary: Boundary, **fields: Any) -> Shape:
        return picture_shape(data_shape, kernel_of(**fields), boundary)

    return shaped_by(rule, adds_border=True)


@blurred_by(kernels.gaussian)
def blur(image_shape: Shape, *, sigma: float = 2.0, boundary: Boundary = "unknown") -> LinearOperator:
    """Gaussian blur with standard deviation `sigma` in pixels."""
    return make_blur(image_shape, kernels.gaussian(sigma), boundary)


@blurred_by(kernels.uniform)
def blur_uniform(image_shape: Shape, *, size: int = 9, boundary: Boundary = "unknown") -> LinearOperator:
    """Mean over a square of size x size pixels, `size` odd."""
    return make_blur(image_shape, kernels.uniform(size), boundary)


@blurred_by(kernels.disk)
def defocus(image_shape: Shape, *, radius: float = 3.0, boundary: Boundary = "unknown") -> LinearOperator:
    """Out of focus: the mean over a disk of `radius` pixels, which need not be whole."""
    return make_blur(image_shape, kernels.disk(radius), boundary)


@blurred_by(kernels.linear_motion)
def blur_motion(
    image_shape: Shape, *, length: float = 15.0, angle: float = 45.0, boundary: Boundary = "unknown"
) -> LinearOperator:
    """A straight movement over `length` pixels, `angle` degrees counter-clockwise from the horizontal."""
    return make_blur(image_shape, kernels.linear_motion(length, angle), boundary)


@blurred_by(kernels.camera_shake)
def blur_shake(
    image_shape: Shape, *, size: int = 31, seed: int = 0, intensity: float = 0.5, boundary: Boundary = "unknown"
) -> LinearOperator:
    """A trembling hand within size x size pixels; `intensity` 0 is a straight line, 1 is erratic."""
    return make_blur(image_shape, kernels.camera_shake(size, seed, intensity), boundary)


@blurred_by(lambda kernel: kernels.from_file(kernel))
def blur_kernel(image_shape: Shape, *, kernel: str, boundary: Boundary = "unknown") -> LinearOperator:
    """The kernel in the grey picture or array (.npy) at the path `kernel`, normalised; black is 0.

    Its taps are kept.  The pixel next to its centre of mass becomes its middle.
    """
    taps = kernels.from_file(kernel)
    operator = make_blur(image_shape, taps, boundary)
    operator.notes = kernels.offset_note(taps)
    return operator
