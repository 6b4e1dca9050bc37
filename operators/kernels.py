"""Blur kernels: pure functions giving float64 of odd size, with sum 1 and the centre of mass on the middle pixel.

Only a kernel that is read from a file may have its centre of mass up to half a pixel beside it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .pictures import read_taps
from .seeds import seeded

__all__ = ["camera_shake", "disk", "from_file", "gaussian", "linear_motion", "offset", "offset_note", "uniform"]

_LARGEST_SIDE = 4095  # wider than the blur of any picture restored here; a kernel of this side takes 134 MB
_LARGEST_INTENSITY = 10.0  # the path's speed varies by its exponential
_COLUMNS = 256  # into which a pixel is cut to find how much of it a disk covers
_DUST = 0.0005  # the mean difference from one level, as a part of it, in a box that is not quite even
_NEAR = 0.1  # of its range: values that differ by no more are of one level
_WIDE = 7  # pixels: in narrower kernels a plane is no sign of a background
_BACKGROUND = 0.05  # the largest part of a kernel that the level at its border may make up


def gaussian(sigma: float, size: int | None = None) -> Tensor:
    """A Gaussian, k(i, j) proportional to exp(-(i^2 + j^2) / (2 sigma^2)).

    Arguments:
        sigma: standard deviation in pixels.
        size: odd width in pixels; 2 ceil(4 sigma) + 1 if not given, which leaves out less than 1e-4 of the mass.

    Raises:
        ValueError: if sigma is not positive, or sigma or the size is too large, or the size is even.
    """
    most = _LARGEST_SIDE // 8
    if not 0 < sigma <= most:
        raise ValueError(
            f"sigma is the width of the Gaussian in pixels, positive and at most {most}, got {sigma}; 1 to 5 "
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


def disk(radius: float) -> Tensor:
    """The image of a point that is out of focus: constant within a circle, each pixel as far as the circle covers it.

    Arguments:
        radius: in pixels; it need not be whole.

    Raises:
        ValueError: if the radius is not positive, or too large.
    """
    if not 0 < radius <= _LARGEST_SIDE // 2:
        raise ValueError(
            f"radius is that of the disk into which a point is blurred, in pixels, positive and at most "
            f"{_LARGEST_SIDE // 2}, got {radius}; 2 to 20 blur a picture visibly."
        )
    reach = math.ceil(radius - 0.5)  # of the pixels that the circle touches
    if reach == 0:
        return torch.ones(1, 1, dtype=torch.float64)
    size = 2 * _radius(2 * reach + 1) + 1
    # Pixel i has the columns from i - 1/2 to i + 1/2; in each of them the circle covers the rows within +- half.
    x = (torch.arange(size * _COLUMNS, dtype=torch.float64) + 0.5) / _COLUMNS - size / 2
    half = (radius**2 - x.square()).clamp_min(0).sqrt().reshape(size, _COLUMNS)
    rows = []
    for edge in range(-reach, reach + 1):  # one at a time: all columns of a large kernel would fill the memory
        covered = half.clamp_max(edge + 0.5) - (-half).clamp_min(edge - 0.5)
        rows.append(covered.clamp_min(0).mean(dim=1))
    kernel = torch.stack(rows, dim=1)
    kernel = (kernel + kernel.mT) / 2  # the midpoint rule treats the two axes a little differently
    return kernel / kernel.sum()


def linear_motion(length: float, angle: float) -> Tensor:
    """A straight movement at constant speed.

    Arguments:
        length: of the path in pixels, at least 1.
        angle: in degrees, counter-clockwise from the horizontal: 0 smears to the sides, 90 up and down.

    Raises:
        ValueError: if the length is below 1 or too large.
    """
    most = _LARGEST_SIDE - 1
    if not 1 <= length <= most:
        raise ValueError(
            f"length is the way the camera moves in pixels, at least 1 and at most {most}, got {length}; 5 to "
            f"30 smear a picture visibly."
        )
    radius = _radius(2 * math.ceil(length / 2) + 1)
    n = 64 * math.ceil(length)
    way = length * ((torch.arange(n, dtype=torch.float64) + 0.5) / n - 0.5)
    theta = math.radians(angle)
    path = torch.stack((-math.sin(theta) * way, math.cos(theta) * way), dim=1)  # rows count downwards
    return _trimmed(_splat(path, torch.ones(n, dtype=torch.float64), radius))


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
    """The kernel in a grey picture (PNG, TIFF, ... of 8 or 16 bits or float) or a NumPy array (.npy); black is 0.

    Its taps are kept, up to their sum and black borders.  The pixel next to its centre of mass becomes the middle, so
    that the blur moves the image by less than a pixel: by `offset`.

    Raises:
        ValueError: if there is no readable picture or array, or it is black, has transparent pixels, negative sum,
            a background that is not black, or is too large.
    """
    taps = read_taps(path)
    if not taps.any():
        raise ValueError(f"The kernel {path!r} is black; bright pixels are the path of the blur.")
    if (total := float(taps.sum())) <= 1e-6 * float(taps.abs().sum()):
        raise ValueError(f"The taps of the kernel {path!r} sum to {total:.3g}; those of a blur sum to more than 0.")
    _check_background(taps, path)
    points = taps.nonzero()
    (top, left), (bottom, right) = points.amin(dim=0).tolist(), points.amax(dim=0).tolist()
    taps = taps[top : bottom + 1, left : right + 1] / total
    centre = [float((taps.sum(dim=1 - axis) * torch.arange(n)).sum()) for axis, n in enumerate(taps.shape)]
    middle = [
        min(max(math.ceil(c - 0.5 - 1e-9), 0), n - 1)  # 0 to n - 1 unless taps are negative
        for c, n in zip(centre, taps.shape, strict=True)
    ]
    reach = [max(m, n - 1 - m) for m, n in zip(middle, taps.shape, strict=True)]
    sides = [2 * _radius(2 * r + 1) + 1 for r in reach]
    kernel = torch.zeros(*sides, dtype=torch.float64)
    (y, x), (height, width) = (r - m for r, m in zip(reach, middle, strict=True)), taps.shape
    kernel[y : y + height, x : x + width] = taps
    return kernel


def offset(kernel: Tensor) -> tuple[float, float]:
    """How far its centre of mass lies below and to the right of the middle pixel, in pixels: rows, columns."""
    rows, columns = (
        float((kernel.sum(dim=1 - axis) * (torch.arange(n) - n // 2)).sum()) for axis, n in enumerate(kernel.shape)
    )
    return rows, columns


def offset_note(kernel: Tensor) -> tuple[str, ...]:
    """The sentence about a centre of mass beside the middle pixel; none if it is at most 0.005 pixels beside it."""
    rows, columns = offset(kernel)
    if max(abs(rows), abs(columns)) <= 0.005:
        return ()
    return (
        f"The kernel's centre of mass lies {_side(rows, 'above', 'below', 'row')} and "
        f"{_side(columns, 'left of', 'right of', 'column')} its middle pixel; the blurred picture is shifted by this "
        "against the restored one.",
    )


def _side(value: float, before: str, after: str, unit: str) -> str:
    return f"{abs(value):.2f} {unit}s {before if value < 0 else after}"


def _check_background(taps: Tensor, path: str) -> None:
    """Refuse an inverted kernel, and one on a grey background.

    A background has the level of the border, or of a plane through it, and so have most of the inside and two of the
    corners.  A kernel that is cut at its border, or has half covered pixels there, is brighter inside, or its corners
    are darker.
    """
    least, most = float(taps.min()), float(taps.max())
    inner = [slice(1, -1) if n > 2 else slice(None) for n in taps.shape]
    edge = torch.ones_like(taps, dtype=torch.bool)
    edge[*inner] = False
    if not edge.any() or edge.all():  # of two pixels at most
        return
    level = taps[edge].median()
    uneven = float((taps - level).abs().mean() / taps.mean())
    if float(taps[~edge].min()) >= 0.99 * most or (least >= 0.9 * most and uneven < _DUST):  # a box
        return
    grounds = [level.expand_as(taps), *([_plane(taps, edge)] if min(taps.shape) >= _WIDE else [])]
    near = max(((taps - ground)[~edge].abs() <= _NEAR * (most - least)).double().mean() for ground in grounds)
    corners = taps[[0, 0, -1, -1], [0, -1, 0, -1]]
    hollow = min(taps.shape) > 2 and corners.min() >= 0.9 * most and float(taps[~edge].mean()) < 0.75 * most
    around = (corners >= 0.5 * level).sum() >= 2 and (max(taps.shape) > 9 or corners.max() <= 1.5 * level)
    if level * taps.numel() > _BACKGROUND * float(taps.sum()) and ((near >= 0.5 and around) or hollow):
        raise ValueError(
            f"The border of the kernel {path!r} is not black: it has {100 * level / float(taps.max()):.0f} % of the "
            "largest value; invert the picture if the kernel is dark, else subtract the background, or add a black "
            "border if the level belongs to the kernel."
        )


def _plane(taps: Tensor, edge: Tensor) -> Tensor:
    """The plane (H, W) through the taps where `edge` is True, by least squares."""
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=taps.dtype) for n in taps.shape), indexing="ij")
    basis = torch.stack((torch.ones_like(x), y, x), dim=-1)
    return basis @ torch.linalg.lstsq(basis[edge], taps[edge][:, None]).solution[:, 0]


def _radius(size: int) -> int:
    if size < 1 or size % 2 == 0:
        raise ValueError(f"A kernel size is an odd number of pixels, so that it has a middle, got {size}.")
    if size > _LARGEST_SIDE:
        raise ValueError(f"A kernel is at most {_LARGEST_SIDE} pixels wide, this one has {size}; make it smaller.")
    return size // 2


def _trimmed(kernel: Tensor) -> Tensor:
    """Without rows and columns at its border that hold nothing but rounding errors, as many on either side."""
    for axis in (0, 1):
        reach = kernel.shape[axis] // 2
        used = (kernel.sum(dim=1 - axis) > 1e-12 * kernel.max()).nonzero().flatten() - reach
        most = int(used.abs().max())
        kernel = kernel.narrow(axis, reach - most, 2 * most + 1)
    return kernel / kernel.sum()


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
