"""Masks of inpainting: pure functions giving (H, W) float32, 1 where a pixel is observed and 0 where it is hidden."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .pictures import read_holes
from .seeds import seeded

__all__ = ["box", "brush", "from_file", "random"]


def box(shape: tuple[int, int], top: int, left: int, height: int, width: int) -> Tensor:
    """Hide the rows top … top + height - 1 and the columns left … left + width - 1.

    Arguments:
        shape: (H, W) in pixels.
        top: first hidden row, from 0.
        left: first hidden column, from 0.
        height: of the hidden box in pixels.
        width: of the hidden box in pixels.

    Raises:
        ValueError: if the box is empty or reaches over the border.
    """
    if min(top, left) < 0 or min(height, width) < 1 or top + height > shape[0] or left + width > shape[1]:
        raise ValueError(
            f"The box (top={top}, left={left}, height={height}, width={width}) does not lie inside a picture of "
            f"{shape[0]} x {shape[1]} pixels; choose top + height <= {shape[0]} and left + width <= {shape[1]}."
        )
    observed = torch.ones(shape)
    observed[top : top + height, left : left + width] = 0
    return observed


def random(shape: tuple[int, int], fraction: float, seed: int) -> Tensor:
    """Hide round(fraction * H * W) pixels, chosen uniformly without replacement.

    Arguments:
        shape: (H, W) in pixels.
        fraction: hidden part of the pixels, in (0, 1).
        seed: the same seed and shape give the same mask.

    Raises:
        ValueError: if the fraction is not in (0, 1), or the seed is not one of `seeded`.
    """
    _check_fraction(fraction)
    n = math.prod(shape)
    order = torch.randperm(n, generator=seeded(seed))
    observed = torch.ones(n)
    observed[order[: round(fraction * n)]] = 0
    return observed.reshape(shape)


def brush(shape: tuple[int, int], fraction: float, seed: int) -> Tensor:
    """Hide strokes of a round brush whose path bends at random, until `fraction` of the pixels is covered.

    The hidden part exceeds `fraction` by less than one dab of the brush, i.e. by about one per cent.

    Arguments:
        shape: (H, W) in pixels.
        fraction: hidden part of the pixels, in (0, 1).
        seed: the same seed and shape give the same mask.

    Raises:
        ValueError: if the fraction is not in (0, 1), or the seed is not one of `seeded`.
    """
    _check_fraction(fraction)
    height, width = shape
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
    generator = seeded(seed)
    observed = torch.ones(shape)
    while True:
        row, column, heading, breadth = torch.rand(4, generator=generator).tolist()
        row, column, heading = row * height, column * width, 2 * math.pi * heading
        radius = max(0.5, min(shape) * (0.02 + 0.03 * breadth))  # strokes of 4 to 10 % of the shorter side
        for bend in torch.randn(80, generator=generator).tolist():  # dabs half a radius apart
            if not (0 <= row < height and 0 <= column < width):
                break
            observed[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = 0
            if 1 - observed.mean() >= fraction:
                return observed
            heading += 0.25 * bend
            row += 0.5 * radius * math.sin(heading)
            column += 0.5 * radius * math.cos(heading)


def from_file(path: str) -> Tensor:
    """The mask drawn in a picture: white is the hole to fill, black is kept.

    The mean over the channels is cut at 127.5 of 255, after turning the picture upright.

    Raises:
        ValueError: if there is no readable picture, it has transparent pixels, or is black or white everywhere.
    """
    return (~read_holes(path)).float()


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is the hidden part of the pixels and lies between 0 and 1, got {fraction}.")
