"""Samples of a prior, and of pictures together with their measurements."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from .operators.base import Operator
from .priors.base import Metered, Prior, Rescheduled, Shape
from .priors.decoder import LinearDecoder
from .priors.gaussian import GaussianPrior
from .priors.mixture import GaussianMixture
from .problem import Noise, simulate
from .rng import ImageRng, derive_seed
from .times import make_times

__all__ = ["measure", "sample_prior"]

STEPS = 40  # of the probability flow, where a prior has no sampler of its own
CHUNK = 64  # rows that go through the network at once


@torch.no_grad()
def sample_prior(
    prior: Prior,
    image_shape: Shape,
    rng: ImageRng,
    times: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Latents (B, *latent_shape) of the prior, one per row of `rng`: `prior.decode` makes pictures of them.

    Gaussian priors and mixtures are sampled exactly; any other one by its probability flow from noise, with one network
    call per step.

    Arguments:
        prior: on the device wanted.
        image_shape: (C, H, W) of the pictures.
        rng: one generator per sample.
        times: decreasing times in the prior's schedule; by default 40 steps of the grid `karras`.
        dtype: of the result.
        device: of the result.
    """
    inner = prior
    while isinstance(inner, Metered | Rescheduled | LinearDecoder):
        inner = inner.prior  # the same latents, seen another way
    if isinstance(inner, GaussianPrior):
        return inner.sample(prior.latent_shape(image_shape), rng, dtype).to(device)
    if isinstance(inner, GaussianMixture):
        generators = [torch.Generator().manual_seed(derive_seed(seed, "mixture")) for seed in rng.seeds]
        return torch.cat([inner.sample(1, generator) for generator in generators]).to(device, dtype)
    times = make_times("karras", STEPS, prior.schedule) if times is None else times
    times = times.to(device, dtype)
    noise = rng.randn(prior.latent_shape(image_shape), dtype=dtype, device=device)
    parts = []
    for n in noise.split(CHUNK):
        z = prior.at(times[0], torch.zeros_like(n), n)
        for t, s in pairwise(times):
            z = prior.at(s, *prior.predict(z, t))
        parts.append(z)
    return torch.cat(parts)


@torch.no_grad()
def measure(z: Tensor, prior: Prior, operator: Operator, noise: Noise, rng: ImageRng) -> Tensor:
    """Simulated measurements (B, *data_shape) of the pictures that latents z (B, *latent_shape) stand for."""
    parts, at = [], 0
    for part in z.split(CHUNK):
        seeds = [derive_seed(seed, "measure") for seed in rng.seeds[at : at + len(part)]]  # not those of the pictures
        parts.append(simulate(operator, noise, prior.decode(part), ImageRng(seeds)))
        at += len(part)
    return torch.cat(parts)
