"""Flows of particles down the maximum mean discrepancy with the negative distance kernel K(p, q) = -|p - q|.

Particles p_i = (x_i, y_i), i = 1..N, are moved so that their law becomes that of the targets q_j, j = 1..M.  Up to a
constant, half the squared discrepancy is

    F(p) = 1/(NM) sum_ij |p_i - q_j| - 1/(2 N^2) sum_ij |p_i - p_j|,

and since |v| = c_D E |<xi, v>| over unit vectors xi of R^D, c_D = sqrt(pi) Gamma((D + 1)/2) / Gamma(D/2), its gradient
is an average of one-dimensional ones, which only count (Hertrich et al., arXiv 2305.11463):

    N grad_i F = c_D E xi g(<xi, p_i>),   g(a) = (2 #{q < a} - M) / M - (2 #{p < a} - N) / N,

where a projection that equals a counts one half, so that particles in the places of the targets stay there.  If only x
moves (Hagemann et al., arXiv 2310.03054), the law of x given y becomes that of the targets.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..rng import ImageRng

__all__ = ["Cloud", "advance", "discrepancy", "frames", "natural_step", "patches", "slicing_constant", "slope"]


class Cloud(NamedTuple):
    """Moving points, the particles first, and after them tracers, which feel the particles and are not felt."""

    x: Tensor  # (N + B, d) what moves
    y: Tensor  # (N + B, m) what stays
    g: Tensor  # (N + B, d) the gradient with its momentum


def discrepancy(p: Tensor, q: Tensor) -> Tensor:
    """F of particles p (N, D) and targets q (M, D) from all pairs, for small sets and for checks."""
    return torch.cdist(p, q).mean() - torch.cdist(p, p).mean() / 2


def slicing_constant(dim: int) -> float:
    """c_D: 1 for D = 1, pi/2 for 2, 2 for 3, about sqrt(pi D / 2)."""
    return math.sqrt(math.pi) * math.exp(math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2))


def slope(p: Tensor, q: Tensor, tracers: Tensor | None = None) -> Tensor:
    """The g of every particle and tracer, from one sort.

    Arguments:
        p: projections of the particles (P, N), a row per direction.
        q: of the targets (P, M).
        tracers: of the tracers (P, B); none if not given.

    Returns:
        g (P, N + B), of p and then of the tracers.
    """
    n, m = p.shape[1], q.shape[1]
    values = torch.cat([p, q] if tracers is None else [p, q, tracers], dim=1)
    order = _argsort(values)
    ordered = values.gather(1, order)
    below_p, below_q = (_half_counts(which, ordered) for which in (order < n, (order >= n) & (order < n + m)))
    g = torch.empty_like(values).scatter_(1, order, 2 * (below_q / m - below_p / n))
    return torch.cat([g[:, :n], g[:, n + m :]], dim=1)


def _argsort(values: Tensor) -> Tensor:
    """Indices that sort every row; on a CPU by NumPy, whose vectorised sort is several times as fast as torch's."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.argsort(values.numpy(), axis=1))
    return values.argsort(dim=1)


def _half_counts(marked: Tensor, ordered: Tensor) -> Tensor:
    """How many marked entries of the ordered rows are smaller than each entry; equal ones count one half."""
    marked = marked.to(ordered.dtype)
    up_to = marked.cumsum(dim=1)
    tied = ordered[:, 1:] == ordered[:, :-1]
    if not tied.any():
        return up_to - marked / 2
    # In a run of equal entries: the mean of the counts before its first and up to its last.
    place = torch.arange(ordered.shape[1], device=ordered.device)
    edge = torch.zeros_like(tied[:, :1])
    first = torch.where(torch.cat([edge, tied], dim=1), 0, place).cummax(dim=1).values
    last = torch.where(torch.cat([tied, edge], dim=1), len(place), place).flip(1).cummin(dim=1).values.flip(1)
    return ((up_to - marked).gather(1, first) + up_to.gather(1, last)) / 2


def advance(
    cloud: Cloud, q: Tensor, directions: Tensor, factors: Tensor, *, step: float, momentum: float, n: int | None = None
) -> Cloud:
    """One step of the flow: G <- N grad_x F + momentum G, x <- x - step G.

    Arguments:
        cloud: the points.
        q: targets (M, d + m).
        directions: unit vectors (P, d + m).
        factors: c of every direction (P,); c_D if they are uniform on the sphere.
        step: tau.
        momentum: 0 to 1.
        n: number of particles, the other points being tracers; all are particles if not given.
    """
    a = directions @ torch.cat([cloud.x, cloud.y], dim=1).T
    n = a.shape[1] if n is None else n
    g = slope(a[:, :n].contiguous(), directions @ q.T, a[:, n:])
    pull = directions[:, : cloud.x.shape[1]] * (factors / len(factors))[:, None]
    total = g.T @ pull + momentum * cloud.g
    return Cloud(cloud.x - step * total, cloud.y, total)


def natural_step(q: Tensor, d: int, directions: Tensor, factors: Tensor) -> float:
    """The step that brings the middle of a shifted cloud home at once, as long as no single slice carries it too far.

    If projections are normal with standard deviation s, a small shift by v changes g by sqrt(2/pi) <xi, v> / s.

    Arguments:
        q: targets (M, D), whose spread gives s.
        d: number of coordinates that move, the first ones.
        directions: as for `advance`.
        factors: as for `advance`.
    """
    s = float(q.var(dim=0).mean().sqrt()) * math.sqrt(math.pi / 2)
    rate = float((factors * directions[:, :d].square().sum(dim=1)).mean()) / d
    return s * min(1 / rate, len(factors) / float(factors.max()))


def frames(
    n: int, dim: int, rng: ImageRng, *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Slices uniform on the sphere: unit vectors (n, dim), orthonormal in groups of up to `dim`, with their c_D (n,).

    Over a whole frame the squared projections of a vector sum to its squared length, so that the mean over slices
    fluctuates much less than with independent directions.

    Arguments:
        n: number of slices.
        dim: D.
        rng: of one row.
        dtype: of the result.
        device: of the result.
    """
    normal = rng.randn((n, dim), dtype=dtype, device=device)[0]
    directions = torch.cat([torch.linalg.qr(part.T).Q.T for part in normal.split(dim)])
    return directions, torch.full((n,), slicing_constant(dim), dtype=dtype, device=device)


def patches(
    n: int,
    shape: tuple[int, int, int],
    extra: int,
    rng: ImageRng,
    *,
    side: int,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Locally connected slices: each sees one square patch of the picture x, and all of y.

    A slice of scale s sees side x side blocks of (s + 1)^2 pixels, at a random place that may wrap around; the scales
    that fit into the picture take turns, and the last turn has slices of everything, so that no correlation is missed.
    The constant is that of the slice's own dimension, divided by the share of the picture that the patch covers: every
    pixel is then pulled as if there were only patches around it.

    Arguments:
        n: number of slices.
        shape: (C, H, W) of x, d = C * H * W.
        extra: number of entries of y.
        rng: of one row.
        side: blocks per side of a patch.
        dtype: of the result.
        device: of the result.

    Returns:
        Unit vectors (n, d + extra) and their factors (n,).
    """
    channels, height, width = shape
    scales = min(height, width) // side
    turns = [len(part) for part in torch.arange(n).tensor_split(scales + 1)]
    directions, factors = frames(turns[-1], channels * height * width + extra, rng, dtype=dtype, device=device)
    parts = [(directions, factors)]
    for s, count in enumerate(turns[:-1]):
        block, reach = s + 1, side * (s + 1)
        dim = channels * side**2 + extra
        normal = rng.randn((count, dim), dtype=dtype, device=device)[0]
        pattern = normal[:, : dim - extra].reshape(count, channels, side, side) / block  # keeps the length of a block
        canvas = normal.new_zeros(count, channels, height, width)
        canvas[..., :reach, :reach] = pattern.repeat_interleave(block, 2).repeat_interleave(block, 3)
        place = rng.rand((count, 2), dtype=dtype, device=device)[0]
        rows, columns = (
            (torch.arange(size, device=device) - (place[:, k] * size).long()[:, None]) % size
            for k, size in enumerate((height, width))
        )
        row = torch.arange(count, device=device)[:, None, None]
        canvas = canvas[row, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        directions = torch.cat([canvas.flatten(1), normal[:, dim - extra :]], dim=1)
        directions = directions / directions.norm(dim=1, keepdim=True)
        share = reach**2 / (height * width)
        parts.append((directions, torch.full((count,), slicing_constant(dim) / share, dtype=dtype, device=device)))
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
