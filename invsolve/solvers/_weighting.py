"""Weightings of score distillation by the noise level."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["WEIGHTINGS", "check_weighting"]

WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {  # of r = sigma/alpha, for score distillation
    "s_over_a": lambda r: r,  # "linear" in the official code of RED-diff
    "sqrt": torch.sqrt,
    "square": torch.square,
    "log": torch.log1p,
    "trunc_linear": lambda r: r.clamp(max=1),
    "power2over3": lambda r: r ** (2 / 3),
    "const": torch.ones_like,
}


def check_weighting(weighting: str) -> None:
    """Refuse a weighting that is not a name of `WEIGHTINGS`, with one sentence."""
    if weighting not in WEIGHTINGS:
        raise ValueError(f"Unknown weighting {weighting!r}; choose one of {', '.join(WEIGHTINGS)}.")
