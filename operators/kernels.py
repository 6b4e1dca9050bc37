"""Blur kernels: pure functions giving float64 of odd size, with sum 1 and the centre of mass on the middle pixel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .pictures import read_grey
from .seeds import seeded

__all__ = ["camera_shake", "from_file", "gaussian", "linear_motion", "uniform"]

_LARGEST_SIDE = 4095  # wider than the blur of any picture restored here; a kernel of this side takes 134 MB
_LARGEST_INTENSITY = 10.0  # the path's speed varies by its exponential


def gaussian(sigma: float, size: int | None = None) -> Tensor:
    """A Gaussian, k(i, j) proportional to exp(-(i^2 + j^2) / (2 sigma^2)).

    Arguments:
        sigma: standard deviation in pixels.
        size: odd width in pixels; 2 ceil(4 sigma) + 1 if not given, which leaves out less than 1e-4 of the mass.

    Raises:
        ValueError: if sigma is not positive, or sigma or the size is too large, or the size is even.
    """
    if not 0 < sigma <= _LARGEST_SIDE:
        raise ValueError(
            f"sigma is the width of the Gaussian in pixels, positive and at most {_LARGEST_SIDE}, got {sigma}; 1 to 5 "
            f"blur a picture visibly."
        )
    radius = _radius(2 * math.ceil(4 * sigma) + 1 if size is None else size)
    profile = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
    profile = profile / profile.sum()
    return torch.outer(profile, profile)


def uniform(size: int) -> Tensor:
    """The constant 1 / size^2 on a square of odd width `size` in pixels.

    Raises:
        ValueError: if the size is even or too large.
    """
    _radius(size)
    return torch.full((size, size), 1 / size**2, dtype=torch.float64)


def linear_motion(length: float, angle: float) -> Tensor:
    """A straight movement at constant speed.

    Arguments:
        length: of the path in pixels, at least 1.
        angle: in degrees, counter-clockwise from the horizontal: 0 smears to the sides, 90 up and down.

    Raises:
        ValueError: if the length is below 1 or too large.
    """
    if not 1 <= length <= _LARGEST_SIDE:
        raise ValueError(
            f"length is the way the camera moves in pixels, at least 1 and at most {_LARGEST_SIDE}, got {length}; 5 to "
            f"30 smear a picture visibly."
        )
    radius = _radius(2 * math.ceil(length / 2) + 1)
    n = 64 * math.ceil(length)
    way = length * ((torch.arange(n, dtype=torch.float64) + 0.5) / n - 0.5)
    theta = math.radians(angle)
    path = torch.stack((-math.sin(theta) * way, math.cos(theta) * way), dim=1)  # rows count downwards
    return _splat(path, torch.ones(n, dtype=torch.float64), radius)


def camera_shake(size: int, seed: int, intensity: float) -> Tensor:
    """A trembling hand: the path of a point whose heading and log-speed are Brownian motions over the exposure.

    The path is scaled so that its farthest point lies size / 2 - 1 pixels from the centre of mass.

    Arguments:
        size: odd width of the kernel in pixels, at least 3.
        seed: the same seed gives the same path, whatever the size.
        intensity: 0 is a straight line at constant speed; at 1 the heading drifts by one turn (standard deviation),
            and 10 is the most.

    Raises:
        ValueError: if the size is even, too small or too large, or the intensity is negative or too large.
    """
    radius = _radius(size)
    if radius < 1 or not 0 <= intensity <= _LARGEST_INTENSITY:
        raise ValueError(
            f"camera_shake expects size >= 3 and intensity from 0 (a straight line) over 1 (erratic) to "
            f"{_LARGEST_INTENSITY:g}, got size={size}, intensity={intensity}."
        )
    n = 4096  # many points per pixel for any practical size
    generator = seeded(seed)
    start = torch.rand((), generator=generator, dtype=torch.float64)
    bend, surge = torch.randn(2, n, generator=generator, dtype=torch.float64).cumsum(dim=1) / math.sqrt(n)
    heading = 2 * math.pi * (start + intensity * bend)
    speed = torch.exp(intensity * surge)
    path = torch.stack((speed * heading.sin(), speed * heading.cos()), dim=1).cumsum(dim=0)
    path = path - path.mean(dim=0)
    path = path * (radius - 0.5) / path.norm(dim=1).max()
    return _splat(path, torch.ones(n, dtype=torch.float64), radius)


def from_file(path: str) -> Tensor:
    """The kernel drawn in a grey picture, black being 0.

    The picture is shifted by the sub-pixel amount that puts its centre of mass on the middle pixel, so that the
    blur does not move the image; a kernel that is centred already is not changed, up to its sum and black borders.

    Raises:
        ValueError: if there is no readable picture, or it is black, has transparent pixels or is too large.
    """
    weight = read_grey(path)
    if not weight.any():
        raise ValueError(f"The kernel picture {path!r} is black; bright pixels are the path of the blur.")
    points = weight.nonzero().double()
    weight = weight[weight > 0]
    points = points - (weight[:, None] * points).sum(dim=0) / weight.sum()
    radius = math.ceil(points.abs().max() - 1e-9)  # a rounding error adds no border
    return _splat(points, weight, _radius(2 * radius + 1))


def _radius(size: int) -> int:
    if size < 1 or size % 2 == 0:
        raise ValueError(f"A kernel size is an odd number of pixels, so that it has a middle, got {size}.")
    if size > _LARGEST_SIDE:
        raise ValueError(f"A kernel is at most {_LARGEST_SIDE} pixels wide, this one has {size}; make it smaller.")
    return size // 2


def _splat(points: Tensor, weight: Tensor, radius: int) -> Tensor:
    """Share each weight (n,) bilinearly among the four pixels around its point (n, 2), which keeps the centre of mass.

    Points are (row, column) offsets from the middle of the kernel, at most `radius` in size.
    """
    size = 2 * radius + 1
    kernel = torch.zeros(size + 1, size + 1, dtype=torch.float64)  # one more, for points on the last row or column
    corner = points.floor()
    share = points - corner
    row, column = (corner.long() + radius).clamp(0, size - 1).unbind(dim=1)
    for step in (0, 1):
        for stride in (0, 1):
            part = (share[:, 0] if step else 1 - share[:, 0]) * (share[:, 1] if stride else 1 - share[:, 1])
            kernel.index_put_((row + step, column + stride), weight * part, accumulate=True)
    return kernel[:size, :size] / weight.sum()
