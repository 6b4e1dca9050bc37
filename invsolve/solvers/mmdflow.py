"""Posterior sampling based on gradient flows of the MMD with negative distance kernel
(Hagemann, Hertrich, Altekrüger, Beinert, Chemseddine & Steidl, ICLR 2024, arXiv 2310.03054; slices and sorting from
Hertrich, Wald, Altekrüger & Hagemann, arXiv 2305.11463).

    (X_j, Y_j), j = 1..M: pictures of the prior with their simulated measurements
    x_i = noise, y_i = Y_i                                  (the cloud, N = M)
    repeat:
        P unit vectors xi
        g_i = (2 #{j: <xi, (X_j, Y_j)> < a_i} - M) / M - (2 #{k: a_k < a_i} - N) / N,   a_i = <xi, (x_i, y_i)>
        G_i = c_D mean over xi of xi g_i, its x part  +  momentum G_i
        x_i = x_i - tau G_i

The law of the cloud goes to that of the pairs while every y_i stays, so the particles with y_i near y become samples of
p(x | y).  There are two ways to get samples for the y at hand:

Fitted (`folder`, made by `invsolve fit`; see `invsolve.flows.fit`): networks Phi_k(x, y) have learned where the cloud
is to go, and a sample is x = noise, then x <- x - Phi_k(x, y) for all k: the paper's method.  It holds for one operator
and one noise level; of the prior, only the decoder is used when it is applied.  A driver step applies as many networks
as its share of the run is: one, if there are as many steps as networks.

Pure particles (no `folder`): the cloud is drawn from the prior and flows along, and the samples are tracers (x, y) with
the measured y: the same gradient moves them and they do not act on the cloud.  For many particles that is the same map
as that of the networks.  For few it is smoothed: nothing is known of how p(x | y) changes with y over less than the
distance between the Y_j, which grows quickly with the dimension: good for a few dimensions, near the prior for a
hundred, and refused for pictures of more than 256 numbers.

| | paper | official code | here |
|---|---|---|---|
| start of x | any law | uniform on [0, 1] | noise with the spread of the pictures |
| tau | – | 1, .25 to 1 for patches | `step_size` times `mmd.natural_step`: 1 moves the middle of a cloud home |
| momentum | – | 0; to .8 for small colour pictures | 0.8 |
| slices P | – | 500 or d, independent | 128, orthonormal frames |
| c_D of a patch | – | of all of (x, y), with a step per scale | of the patch and y, by the share it covers |
| ties | – | left to the sort | count one half |
| N = M | 20000 | 20000 to 40000 (500 for CT) | 512 (particles), 20000 (fit) |
| stages | – | 30 to 147 networks | 2 per level, see `invsolve.flows.fit` |
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..flows.fitted import FittedFlow, condition, load_fitted
from ..flows.mmd import Cloud, advance, frames, natural_step
from ..priors.base import Prior
from ..priors.schedule import LinearFlow
from ..problem import Problem
from ..rng import ImageRng, derive_seed
from ..sample import measure, sample_prior
from ..solver import Range, Solver

__all__ = ["MMDFlow"]

MOST = 256  # numbers in a latent that particles alone are let loose on


class Chain(NamedTuple):
    """Samples on their way through the networks."""

    x: Tensor  # (B, *shape of the level)
    done: int  # networks applied
    flow: FittedFlow
    c: Tensor  # the data as a picture (B, *image_shape)


class Particles(NamedTuple):
    """The cloud with its targets, and the samples that it carries along."""

    x: Tensor  # (B, *latent_shape)
    done: int  # steps of the flow taken
    cloud: Cloud  # the particles, then the samples as tracers
    targets: Tensor  # (M, d + m)


@dataclass(frozen=True, kw_only=True)
class MMDFlow(Solver[Chain | Particles]):
    """Conditional MMD flow: pictures and measurements flow to their joint law; fitted networks, or particles alone.

    Arguments:
        folder: of a flow made by `invsolve fit`; without one, particles alone, for low dimensions.
        pairs: particles alone: number of simulated pairs.
        flow_steps: particles alone: steps of the flow per step of the solver.
        slices: particles alone: directions per step of the flow.
        step_size: particles alone: in units of the step that brings the middle of a cloud home at once.
        momentum: particles alone: share of the last gradient that is kept.
        cloud_seed: particles alone: of the pairs, the start of the cloud and the slices; all samples share them.

    Raises:
        ValueError: a value out of range, or a folder without a fitted flow; on use, a flow that was fitted for
            something else, or no flow for a picture that is large.
    """

    needs_fit = True
    steps = 20

    folder: str | None = None
    pairs: Annotated[int, Range(2)] = 512
    flow_steps: Annotated[int, Range(1)] = 20
    slices: Annotated[int, Range(1)] = 128
    step_size: Annotated[float, Range(0)] = 0.5
    momentum: Annotated[float, Range(0, 1)] = 0.8
    cloud_seed: Annotated[int, Range(0)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folder is not None:
            load_fitted(self.folder)  # a mistyped name must not wait for the prior

    def network_calls(self, steps: int) -> int:
        """None, but for priors without a sampler of their own: drawing the pairs asks them, once for a batch."""
        return 0

    def check(self, problem: Problem, prior: Prior | None = None) -> None:
        super().check(problem, prior)
        if prior is None:
            return
        if self.folder is not None:
            load_fitted(self.folder).to(problem.y.device).check(problem, prior.sized(problem.operator.image_shape))
            return
        size = math.prod(prior.latent_shape(problem.operator.image_shape))
        if size > MOST:
            raise ValueError(
                f"mmdflow without folder= moves particles in up to {MOST} dimensions, and this picture has {size}; fit "
                "a flow with `invsolve fit` and name its folder, or choose another solver."
            )

    def init(self, t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Chain | Particles:
        if self.folder is None:
            return self._release(problem, prior, rng)
        flow = load_fitted(self.folder).to(problem.y.device)
        c = condition(problem)
        return Chain(flow.begin(lambda shape: _normal(shape, c, rng)).to(problem.y), 0, flow, c)

    def step(
        self,
        state: Chain | Particles,
        t: Tensor,
        s: Tensor,
        problem: Problem,
        prior: Prior,
        rng: ImageRng,
    ) -> Chain | Particles:
        if isinstance(state, Chain):
            x, done, flow, c = state
            share = 1 - LinearFlow().time(prior.schedule.ratio(s))  # of the way, on every schedule
            end = max(done, round(float(share) * len(flow.stages)))
            for k in range(done, end):
                x = flow.advance(k, x.float(), c, lambda shape: _normal(shape, c, rng)).to(x)
            return Chain(x, end, flow, c)
        x, done, cloud, q = state
        for k in range(done, done + self.flow_steps):
            slicing = ImageRng([derive_seed(self.cloud_seed, "slices", k)])
            xi, c_d = frames(self.slices, q.shape[1], slicing, dtype=q.dtype, device=q.device)
            tau = self.step_size * natural_step(q, cloud.x.shape[1], xi, c_d)
            cloud = advance(cloud, q, xi, c_d, step=tau, momentum=self.momentum, n=len(q))
        return Particles(cloud.x[len(q) :].reshape(x.shape).to(x), done + self.flow_steps, cloud, q)

    def estimate(self, state: Chain | Particles) -> Tensor:
        """The samples; those of a coarse level with their pixels doubled."""
        if isinstance(state, Particles):
            return state.x
        return F.interpolate(state.x, state.flow.card.levels[-1][1:])

    def _release(self, problem: Problem, prior: Prior, rng: ImageRng) -> Particles:
        """The cloud at its start, with the samples as tracers."""
        shape = prior.latent_shape(problem.operator.image_shape)
        one_each = ImageRng(derive_seed(self.cloud_seed, "pair", j) for j in range(self.pairs))
        y = problem.y
        z = sample_prior(prior, problem.operator.image_shape, one_each, dtype=y.dtype, device=y.device)
        ys = measure(prior.decode(z), problem.operator, problem.noise, one_each).flatten(1).double()
        z = z.double()  # from here on: counts do not depend on rounding, nor on what else is in the batch
        spread, mean = z.var(dim=0).mean().sqrt(), z.mean(dim=0)
        start = ImageRng(derive_seed(self.cloud_seed, "start", j) for j in range(self.pairs))
        x = torch.cat([mean + spread * _normal(shape, z, r) for r in (start, rng)])
        cloud = Cloud(x.flatten(1), torch.cat([ys, y.double().flatten(1)]), torch.zeros_like(x.flatten(1)))
        return Particles(x[self.pairs :].to(y), 0, cloud, torch.cat([z.flatten(1), ys], dim=1))


def _normal(shape: tuple[int, ...], like: Tensor, rng: ImageRng) -> Tensor:
    """Normal numbers (B, *shape), a generator per row."""
    return rng.randn(shape, dtype=like.dtype, device=like.device)
