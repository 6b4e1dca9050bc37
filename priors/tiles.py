"""Overlapping windows: pictures larger than a network was trained for, and decoders that need too much memory.

    f(x) = sum_k w_k F(x[window k]),   w_k >= 0,   sum_k w_k = 1 at every element

is the picture nearest to those of all windows, argmin_f sum_k w_k |f - F(x[window k])|^2: MultiDiffusion (Bar-Tal et
al., ICML 2023, arXiv 2302.08113).  A weight is that of its row times that of its column.  Over an overlap of n elements
these rise and fall as raised cosines, sin^2(pi/2 j / (n + 1)), j = 1, ..., n: near the border of a window, where a
network lacks neighbours, its answer counts least.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from .base import Endpoints, Prior, Shape, Wrapper

__all__ = ["TiledPrior", "tiled"]


def tiled(
    fn: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    size: int,
    overlap: int,
    scale: Fraction | int = 1,
    checkpoint: bool = False,
) -> Tensor:
    """Results of fn on overlapping windows of x, one after the other, blended; exactly fn(x) if it fits in one.

    Arguments:
        fn: (B, C, h, w) -> (B', C', h * scale, w * scale); the result has its dtype.
        x: (B, C, H, W).
        size: side of the windows, which are min(size, H) x min(size, W) and spread evenly from border to border; under
            a scale of 1 / 8 it is rounded down to a multiple of 8, and windows start at such multiples.
        overlap: what neighbours share at least.
        scale: 8 for a decoder that enlarges eightfold, Fraction(1, 8) for its encoder.
        checkpoint: gradients recompute the windows one at a time instead of storing the activations of all.

    Returns:
        (B', C', H * scale, W * scale).

    Raises:
        ValueError: size or overlap is out of range, or x needs several windows and its sides do not fit the scale.
    """
    _check(size, overlap)

    def call(window: Tensor) -> Tensor:
        return recompute(fn, window, use_reentrant=False) if checkpoint and torch.is_grad_enabled() else fn(window)

    height, width = x.shape[-2:]
    if max(height, width) <= size:
        return call(x)
    up, unit = Fraction(scale).as_integer_ratio()  # `unit` elements of x become `up` of the result
    if height % unit or width % unit:
        raise ValueError(f"Windows of scale {scale} need sides that {unit} divides, got {height} x {width}; pad them.")
    side, shared = size // unit, -(-overlap // unit)
    if shared >= side:
        raise ValueError(
            f"Windows of scale {scale} move in steps of {unit}, which size={size} and overlap={overlap} do not allow; "
            f"give a size of at least {(shared + 1) * unit}."
        )
    h, w = min(side, height // unit), min(side, width // unit)
    tops, lefts = (_starts(n // unit, side, shared) for n in (height, width))

    def strip(top: int) -> Tensor:
        rows = x[..., top * unit : (top + h) * unit, :]
        windows = (call(rows[..., left * unit : (left + w) * unit]) for left in lefts)
        return _blend(windows, [left * up for left in lefts], w * up, dim=-1)

    return _blend((strip(top) for top in tops), [top * up for top in tops], h * up, dim=-2)


class TiledPrior(Wrapper):
    """The same prior for large pictures: both ends of the path are predicted in windows and averaged.

    The two have the same weights, so that prior.at(t, *prior.predict(z, t)) == z stays true.  The windows are counted
    in `calls_per_predict` once `sized` has told how many there are.

    Arguments:
        prior: the prior of one window.
        size: side of the windows in latent elements, best the one that the network was trained on.
        overlap: what neighbours share at least, in latent elements.
        checkpoint: gradients recompute the windows one at a time instead of storing the activations of all.

    Raises:
        ValueError: size is below 1, or overlap not in [0, size).
    """

    def __init__(self, prior: Prior, *, size: int, overlap: int, checkpoint: bool = False) -> None:
        super().__init__(prior)
        _check(size, overlap)
        self.size, self.overlap, self.checkpoint, self.windows = size, overlap, checkpoint, 1

    def around(self, prior: Prior) -> TiledPrior:
        return TiledPrior(prior, size=self.size, overlap=self.overlap, checkpoint=self.checkpoint)._counted(
            self.windows
        )

    def predict(self, z: Tensor, t: Tensor) -> Endpoints:
        def ends(window: Tensor) -> Tensor:
            return torch.cat(self.prior.predict(window, t))

        both = tiled(ends, z, size=self.size, overlap=self.overlap, checkpoint=self.checkpoint)
        return Endpoints(*both.chunk(2))

    def sized(self, image_shape: Shape) -> Wrapper:
        _, *sides = self.prior.latent_shape(image_shape)
        windows = math.prod(len(_starts(n, self.size, self.overlap)) for n in sides)
        wrapper = super().sized(image_shape)
        assert isinstance(wrapper, TiledPrior)
        return wrapper._counted(windows)

    def _counted(self, windows: int) -> TiledPrior:
        self.windows, self.calls_per_predict = windows, windows * self.prior.calls_per_predict
        return self


def _check(size: int, overlap: int) -> None:
    """Refuse windows that cannot cover a picture."""
    if size < 1:
        raise ValueError(f"The side of a window must be at least 1, got size={size}; take the network's training size.")
    if not 0 <= overlap < size:
        raise ValueError(
            f"Windows of side {size} can overlap by 0 to {size - 1}, got overlap={overlap}; take a quarter of the side."
        )


def _starts(length: int, side: int, overlap: int) -> list[int]:
    """Where windows along an axis start: as few as share at least `overlap`, spread evenly."""
    if length <= side:
        return [0]
    n = -(-(length - overlap) // (side - overlap))
    return [k * (length - side) // (n - 1) for k in range(n)]


def _ramps(starts: list[int], side: int) -> Tensor:
    """Weights of the windows along an axis (n, length) in float64; every column sums to one."""
    weights = torch.zeros(len(starts), starts[-1] + side, dtype=torch.float64)
    place = torch.arange(1, side + 1, dtype=torch.float64)
    for k, start in enumerate(starts):  # the outer sides of the first and the last window have no ramp: over 0 elements
        before = starts[k - 1] + side - start if k > 0 else 0
        after = start + side - starts[k + 1] if k + 1 < len(starts) else 0
        ramp = (place / (before + 1)).clamp(max=1) * (place.flip(0) / (after + 1)).clamp(max=1)
        weights[k, start : start + side] = (math.pi / 2 * ramp).sin().square()
    return weights / weights.sum(dim=0)  # already one, except where three windows overlap


def _blend(parts: Iterable[Tensor], starts: list[int], side: int, dim: int) -> Tensor:
    """Sum of the parts, each at its start along `dim` and weighted by its ramp.

    Zeros are put around the parts: adding into a large tensor would copy its whole gradient for every window.
    """
    total, behind = torch.zeros(()), -1 - dim  # axes behind dim
    for part, start, ramp in zip(parts, starts, _ramps(starts, side), strict=True):
        wide = torch.promote_types(part.dtype, torch.float32)  # weights of half precision would not sum to one
        weight = ramp[start : start + side].to(part.device, wide).reshape(-1, *[1] * behind)
        placed = F.pad(part * weight, [0, 0] * behind + [start, len(ramp) - start - side])
        total, dtype = (placed if start == 0 else total + placed), part.dtype
    return total.to(dtype)
