"""Flow priors for linear inverse problems via iterative corrupted trajectory matching
(Zhang, Yu, Zhu, Chang, Gao, Wu & Leong, NeurIPS 2024, arXiv 2405.18816).

    x = x_1 = noise (here with the first guess, where alpha > 0)
    for t -> s in times:                                    (t = 1 noise, t = 0 data; the paper's time is 1 - t)
        `inner_steps` Adam steps of rate lr (t - s), by an optimiser new at every t, on
            weight |A D(x + (t - s) u) - y_s|^2 / (2 sigma_y^2 (1 - s)^2) + (t - s) div u - log p_t(x)
        x = x + (t - s) u

    u      = clean - noise at x, the velocity towards the data
    y_s    = (1 - s) y + s A D(x_1), the corrupted trajectory of the data
    div u  by one Hutchinson probe, e . (du/dx) e with random signs e
    -log p_t has the gradient noise / t, at the first time that of |x|^2 / 2

On a path other than the rectified flow, x, t and s are those of the flow with equal sigma/alpha.

| | paper | official code | here |
|---|---|---|---|
| weight of the misfit | lambda, by task | 100 to 10000, or 1 / (2 0.01^2 (1 - s)^2) | 1 / (2 sigma_y^2 (1 - s)^2) |
| lr (t - s) | 0.01 | 0.01 to 0.1 | 0.01 at 100 steps |
| inner_steps | 1 | 1 | 1 |
| grid | 100 even steps | 100, first t = 0.999 | `uniform`, 100 |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..linalg import dot
from ..priors.base import Prior
from ..priors.schedule import LinearFlow
from ..problem import Problem
from ..rng import ImageRng
from ..solver import Range, Solver
from ._start import noisy_first_guess

__all__ = ["FlowPriors"]


class State(NamedTuple):
    """The point of the path, and the data of the first one."""

    z: Tensor  # (B, *latent_shape)
    y_1: Tensor  # A D(x_1) (B, *data_shape)


@dataclass(frozen=True, kw_only=True)
class FlowPriors(Solver[State]):
    """Flow priors: at every time the most probable point whose next step explains the data corrupted alike.

    Arguments:
        weight: trust in the data relative to the prior.
        lr: learning rate of Adam per unit of flow time; a single step moves every entry by about lr (t - s).
        inner_steps: Adam steps per time.
    """

    needs_float32 = True
    times = "uniform"
    steps = 100

    weight: Annotated[float, Range(0)] = 1.0
    lr: Annotated[float, Range(0)] = 1.0
    inner_steps: Annotated[int, Range(0)] = 1

    def network_calls(self, steps: int) -> int:
        return steps * (self.inner_steps + 1)

    def init(self, t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> State:
        z = noisy_first_guess(t, problem, prior, rng)
        x = z / sum(prior.schedule(t))
        return State(z, problem.operator(prior.decode(x)))

    def step(self, state: State, t: Tensor, s: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> State:
        scale_t, scale_s = (sum(prior.schedule(u)) for u in (t, s))  # z = scale x
        flow_t, flow_s = (LinearFlow().time(prior.schedule.ratio(u)) for u in (t, s))
        y_s = (1 - flow_s) * problem.y + flow_s * state.y_1
        precision = self.weight / ((1 - flow_s) * problem.level).square()
        x = (state.z / scale_t).detach().clone()
        optimizer = torch.optim.Adam([x], lr=self.lr * float(flow_t - flow_s))
        for _ in range(self.inner_steps):
            e = rng.randn_like(x).sign()
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
                leaf = x.detach().requires_grad_(True)
                clean, noise = prior.predict(scale_t * leaf, t)
                u = clean - noise
                r = problem.operator(prior.decode(leaf + (flow_t - flow_s) * u)) - y_s
                (probe,) = torch.autograd.grad(dot(u, e).sum(), leaf, create_graph=True)
                loss = precision * dot(r, r) / 2 + (flow_t - flow_s) * dot(probe, e)
                (g,) = torch.autograd.grad(loss.sum(), leaf)
            x.grad = g + noise.detach() / flow_t
            optimizer.step()
        clean, noise = prior.predict(scale_t * x, t)
        return State(scale_s * (x + (flow_t - flow_s) * (clean - noise)), state.y_1)

    def estimate(self, state: State) -> Tensor:
        return state.z
