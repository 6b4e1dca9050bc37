"""Steps along the path of a prior that several papers share."""

from __future__ import annotations

import torch
from torch import Tensor

from ..linalg import expand_to
from ..priors.base import Prior
from ..rng import ImageRng

__all__ = ["ancestral_std", "denoising_gain", "isotropic_std", "transition"]


def ancestral_std(prior: Prior, t: Tensor, s: Tensor, eta: float) -> Tensor:
    """Eta times the standard deviation of p(z_s | z_t, z_0) (DDIM's sigma; Song et al., arXiv 2010.02502, eq. 16).

    Written with the ratios r = sigma/alpha it holds on every path: alpha_s r_s sqrt(1 - (r_s / r_t)^2).
    """
    _, sigma_s = prior.schedule(s)
    shrink = prior.schedule.ratio(s) / prior.schedule.ratio(t)
    return eta * sigma_s * (1 - shrink.square()).clamp_min(0).sqrt()


def transition(
    prior: Prior, s: Tensor, clean: Tensor, noise: Tensor, fresh_std: Tensor, rng: ImageRng, temperature: float = 1.0
) -> Tensor:
    """alpha_s clean + sqrt(sigma_s^2 - fresh_std^2) noise + temperature fresh_std n with n ~ N(0, I).

    Arguments:
        prior: whose schedule gives alpha and sigma.
        s: the time to go to.
        clean: E[z_0 | z_t] or what a solver made of it (B, *latent_shape).
        noise: E[eps | z_t] (B, *latent_shape).
        fresh_std: standard deviation of the fresh noise, at most sigma_s.
        rng: where the fresh noise comes from.
        temperature: factor on the fresh noise alone; 1 keeps the level of the path.
    """
    alpha_s, sigma_s = prior.schedule(s)
    kept = (sigma_s.square() - fresh_std.square()).clamp_min(0).sqrt()
    fresh = temperature * expand_to(torch.as_tensor(fresh_std), clean) * rng.randn_like(clean)
    return expand_to(alpha_s, clean) * clean + expand_to(kept, noise) * noise + fresh


def isotropic_std(prior: Prior, t: Tensor, data_std: float) -> Tensor:
    """Standard deviation of z_0 given z_t if z_0 ~ N(m, data_std^2 I): r_t of PiGDM and OT-ODE, nu_t of FLOWER."""
    alpha, sigma = prior.schedule(t)
    return data_std * sigma / torch.hypot(alpha * data_std, sigma)


def denoising_gain(prior: Prior, t: Tensor) -> Tensor:
    """sigma_t^2 / alpha_t: how far the clean end E[z_0 | z_t] goes with the score, by Tweedie's formula.

    0 where alpha_t = 0: z_t shows nothing of z_0 there.
    """
    alpha, sigma = prior.schedule(t)
    return torch.where(alpha > 0, sigma.square() / alpha, 0)
