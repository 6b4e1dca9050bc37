"""Resampling of particles."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..problem import Problem
from ..rng import ImageRng

__all__ = ["Resampled", "Resampling", "resample"]

Resampling = Literal["systematic", "multinomial"]


class Resampled(NamedTuple):
    """Where the particles come from, and what weight they go on with."""

    parents: Tensor  # (B,), row numbers
    log_w: Tensor  # (B,)
    ess: Tensor  # (G,), effective sample size (sum w)^2 / sum w^2 of every group before


def resample(log_w: Tensor, problem: Problem, resampling: Resampling, below: float, rng: ImageRng) -> Resampled:
    """Draw the parents of every group whose effective sample size is low; elsewhere all stay, with their weights.

    A particle that is not finite has no children.

    Arguments:
        log_w: log weights (B,), up to a constant in each group.
        problem: which says how many consecutive rows are a group.
        resampling: `systematic`, with the first random number of each group, or `multinomial`.
        below: the share of effective particles below which a group is resampled; 1 is always.
        rng: where the numbers come from.
    """
    n = problem.particles
    log_w = log_w.nan_to_num(-torch.inf, -torch.inf)
    weights = log_w.double().unflatten(0, (-1, n)).softmax(dim=1)  # (G, N)
    ess = 1 / weights.square().sum(dim=1)
    u = rng.rand((), dtype=weights.dtype, device=weights.device).unflatten(0, (-1, n))
    if resampling == "systematic":
        u = (torch.arange(n).to(u) + u[:, :1]) / n
    chosen = torch.searchsorted(weights.cumsum(dim=1), u.contiguous(), right=True).clamp(max=n - 1)
    first = n * torch.arange(len(weights), device=chosen.device)[:, None]
    low = (ess <= below * n)[:, None].expand_as(chosen)
    stay = first + torch.arange(n, device=chosen.device)
    parents = torch.where(low, first + chosen, stay).flatten()
    return Resampled(parents, torch.where(low.flatten(), 0, log_w), ess.to(log_w))
