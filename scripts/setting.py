"""What a method of `compare.py` is given, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from invsolve import Prior, Problem


@dataclass(frozen=True)
class Setting:
    """What a method is given besides its fields."""

    truth: Tensor
    problem: Problem
    prior: Prior
    steps: int
    times: str | None
    samples: int
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What a method gives back."""

    samples: Tensor  # (B, S, C, H, W) in [-1, 1]
    seconds: float
    calls: float = 0.0  # of the network, per sample
    gradients: float = 0.0  # through the network, per sample


class NotApplicableError(Exception):
    """The method cannot do this task; the text says why."""
