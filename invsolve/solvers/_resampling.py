"""Resampling of particles."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..problem import Problem
from ..rng import ImageRng
from ..solver import Solver

__all__ = ["Resampling", "check_resampling", "resample"]

Resampling = Literal["systematic", "multinomial"]


def check_resampling(solver: Solver[Any], resampling: str) -> None:
    """Refuse the name of a resampling scheme that is not one of `Resampling`, with one sentence."""
    if resampling not in get_args(Resampling):
        known = ", ".join(get_args(Resampling))
        raise ValueError(f"{type(solver).__name__}: resampling must be one of {known}, got {resampling!r}.")


def resample(log_w: Tensor, problem: Problem, resampling: Resampling, rng: ImageRng) -> tuple[Tensor, Tensor]:
    """The parent of every particle (B,), and the effective sample size (sum w)^2 / sum w^2 of every group (G,).

    A particle that is not finite has no children.

    Arguments:
        log_w: log weights (B,), up to a constant in each group.
        problem: which says how many consecutive rows are a group.
        resampling: `systematic`, with the first random number of each group, or `multinomial`.
        rng: where the numbers come from.
    """
    n = problem.particles
    weights = log_w.double().nan_to_num(-torch.inf, -torch.inf).unflatten(0, (-1, n)).softmax(dim=1)  # (G, N)
    u = rng.rand((), dtype=weights.dtype, device=weights.device).unflatten(0, (-1, n))
    if resampling == "systematic":
        u = (torch.arange(n).to(u) + u[:, :1]) / n
    chosen = torch.searchsorted(weights.cumsum(dim=1), u.contiguous(), right=True).clamp(max=n - 1)
    first = n * torch.arange(len(weights), device=chosen.device)[:, None]
    return (first + chosen).flatten(), 1 / weights.square().sum(dim=1).to(log_w)
