"""Weightings of score distillation by the noise level."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

__all__ = ["WEIGHTINGS", "Convention", "Weighting", "weigh", "weight_of_means"]

Convention = Literal["mean", "sum"]

Weighting = Literal["s_over_a", "sqrt", "square", "log", "trunc_linear", "power2over3", "const"]
WEIGHTINGS: dict[Weighting, Callable[[Tensor], Tensor]] = {  # of r = sigma/alpha, for score distillation
    "s_over_a": lambda r: r,  # "linear" in the official code of RED-diff
    "sqrt": torch.sqrt,
    "square": torch.square,
    "log": torch.log1p,
    "trunc_linear": lambda r: r.clamp(max=1),
    "power2over3": lambda r: r ** (2 / 3),
    "const": torch.ones_like,
}


def weight_of_means(weight: float, convention: Convention, measured: float, entries: int) -> float:
    """Lambda between means, of the regulariser over the latent's entries and of the misfit over its numbers.

    Arguments:
        weight: lambda.
        convention: `mean` if it is that already, `sum` if it stands next to the sum |A mu - y|^2 / 2.
        measured: numbers in the misfit.
        entries: numbers in the latent.
    """
    return weight if convention == "mean" else weight * entries / measured


def weigh(weighting: Weighting, ratio: Tensor) -> Tensor:
    """w(t) at r = sigma/alpha; 0 where alpha is 0, since z_t shows nothing of the mean there."""
    return torch.where(ratio.isfinite(), WEIGHTINGS[weighting](ratio), 0)
