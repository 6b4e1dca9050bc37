"""Fitting a conditional MMD flow to pictures and an operator; see `invsolve.solvers.mmdflow` for the flow.

    (X_j, Y_j): pictures with simulated measurements; c_j = Y_j as a picture
    x_j = noise with the mean and the spread of the pictures
    for levels from coarse to fine (latents averaged):
        x_j = x_j with pixels doubled + noise, but at the coarsest level
        for every stage:
            score:  Phi, its experts at clusters of the X at first, learns
                    min E |x' - X| - |x' - x''| / 2,   x', x'' = x - Phi(x, c) for two draws x of one c,
                    and of the expert of Phi: all pairs of experts count, with their shares
            flow:   x' = x after `flow_steps` steps of the flow of the cloud (x_j, Y_j) towards the pairs
                    Phi, warm from the last flow stage, learns x - x' from (x, c) by least squares
            x_j = x_j - Phi(x_j, c_j)                     (moved by the network, so that later stages see its errors)

Both kinds of stage go down the same functional F of `invsolve.flows.mmd`.  The flow has one cloud for all y and learns
how p(x | y) changes with y from particles that are near each other in y, of which there are few in many dimensions.
The score has two particles and one target for every y; its mean over the pairs is that of F of p(x | y) for each y by
itself, up to a constant, so that the network is what carries over from one y to the next.  The paper has flow stages
alone (`first` = "flow"); by default the first stage of a level is one of the score, which leaves little to the others.

| | paper | official code | here |
|---|---|---|---|
| pairs | 20000 | 20000 to 40000 | 20000; more for the score where they can be drawn |
| weight of y | 1 | 1; 10 for one-hot labels | 1 |
| first stage of a level | flow | flow | score |
| flow steps per stage | growing | 2^4 to 2^13, to 30000 | 50 |
| stages | – | 30 to 147 | 2 per level |
| training | – | Adam, 5000 x 100, 5e-4 | AdamW, 1000 x 256, falling linearly from 3e-3; score 4000 |
| network | U-Net | 32 to 128 channels | U-Net of 32 to 128 channels; up to 256 latent entries, 48 linear experts |
| start | – | – | zero; experts of the score at Gaussian clusters of 50000 pictures |
| slices | – | 500 or d | 128, half of them patches for pictures with a side of 16 or more |
| level change | – | 0.07 noise on [0, 1] | 0.14 on [-1, 1] |

Every stage is written when it is done, and a fit that was stopped goes on from there with the same result.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from ..files.atomic import atomic_write, check_replaceable
from ..noise import Noise
from ..operators import Operator, Shape
from ..priors.base import Prior
from ..problem import Problem
from ..rng import ImageRng, derive_seed
from .fitted import FittedFlow, FlowCard, condition, does_the_same, new_flow, operator_text
from .networks import NetworkKind
from .state import ABOUT, PAIRS, PROGRESS, another_fit, check_state, load_state, state_folder
from .training import CHUNK, FitSettings, carry, learn_flow, learn_score, normal_numbers, prepare_score

__all__ = ["FitSettings", "StageReport", "fit", "new_card", "state_folder"]

SMALL = 256  # latent entries up to which "auto" takes experts
DEFAULT_WIDTH = {"experts": 128, "unet": 32}
DIVERGED = 10.0  # times the size of pictures and cloud (and 1): no stage has to carry anything that far


class DivergedError(ValueError):
    """A stage went astray; the text says what to change."""


@dataclass(frozen=True)
class StageReport:
    """What a stage did.

    Arguments:
        stage: from 1.
        stages: of all levels.
        moved: how far the network carried the cloud, root mean square over particles and latent entries.
        missed: how far that is from where the flow carried it; None for a stage of the score.
    """

    stage: int
    stages: int
    moved: float
    missed: float | None


class Pairs(NamedTuple):
    """What a flow is fitted to."""

    z: Tensor  # latents (n, *latent_shape)
    y: Tensor  # their measurements (n, *data_shape)
    c: Tensor  # those as pictures (n, *image_shape)


@torch.no_grad()
def fit(
    draw: Callable[[], tuple[Tensor, Tensor]],
    operator: Operator,
    noise: Noise,
    folder: Path,
    settings: FitSettings,
    *,
    source: str,
    name: str = "",
    prior: Prior | None = None,
    device: str | torch.device = "cpu",
    report: Callable[[StageReport], None] = lambda _: None,
) -> FittedFlow:
    """Fit a flow and write it to a folder; a fit that was stopped goes on.

    Arguments:
        draw: gives latents z (n, *latent_shape) and their measurements (n, *data_shape); called once at most.
        operator: A, on the device.
        noise: what is added to A(x).
        folder: to be made; it appears when the fit is complete, and until then its state lives beside it.
        settings: how.
        source: where the pictures come from, for the card.
        name: the operator's text for the card; by default its name and fields.
        prior: whose latents z are; None where they are pictures.
        device: where to compute.
        report: called after every stage.

    Returns:
        The flow, on the CPU.

    Raises:
        ValueError: the settings do not fit, the state beside the folder belongs to another fit, or the fit diverged.
        FileExistsError: the folder exists and is not an earlier fit.
    """
    check_replaceable(folder)
    card = new_card(operator, noise, settings, source=source, name=name, prior=prior)
    flow = new_flow(card, operator, derive_seed(settings.seed, "weights"), prior).to(device)
    condition(Problem(operator, noise, flow.probe[None]))  # refuses what cannot be shown to a network
    work = state_folder(folder)
    pairs = _pairs(draw, operator, noise, flow, work, json.dumps(asdict(card), indent=2) + "\n", device)
    coarse = _averaged(pairs.z, card.levels[0])
    flow.mean.copy_(coarse.mean(dim=0))
    flow.spread.copy_(coarse.var(dim=0).mean().sqrt())
    x, done = torch.empty(0), 0
    if (work / PROGRESS).exists():
        kept = load_state(work / PROGRESS)
        x, done = kept.pop("x").to(device), int(kept.pop("done"))
        flow.load_state_dict(kept)
    for k in range(done, len(flow.stages)):
        try:
            x, what = _fit_stage(flow, k, x, pairs, settings)
        except DivergedError:
            shutil.rmtree(work)  # the same options would do the same again
            raise
        state = {key: tensor.contiguous() for key, tensor in flow.state_dict().items()}
        atomic_write(work / PROGRESS, save(state | {"x": x.contiguous(), "done": torch.tensor(k + 1)}))
        report(what)
    flow.cpu().save(folder)
    shutil.rmtree(work, ignore_errors=True)
    return flow.requires_grad_(False).eval()


def _pairs(
    draw: Callable[[], tuple[Tensor, Tensor]],
    operator: Operator,
    noise: Noise,
    flow: FittedFlow,
    work: Path,
    card: str,
    device: str | torch.device,
) -> Pairs:
    """What is learned from: drawn once, and kept with the card in the folder of the state."""
    check_state(work, card)
    if not (work / PAIRS).exists():
        z, y = draw()
        atomic_write(work / ABOUT, card.encode())
        atomic_write(work / PAIRS, save({"z": z.contiguous(), "y": y.contiguous(), "probe": flow.probe.cpu()}))
    stored = load_state(work / PAIRS)
    if not does_the_same(operator, stored["probe"]):
        raise another_fit(work)
    z, y = (stored[key].to(device, torch.float32) for key in "zy")
    return Pairs(z, y, torch.cat([condition(Problem(operator, noise, part)) for part in y.split(CHUNK)]))


def new_card(
    operator: Operator,
    noise: Noise,
    settings: FitSettings,
    *,
    source: str,
    name: str = "",
    prior: Prior | None = None,
) -> FlowCard:
    """What `fit` writes beside the flow; what does not depend on software tells fits apart."""
    latent_shape = operator.image_shape if prior is None else prior.latent_shape(operator.image_shape)
    kind = _network(settings, latent_shape)
    return FlowCard(
        operator=name or operator_text(operator),
        noise=str(noise),
        prior=source,
        image_shape=operator.image_shape,
        levels=_levels(latent_shape, settings.levels),
        stages=settings.stages,
        first=settings.first,
        network=kind,
        width=settings.width or DEFAULT_WIDTH[kind],
        level_noise=settings.level_noise,
        about={
            "settings": asdict(settings),
            "software": {"invsolve": version("invsolve"), "torch": torch.__version__},
        },
    )


def _fit_stage(flow: FittedFlow, k: int, x: Tensor, pairs: Pairs, settings: FitSettings) -> tuple[Tensor, StageReport]:
    """Train stage k; the cloud after it, and what it did.

    Arguments:
        flow: whose stages before k are trained.
        k: from 0.
        x: the cloud before it, of the first pairs; for k = 0 it is made here.
        pairs: all.
        settings: how.
    """
    level, place = divmod(k, flow.card.stages)
    rng, n = ImageRng([derive_seed(settings.seed, "stage", k)]), min(settings.particles, len(pairs.z))
    numbers = normal_numbers(rng, n, pairs.z.device)
    x = flow.enter(k, x, numbers) if k else flow.begin(numbers)
    target, c = _averaged(pairs.z, flow.card.levels[level]), pairs.c[:n]
    network, wanted = flow.network(k), None
    if settings.first == "score" and place == 0:
        prepare_score(flow, k, target, pairs.c, rng)
        learn_score(flow, k, target, pairs.c, settings, rng)
    else:
        if place == (settings.first == "score"):  # the first one of its kind in a level
            network.prepare(x, c)
        else:
            network.load_state_dict(flow.network(k - 1).state_dict())  # warm start within a level
        wanted = x - carry(x, pairs.y[:n].flatten(1), target[:n], settings, rng)
        learn_flow(network, x, c, wanted, settings, rng)
    parts = zip(*(rows.split(CHUNK) for rows in (x, c, flow.choice(k, x, numbers))), strict=True)
    moved = torch.cat([network(*part) for part in parts])
    missed = None if wanted is None else _rms(wanted - moved)
    far = DIVERGED * (1 + _rms(x) + _rms(target))
    if not (_rms(moved) <= far and (missed is None or missed <= far)):
        raise DivergedError("The fit diverged; lower --lr or --step-size, or take more --slices.")
    return x - moved, StageReport(k + 1, len(flow.stages), _rms(moved), missed)


def _network(settings: FitSettings, latent_shape: Shape) -> NetworkKind:
    """The kind of network for such latents."""
    kind: NetworkKind = "experts" if math.prod(latent_shape) <= SMALL else "unet"
    if settings.network != "auto":
        kind = settings.network
    if kind == "unet" and settings.width % 8:
        raise ValueError(f"The width of a U-Net must be a multiple of 8, got {settings.width}.")
    return kind


def _levels(latent_shape: Shape, n: int) -> tuple[Shape, ...]:
    """Shapes of the latents from the coarsest level to the finest."""
    channels, height, width = latent_shape
    halvings = 2 ** (n - 1)
    if height % halvings or width % halvings:
        raise ValueError(
            f"{n} levels need a height and a width that are multiples of {halvings}, got {height} x {width}; take less."
        )
    return tuple((channels, height // 2**k, width // 2**k) for k in reversed(range(n)))


def _averaged(z: Tensor, shape: Shape) -> Tensor:
    """Latents at the resolution of a level."""
    return z if z.shape[1:] == shape else F.adaptive_avg_pool2d(z, shape[1:])


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())
