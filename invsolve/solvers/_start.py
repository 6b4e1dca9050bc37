"""Where solvers start: the point of the path that a picture made of the data alone stands for."""

from __future__ import annotations

import torch
from torch import Tensor

from ..linalg import expand_to
from ..operators.spectral import SpectralOperator
from ..priors.base import Prior
from ..problem import Problem, first_guess
from ..rng import ImageRng

__all__ = ["noisy_first_guess"]


def noisy_first_guess(t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Tensor:
    """The first guess at time t of the path (B, *latent_shape): pure noise where alpha_t = 0.

    In pixels and with a known spectrum, what y shows with less noise than the path has at t is taken from y as it is,
    and only the noise that it lacks is added: DDRM's start (arXiv 2201.11793, eq. 4).  A noisy picture is then itself
    the point of the path at its own noise level.
    """
    guess, operator = first_guess(problem), problem.operator
    z0 = prior.encode(guess)
    noise = rng.randn_like(z0)
    if isinstance(operator, SpectralOperator) and not prior.has_decoder:
        own = expand_to(problem.std / prior.schedule.ratio(t), z0)  # noise of y over that of the path where v = 1

        def seen(v: Tensor) -> Tensor:
            return (v > 0) & (v >= own * (1 - 1e-5))  # equal up to rounding at the noise of y itself

        z0 = operator.spectral(guess, lambda v: torch.where(seen(v), 0.0, 1.0)) + operator.spectral(
            operator.pinv(problem.y), lambda v: torch.where(seen(v), 1.0, 0.0)
        )
        noise = operator.spectral(
            noise, lambda v: torch.where(seen(v), (1 - (own / v.clamp_min(1e-30)).square()).clamp_min(0).sqrt(), 1.0)
        )
    return prior.at(t, z0, noise)
