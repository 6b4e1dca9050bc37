"""How one stage of a fitted flow learns: settings, the flow of the cloud, and the two kinds of training; see `fit`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ..rng import ImageRng
from .fitted import Draw, FittedFlow
from .mmd import Cloud, advance, frames, natural_step, patches

__all__ = ["CHUNK", "FitSettings", "carry", "learn_flow", "learn_score", "normal_numbers", "prepare_score"]

PATCHED = 16  # side of a picture from which some slices see patches only
PATCH = 5  # blocks per side of a patch
WARM_UP = 50  # steps
PREPARED = 150_000  # pairs that a network of the score is prepared with
CHUNK = 512  # rows that go through a network at once


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How a flow is fitted.

    Arguments:
        first: what the first stage of a level learns from, "score" or "flow"; the paper has the flow alone.
        levels: resolutions of the pyramid; each is half of the next.
        stages: networks per level.
        flow_steps: steps of the flow per stage.
        slices: directions per step of the flow.
        particles: pairs that flow, the first ones; a stage of the score learns from all.
        condition_weight: factor on y in the distances of the flow.
        step_size: in units of the step that brings the middle of a cloud home at once.
        momentum: share of the last gradient that is kept.
        network: "experts", "unet" or "auto": experts up to 256 latent entries.
        width: of the U-Net, a multiple of 8, or of the network that gives the shares of the flow's experts; 0: 32 and
            128.
        score_steps: training steps of a stage of the score.
        train_steps: training steps of a stage of the flow.
        batch: pairs per training step.
        lr: learning rate of AdamW at its highest.
        level_noise: added where the resolution doubles.
        seed: of everything that is random.

    Raises:
        ValueError: a value out of range.
    """

    first: Literal["score", "flow"] = field(
        default="score", metadata={"help": "What the first network of a level learns; the paper has flow."}
    )
    levels: int = field(default=1, metadata={"help": "Resolutions of the pyramid."})
    stages: int = field(default=2, metadata={"help": "Networks per level."})
    flow_steps: int = field(default=50, metadata={"help": "Steps of the flow per stage."})
    slices: int = field(default=128, metadata={"help": "Directions per step of the flow."})
    particles: int = field(default=20000, metadata={"help": "Pairs that flow."})
    condition_weight: float = 1.0
    step_size: float = field(default=0.5, metadata={"help": "1 moves the middle of a cloud home."})
    momentum: float = 0.8
    network: Literal["auto", "experts", "unet"] = "auto"
    width: int = field(default=0, metadata={"help": "Of U-Nets and of the shares of --first flow; 0: 32 and 128."})
    score_steps: int = field(default=4000, metadata={"help": "Training steps of a score network."})
    train_steps: int = field(default=1000, metadata={"help": "Training steps of a flow network."})
    batch: int = field(default=256, metadata={"help": "Pairs per training step."})
    lr: float = field(default=3e-3, metadata={"help": "Learning rate."})
    level_noise: float = 0.14
    seed: int = field(default=0, metadata={"help": "Of everything that is random."})

    def __post_init__(self) -> None:
        counts = ("levels", "stages", "flow_steps", "slices", "score_steps", "train_steps", "batch")
        lowest = dict.fromkeys(counts, 1) | {"particles": 2}
        for name in (*lowest, "condition_weight", "width", "step_size", "lr", "level_noise"):
            value, low = getattr(self, name), lowest.get(name, 0)
            if not (math.isfinite(value) and value >= low):
                raise ValueError(f"{name} must be at least {low}, got {value!r}.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be from 0 to below 1, got {self.momentum!r}.")


def normal_numbers(rng: ImageRng, rows: int, device: str | torch.device) -> Draw:
    """Normal numbers for so many rows, from the one generator of the fit."""
    return lambda shape: rng.randn((rows, *shape), dtype=torch.float32, device=device)[0]


def prepare_score(flow: FittedFlow, k: int, target: Tensor, c: Tensor, rng: ImageRng) -> None:
    """Start the experts of a stage of the score with particles that have come through the stages before it."""
    network = flow.network(k)
    if not network.drawn:
        return
    target, c = target[:PREPARED], c[:PREPARED]
    x = torch.cat([_arrived(flow, k, part, rng) for part in c.split(CHUNK)])
    network.prepare(x, c)
    network.start(x, c, target, rng)


@torch.no_grad()
def _arrived(flow: FittedFlow, k: int, c: Tensor, rng: ImageRng) -> Tensor:
    """New particles for conditions c (n, *image_shape), as stage k sees them."""
    draw = normal_numbers(rng, len(c), c.device)
    x = flow.begin(draw)
    for j in range(k):
        x = flow.advance(j, x, c, draw)
    return flow.enter(k, x, draw)


def learn_score(flow: FittedFlow, k: int, target: Tensor, c: Tensor, settings: FitSettings, rng: ImageRng) -> None:
    """Stage k by F of two particles and one target for each c, the particles being new at every step.

    Every particle has all answers of the network, weighted by their shares.
    """
    network = flow.network(k)

    def loss(row: Tensor) -> Tensor:
        both = c[row].repeat(2, 1, 1, 1)
        x = _arrived(flow, k, both, rng)
        moves, share = network.answers(x, both)
        first, second = (x[:, None] - moves).flatten(2).chunk(2)  # (batch, K, d)
        p, q = share.chunk(2)
        goal = target[row].flatten(1)[:, None]
        to_target = (p * (first - goal).norm(dim=2) + q * (second - goal).norm(dim=2)).sum(dim=1)
        apart = (p[:, :, None] * torch.cdist(first, second) * q[:, None]).sum(dim=(1, 2))
        return (to_target - apart).mean() / 2

    _train(network, loss, len(target), settings.score_steps, settings, rng)


def learn_flow(network: nn.Module, x: Tensor, c: Tensor, wanted: Tensor, settings: FitSettings, rng: ImageRng) -> None:
    """A stage by least squares against where the flow carried the cloud."""

    def loss(row: Tensor) -> Tensor:
        error: Tensor = network(x[row], c[row], x.new_zeros(len(row))) - wanted[row]
        return error.square().mean()

    _train(network, loss, len(x), settings.train_steps, settings, rng)


def _train(
    network: nn.Module,
    loss: Callable[[Tensor], Tensor],
    n: int,
    steps: int,
    settings: FitSettings,
    rng: ImageRng,
) -> None:
    """Minimise the loss of random rows out of n, with a learning rate that falls linearly to zero."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=0.0)
    for i in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * min(1, (i + 1) / WARM_UP) * (1 - i / steps)
        row = (rng.rand((settings.batch,), dtype=torch.float64)[0] * n).long()
        with torch.enable_grad():
            optimizer.zero_grad()
            loss(row).backward()
        optimizer.step()


def carry(x: Tensor, y: Tensor, target: Tensor, settings: FitSettings, rng: ImageRng) -> Tensor:
    """The cloud after the steps of the flow (N, *shape of the level).

    Arguments:
        x: the cloud.
        y: data of the pairs (N, m).
        target: pictures of the pairs (N, *shape of the level).
        settings: of the flow.
        rng: of the slices.
    """
    y = settings.condition_weight * y
    q = torch.cat([target.flatten(1), y], dim=1)
    cloud = Cloud(x.flatten(1), y, torch.zeros_like(x.flatten(1)))
    for _ in range(settings.flow_steps):
        xi, factors = _slices(settings.slices, tuple(x.shape[1:]), y.shape[1], rng, x)
        tau = settings.step_size * natural_step(q, cloud.x.shape[1], xi, factors)
        cloud = advance(cloud, q, xi, factors, step=tau, momentum=settings.momentum)
    return cloud.x.reshape(x.shape)


def _slices(n: int, shape: tuple[int, ...], extra: int, rng: ImageRng, like: Tensor) -> tuple[Tensor, Tensor]:
    """Directions and factors of one step: everything at once, and for larger pictures as many patches."""
    channels, height, width = shape
    size = channels * height * width + extra
    if min(height, width) < PATCHED:
        return frames(n, size, rng, dtype=like.dtype, device=like.device)
    whole = frames(n - n // 2, size, rng, dtype=like.dtype, device=like.device)
    local = patches(n // 2, (channels, height, width), extra, rng, side=PATCH, dtype=like.dtype, device=like.device)
    return torch.cat([whole[0], local[0]]), torch.cat([whole[1], local[1]])
