"""SGFM: source-guided flow matching (Wang, Harting, Barreau, Zavlanos & Johansson, ICLR 2026, arXiv 2508.14807).

With T the flow from the source x ~ q(x) = N(0, I) to latents and J(z) = -log p(y | D(z)), the points T(x) follow the
posterior exactly if x follows q(x) exp(-J(T(x))).  Only that density of the source has to be sampled:

    variant = "hmc":  x ~ N(0, I);  for every step, b growing to 1 over the share `burn_in` of the run,
        global_moves times
            x' = cos(phi) x + sin(phi) n,  n ~ N(0, I),  phi ~ U(0, pi / 2)         (pi / 2: afresh from the source)
            x  = x' with probability min(1, exp(b J(T(x)) - b J(T(x'))))
        v ~ N(0, I);  (x', v') = (x, v);  h = step size * U(0.7, 1.3)
        leapfrog_steps times
            v'     = v' - h / 2 * b grad J(T(x'))
            x', v' = cos(h) x' + sin(h) v', cos(h) v' - sin(h) x'
            v'     = v' - h / 2 * b grad J(T(x'))
        x  = x' with probability min(1, exp(H(x, v) - H(x', v'))),  H = |x|^2 / 2 + |v|^2 / 2 + b J(T(x))
        step size up or down with that probability, aiming at 0.8, by less and less

    variant = "opt-1", "opt-2":  x ~ N(0, I);  for every step, `evaluations` evaluations of L-BFGS on
        J(T(x)) + |x|^2 / 2   or   J(T(x)) + |x|^2 / 2 - (d - 2) log |x|

| | paper | here |
|---|---|---|
| trajectory | leapfrog in x and v | the source's part exactly: a rotation (Beskos, Pinski, Sanz-Serna & Stuart, 2011) |
| step size | by hand | adapted, per picture |
| b, global moves | – | against getting stuck between modes; every step leaves the density with b invariant |
| opt-1, opt-2 | the same; opt-2 is D-Flow's objective | the same |
| T | 3 to 9 Euler steps | 10 midpoint steps of the grid `karras`: 22 network calls |
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from ..linalg import dot, expand_to
from ..priors.base import Prior
from ..priors.schedule import LinearFlow
from ..problem import Problem
from ..rng import ImageRng
from ..solver import Range, Solver
from ._source import Descent, Objective, chi_nll, descend, start_descent, transport, transport_calls, value_grad_z

__all__ = ["SGFM"]

Variant = Literal["hmc", "opt-1", "opt-2"]
POWER = 5  # of the share of the burn-in that the likelihood has: small temperatures are passed at an even pace
TARGET = 0.8  # probability with which a trajectory should be accepted
GAIN = 2.0  # how fast the logarithm of the step size follows, at the start of the run


class Chain(NamedTuple):
    """The source points of one step."""

    x: Tensor  # (B, *latent_shape)
    z: Tensor  # T(x)
    energy: Tensor  # J(z) (B,)
    log_step: Tensor  # (B,)


@dataclass(frozen=True, kw_only=True)
class SGFM(Solver[Chain | Descent]):
    """Sampling of the posterior in the source space of the flow, where the prior is N(0, I); exact in the long run.

    That holds for "hmc", for the prior that `ode_steps` steps of the flow make; the optimisers find one point.

    Arguments:
        variant: "hmc" samples, "opt-1" and "opt-2" find the most probable source point, without and with the volume of
            spheres.
        ode_steps: midpoint steps of the flow, two network calls each.
        leapfrog_steps: of one trajectory.
        global_moves: proposals per step that may go anywhere, without a gradient.
        burn_in: share of the run in which the likelihood is switched on.
        evaluations: evaluations of the objective and its gradient per step of the optimising variants.
    """

    needs_float32 = True
    times = "uniform"
    steps = 60

    variant: Variant = "hmc"
    ode_steps: Annotated[int, Range(1)] = 10
    leapfrog_steps: Annotated[int, Range(1)] = 4
    global_moves: Annotated[int, Range(0)] = 2
    burn_in: Annotated[float, Range(0, 1)] = 0.75
    evaluations: Annotated[int, Range(1)] = 10

    @property
    def samples_posterior(self) -> bool:
        return self.variant == "hmc"

    def network_calls(self, steps: int) -> int:
        per_step = self.global_moves + 1 + self.leapfrog_steps if self.variant == "hmc" else self.evaluations
        return transport_calls(self.ode_steps) * (1 + steps * per_step)

    def init(self, t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Chain | Descent:
        shape = prior.latent_shape(problem.operator.image_shape)
        x = rng.randn(shape, dtype=problem.y.dtype, device=problem.y.device)
        if self.variant != "hmc":
            return start_descent(self._objective(problem, prior), x)
        z = transport(prior, x, self.ode_steps)
        return Chain(x, z, problem.nll(prior.decode(z)), x.new_full((len(x),), self._longest))

    def step(
        self, state: Chain | Descent, t: Tensor, s: Tensor, problem: Problem, prior: Prior, rng: ImageRng
    ) -> Chain | Descent:
        if isinstance(state, Descent):
            objective = self._objective(problem, prior)
            for _ in range(self.evaluations):
                state = descend(objective, state)
            return state
        done = 1 - float(LinearFlow().time(prior.schedule.ratio(s)))  # share of the run
        b = (done / self.burn_in) ** POWER if done < self.burn_in else 1.0
        x = state.x
        u = rng.rand((self.global_moves + 1, 2), dtype=x.dtype, device=x.device)  # (B, moves, 2)
        n = rng.randn((self.global_moves + 1, *x.shape[1:]), dtype=x.dtype, device=x.device)
        for k in range(self.global_moves):
            phi = expand_to(math.pi / 2 * u[:, k, 0], x)
            moved = phi.cos() * state.x + phi.sin() * n[:, k]
            z = transport(prior, moved, self.ode_steps)
            energy = problem.nll(prior.decode(z))
            taken = u[:, k, 1].log() < b * (state.energy - energy)
            state = _choose(taken, Chain(moved, z, energy, state.log_step), state)
        chain, probability = self._trajectory(state, b, 0.7 + 0.6 * u[:, -1, 0], n[:, -1], problem, prior)
        state = _choose(u[:, -1, 1] < probability, chain, state)
        log_step = state.log_step + GAIN * (1 - done) * (probability - TARGET)
        return state._replace(log_step=log_step.clamp(max=self._longest))

    def estimate(self, state: Chain | Descent) -> Tensor:
        return state.z

    @property
    def _longest(self) -> float:
        """Logarithm of the step size whose trajectories are a quarter of a turn: independent points of the source."""
        return math.log(math.pi / 2 / self.leapfrog_steps)

    def _trajectory(
        self, start: Chain, b: float, jitter: Tensor, v: Tensor, problem: Problem, prior: Prior
    ) -> tuple[Chain, Tensor]:
        """Where the trajectory from `start` with velocity v ends, and the probability of going there (B,)."""

        def energy_of(x: Tensor) -> tuple[Tensor, Tensor]:
            z = transport(prior, x, self.ode_steps)
            return problem.nll(prior.decode(z)), z

        def hamiltonian(x: Tensor, v: Tensor, energy: Tensor) -> Tensor:
            return dot(x, x) / 2 + dot(v, v) / 2 + b * energy

        x, h = start.x, expand_to(start.log_step.exp() * jitter, start.x)
        before = hamiltonian(x, v, start.energy)
        energy, g, z = value_grad_z(energy_of, x)
        for _ in range(self.leapfrog_steps):
            v = v - h / 2 * b * g
            x, v = h.cos() * x + h.sin() * v, h.cos() * v - h.sin() * x
            energy, g, z = value_grad_z(energy_of, x)
            v = v - h / 2 * b * g
        probability = (before - hamiltonian(x, v, energy)).clamp(max=0).exp().nan_to_num(0)
        return Chain(x, z, energy, start.log_step), probability

    def _objective(self, problem: Problem, prior: Prior) -> Objective:
        """What the optimising variants minimise, of source points x (B, *latent_shape), and T(x)."""

        def objective(x: Tensor) -> tuple[Tensor, Tensor]:
            z = transport(prior, x, self.ode_steps)
            source = chi_nll(x) if self.variant == "opt-2" else dot(x, x) / 2
            return problem.nll(prior.decode(z)) + source, z

        return objective


def _choose(accept: Tensor, new: Chain, old: Chain) -> Chain:
    """Row by row the new state where accepted, else the old one."""
    return Chain(*(torch.where(expand_to(accept, o), n, o) for n, o in zip(new, old, strict=True)))
