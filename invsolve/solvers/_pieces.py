"""Steps that several papers share."""

from __future__ import annotations

import torch
from torch import Tensor

from ..linalg import expand_to
from ..operators.base import LinearOperator, PinvOperator
from ..priors.base import Prior
from ..problem import Problem
from ..rng import ImageRng

__all__ = ["ancestral_std", "first_guess", "noisy_first_guess", "transition"]

SIGNAL_STD = 0.5  # standard deviation of a photograph in [-1, 1] units


def ancestral_std(prior: Prior, t: Tensor, s: Tensor, eta: float) -> Tensor:
    """Eta times the standard deviation of p(z_s | z_t, z_0) (DDIM's sigma; Song et al., arXiv 2010.02502, eq. 16).

    Written with the ratios r = sigma/alpha it holds on every path: alpha_s r_s sqrt(1 - (r_s / r_t)^2).
    """
    _, sigma_s = prior.schedule(s)
    shrink = prior.schedule.ratio(s) / prior.schedule.ratio(t)
    return eta * sigma_s * (1 - shrink.square()).clamp_min(0).sqrt()


def transition(prior: Prior, s: Tensor, clean: Tensor, noise: Tensor, fresh_std: Tensor, rng: ImageRng) -> Tensor:
    """alpha_s clean + sqrt(sigma_s^2 - fresh_std^2) noise + fresh_std n with n ~ N(0, I).

    Arguments:
        prior: whose schedule gives alpha and sigma.
        s: the time to go to.
        clean: E[z_0 | z_t] or what a solver made of it (B, *latent_shape).
        noise: E[eps | z_t] (B, *latent_shape).
        fresh_std: standard deviation of the fresh noise, at most sigma_s.
        rng: where the fresh noise comes from.
    """
    alpha_s, sigma_s = prior.schedule(s)
    kept = (sigma_s.square() - fresh_std.square()).clamp_min(0).sqrt()
    fresh = expand_to(torch.as_tensor(fresh_std), clean) * rng.randn_like(clean)
    return expand_to(alpha_s, clean) * clean + expand_to(kept, noise) * noise + fresh


def first_guess(problem: Problem) -> Tensor:
    """A picture made of the data alone (B, *image_shape): A^+ y, or zero where A has no pseudo-inverse.

    With noise, a linear operator's data are weighed against the spread of photographs, since A^+ would amplify the
    noise without bound where A keeps little: argmin_x |A x - y|^2 + (sigma / 0.5)^2 |x|^2.
    """
    operator, y, std = problem.operator, problem.y, problem.std
    zero = y.new_zeros(len(y), *operator.image_shape)
    if isinstance(operator, LinearOperator) and bool((std > 0).all()):
        return operator.prox(zero, y, (std / SIGNAL_STD).square())
    return operator.pinv(y) if isinstance(operator, PinvOperator) else zero


def noisy_first_guess(t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Tensor:
    """The first guess at time t of the path (B, *latent_shape): pure noise where alpha_t = 0."""
    z0 = prior.encode(first_guess(problem))
    return prior.at(t, z0, rng.randn_like(z0))
