"""ReSample: solving inverse problems with latent diffusion models via hard data consistency
(Song et al., ICLR 2024, arXiv 2307.08123).

    for t -> s in times:
        z0, eps = endpoints at z_t
        z_s     = alpha_s z0 + sigma_s eps - step_size abar_t grad_{z_t} max(|A D(z0) - y|, R)
        every period-th step, and where sigma_s / alpha_s < hard_below:
            z0  = clean end after `travel` more deterministic steps from z_s (0: as it is)
            z0  = argmin |A D(z0) - y| from there, stopped at R (hard data consistency);
                  over pictures, then carried back, where sigma_s / alpha_s > pixel_above, and over latents below
            z_s = w alpha_s z0 + (1 - w) z_s + sqrt(w) sigma_s n,  n ~ N(0, I)      (stochastic resampling)
    z_0 = argmin |A D(z_0) - y| from there

    w = gamma q / (1 + gamma q),  q = 1 - (r_s / r_t)^2,  r = sigma / alpha,  abar = 1 / (1 + r^2)

R = sigma_y sqrt(m) is the misfit that the noise leaves.
Resampling draws from p(z_s | z0, z_s') for z_s' ~ N(z_s, v), which on a variance-preserving path has the mean
(v sqrt(abar_s) z0 + (1 - abar_s) z_s') / (v + 1 - abar_s) and the variance 1 / (1 / v + 1 / (1 - abar_s)); with the
paper's v = gamma (1 - abar_s) / (1 - abar_t) (1 - abar_t / abar_s), w = v / (v + 1 - abar_s) is the one above.

| | paper | official code | here |
|---|---|---|---|
| step_size | – | 0.5, 500 steps of 64x64x3 latents | 0.05 sqrt(d), d latent entries |
| noise level in the gradient | – | no | yes |
| period | 10 | 10 | 1: as many in 50 steps as there in 500 |
| travel | – | 5 | 0 |
| gamma | 40 | 40 | 40 |
| hard_below | last two thirds of the steps | the same: 9.4 for the linear betas | 9.4 |
| pixel_above | until the last third | the same: 1.45 | 1.45 |
| argmin | to a tolerance tau | AdamW, 2000 or 500 (latents) steps, to 1e-6 per value | below |
| clean end | posterior mean | (1 - abar) eps for sqrt(1 - abar) eps in it | posterior mean |
| start | noise | noise | the first guess that y gives, with the noise of the path |
| grid | 500 DDIM steps | 500 | `restoration`, 50 |

Over pictures and for a linear operator the argmin is the nearest picture with misfit R, in one exact step; otherwise
at most 15 conjugate gradients whose step length is that of a linear problem, fewer where they hardly help any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from ..linalg import norm
from ..priors.base import Prior
from ..problem import Problem
from ..rng import ImageRng
from ..solver import Range, Solver
from ._hold import approach_data, meet_data
from ._start import noisy_first_guess

__all__ = ["ReSample"]


STEP = 0.05  # per root of the number of latent entries: what the official 0.5 amounts to at a tenth of its steps


class State(NamedTuple):
    """The point of the path, and how many steps led to it."""

    z: Tensor  # (B, *latent_shape)
    step: int


@dataclass(frozen=True, kw_only=True)
class ReSample(Solver[State]):
    """ReSample: every few steps the clean end is made to explain the data, and noise put back onto it.

    Arguments:
        step_size: weight of the gradient of the misfit norm at every step; None for 0.05 times the root of the number
            of latent entries.
        period: steps between two hard data consistencies.
        travel: deterministic steps, at the pace of the step before, to the clean end that is made consistent; 0 for the
            one of the step itself.
        gamma: trust in that end relative to the point of the path, when noise is put back.
        hard_below: sigma/alpha from which on the data are held.
        pixel_above: sigma/alpha down to which they are held by pictures; below it by latents.
        data_steps: most gradient steps of one hard data consistency.
    """

    times = "restoration"
    steps = 50

    step_size: Annotated[float | None, Range(0)] = None
    period: Annotated[int, Range(1)] = 1
    travel: Annotated[int, Range(0)] = 0
    gamma: Annotated[float, Range(0)] = 40.0
    hard_below: Annotated[float, Range(0)] = 9.4
    pixel_above: Annotated[float, Range(0)] = 1.45
    data_steps: Annotated[int, Range(0)] = 15

    def network_calls(self, steps: int) -> int:
        """Those of a grid that starts below `hard_below`; with `travel`, steps above it take fewer."""
        return steps + self.travel * ((steps - 1) // self.period)

    def init(self, t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> State:
        return State(noisy_first_guess(t, problem, prior, rng), 0)

    def step(self, state: State, t: Tensor, s: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> State:
        z_t, k = state.z, state.step + 1
        r_t, r_s = prior.schedule.ratio(t), prior.schedule.ratio(s)
        with torch.enable_grad():
            leaf = z_t.detach().requires_grad_(True)
            z0, eps = prior.predict(leaf, t)
            misfit = torch.maximum(norm(problem.residual(prior.decode(z0))), problem.radius)
            (g,) = torch.autograd.grad(misfit.sum(), leaf)
        scale = torch.hypot(*prior.schedule(s)) * torch.hypot(*prior.schedule(t))  # 1 on a VP path
        abar_t = 1 / (1 + r_t.square())
        step_size = STEP * z_t[0].numel() ** 0.5 if self.step_size is None else self.step_size
        z0 = z0.detach()
        z_s = prior.at(s, z0, eps.detach()) - step_size * abar_t * scale * g

        if s == 0:
            return State(self._hold(z_s, r_s, problem, prior), k)
        if k % self.period == 0 and r_s < self.hard_below:
            z0 = self._hold(self._travel(z0, z_s, r_s, r_s / r_t, prior), r_s, problem, prior)
            alpha_s, sigma_s = prior.schedule(s)
            gain = self.gamma * (1 - (r_s / r_t).square())
            w = gain / (1 + gain)
            z_s = w * alpha_s * z0 + (1 - w) * z_s + w.sqrt() * sigma_s * rng.randn_like(z_s)
        return State(z_s, k)

    def _travel(self, z0: Tensor, z: Tensor, r: Tensor, pace: Tensor, prior: Prior) -> Tensor:
        """The clean end z0 after deterministic steps from z at sigma/alpha = r, each to `pace` times the last."""
        for k in range(self.travel):
            z0, eps = prior.predict(z, prior.schedule.time(r))
            r = pace * r
            if k < self.travel - 1:
                z = prior.at(prior.schedule.time(r), z0, eps)
        return z0

    def _hold(self, z0: Tensor, r: Tensor, problem: Problem, prior: Prior) -> Tensor:
        """Hard data consistency at sigma/alpha = r."""
        radius = problem.radius
        if not prior.has_decoder:
            return meet_data(z0, problem, radius, self.data_steps)
        if r <= self.pixel_above:
            return approach_data(z0, problem, prior, radius, self.data_steps)
        x0 = prior.decode(z0)
        x = meet_data(x0, problem, radius, self.data_steps)
        return z0 + (prior.encode(x) - prior.encode(x0))  # E(x) alone loses what E D loses

    def estimate(self, state: State) -> Tensor:
        return state.z
