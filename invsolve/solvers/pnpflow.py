"""PnP-Flow: plug-and-play image restoration with flow matching (Martin, Gagneux, Hagemann & Steidl, ICLR 2025,
arXiv 2410.02423).

    z = a picture made of the data
    for t in times:                                         (t = 1 noise, t = 0 data; the paper's time is 1 - t)
        z = z - step_size t^alpha / (L + (sigma_y (1 - t) / t)^2) * grad |A D(z) - y|^2 / 2
        z = mean over `averages` draws n ~ N(0, I) of the clean end at (1 - t) z + t n

On a path other than the rectified flow, t is the flow time of equal sigma/alpha, and the draw is taken to that path.
L is the largest curvature of |A D(z) - y|^2 / 2: 1 for the paper's operators, less where A averages pixels.  What is
added to it is the curvature of |z - z'|^2 (sigma_y (1 - t) / t)^2 / 2, a prior as wide as the noise of the path: where
that is below the noise of the data, the data no longer pull.  The paper's alpha does this by hand, task by task.

| | paper | official code | here |
|---|---|---|---|
| step | t^alpha sigma_y^2 grad -log p(y | z) | step_size times the same | divided by L + (sigma_y (1 - t) / t)^2 |
| step_size | 1 | 1 | 1 |
| alpha | 0.01 to 0.8 by task | 0.8 denoising, 0.3 super-resolution, 0.5 box, 0.01 random | 0 |
| averages | 5 | 5 | 1 |
| grid | 100 even steps | 100 | `restoration`, 50 |
| step, A not linear | – | – | halved where it would raise the misfit |
| start | without effect | A^T 1 | regularised least squares |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from ..linalg import expand_to, grad
from ..operators.base import LinearOperator
from ..priors.base import Prior
from ..priors.schedule import LinearFlow
from ..problem import Problem, first_guess
from ..rng import ImageRng
from ..solver import Range, Solver
from ._descent import curvature, downhill
from ._misfit import misfit

__all__ = ["PnPFlow"]

ROUNDS = 4  # of power iteration per step; the direction is kept from step to step


class State(NamedTuple):
    """The clean latent, and the direction in which the misfit is most curved."""

    z: Tensor  # (B, *latent_shape)
    steepest: Tensor  # the same shape


@dataclass(frozen=True, kw_only=True)
class PnPFlow(Solver[State]):
    """Plug-and-play with a flow: a gradient step on the misfit, a point of the path above it, its clean end.

    Arguments:
        step_size: of the gradient step, in units of the inverse of the largest curvature; stable below 2.
        alpha: how fast it shrinks with t besides what the noise does.
        averages: points of the path whose clean ends are averaged.
    """

    times = "restoration"
    steps = 50

    step_size: Annotated[float, Range(0, 2)] = 1.0
    alpha: Annotated[float, Range(0)] = 0.0
    averages: Annotated[int, Range(1)] = 1

    def network_calls(self, steps: int) -> int:
        return steps * self.averages

    def init(self, t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> State:
        z = prior.encode(first_guess(problem))
        return State(z, rng.randn_like(z))

    def step(self, state: State, t: Tensor, s: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> State:
        z, steepest = state
        flow_t = LinearFlow().time(prior.schedule.ratio(t))
        largest, steepest = curvature(problem, prior.decode, z, steepest, ROUNDS)
        noise = (problem.level / prior.schedule.ratio(t)).square()
        step = self.step_size * flow_t**self.alpha / (largest + noise).clamp_min(torch.finfo(z.dtype).tiny)
        move = expand_to(step, z) * grad(lambda u: misfit("half_sq", problem, prior.decode(u)), z)
        linear = isinstance(problem.operator, LinearOperator)
        z = z - move if linear else downhill(z, move, problem, prior.decode)
        ends = [prior.predict(prior.at(t, z, rng.randn_like(z)), t).clean for _ in range(self.averages)]
        return State(torch.stack(ends).mean(dim=0), steepest)

    def estimate(self, state: State) -> Tensor:
        return state.z
