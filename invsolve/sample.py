"""Samples of a prior, and of pictures together with their measurements."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from .noise import Noise
from .operators.base import Operator
from .priors.base import Metered, Prior, Rescheduled, Shape
from .priors.decoder import LinearDecoder
from .priors.gaussian import GaussianPrior
from .priors.mixture import GaussianMixture
from .priors.schedule import LinearFlow
from .problem import simulate
from .rng import ImageRng, derive_seed
from .times import make_times

__all__ = ["STEPS", "follow_flow", "measure", "sample_pictures", "sample_prior"]

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
        parts.append(follow_flow(prior, prior.at(times[0], torch.zeros_like(n), n), times))
    return torch.cat(parts)


def follow_flow(prior: Prior, z: Tensor, times: Tensor, *, midpoint: bool = False) -> Tensor:
    """Follow the probability flow from z (B, *latent_shape) at the first time to the last, in either direction.

    One step from t to s is DDIM's, alpha_s clean + sigma_s noise, which on every path is Euler's step of the rectified
    flow.  The midpoint rule doubles the calls and, on that flow, makes the error of second order.

    Arguments:
        prior: whose flow it is.
        z: where it starts.
        times: monotone, (n + 1,).
        midpoint: the midpoint rule, 2 n calls, instead of Euler's, n calls.
    """
    flow, schedule = LinearFlow(), prior.schedule
    for t, s in pairwise(times):
        if not midpoint:
            z = prior.at(s, *prior.predict(z, t))
            continue
        flow_t, flow_s = (flow.time(schedule.ratio(u)) for u in (t, s))
        middle = schedule.time(flow.ratio((flow_t + flow_s) / 2))
        clean, noise = prior.predict(prior.at(middle, *prior.predict(z, t)), middle)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
        z = (alpha_s + sigma_s) * (z / (alpha_t + sigma_t) + (flow_s - flow_t) * (noise - clean))
    return z


@torch.no_grad()
def sample_pictures(
    prior: Prior,
    shape: Shape,
    rng: ImageRng,
    times: Tensor | None = None,
    *,
    canvas: int,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Latents of the prior with their pictures (B, *shape); of a larger canvas, the parts that it is cut into, twice.

    Arguments:
        prior: on the device wanted; of pixels, if the canvas is larger than the pictures.
        shape: (C, H, W) of the pictures.
        rng: one generator per picture; of those on one canvas, that of a single one is used.
        times: as for `sample_prior`.
        canvas: side of what is drawn, at least H and W.
        device: of the result.
    """
    channels, height, width = shape
    down, across, n = canvas // height, canvas // width, len(rng.seeds)
    drawn = ImageRng(rng.seeds[: -(-n // (down * across))])
    z = sample_prior(prior, (channels, canvas, canvas), drawn, times, device=device)
    x = torch.cat([prior.decode(part) for part in z.split(CHUNK)])
    if (height, width) == (canvas, canvas):
        return z, x
    tiles = (
        x[..., : down * height, : across * width].unfold(2, height, height).unfold(3, width, width)
    )  # (B, C, k, k, h, w)
    tiles = tiles.permute(0, 2, 3, 1, 4, 5).reshape(-1, *shape)[:n].contiguous()
    return tiles, tiles


@torch.no_grad()
def measure(x: Tensor, operator: Operator, noise: Noise, rng: ImageRng) -> Tensor:
    """Simulated measurements (B, *data_shape) of pictures x (B, *image_shape) that were drawn with the same `rng`."""
    parts, done = [], 0
    for part in x.split(CHUNK):
        seeds = [derive_seed(seed, "measure") for seed in rng.seeds[done : done + len(part)]]  # not those of x
        parts.append(simulate(operator, noise, part, ImageRng(seeds)))
        done += len(part)
    return torch.cat(parts)
