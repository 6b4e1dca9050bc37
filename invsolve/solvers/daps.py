"""DAPS: improving diffusion inverse problem solving with decoupled noise annealing
(Zhang, Chu, Berner, Meng, Anandkumar & Song, CVPR 2025, arXiv 2407.01521).

    for t -> s in times:
        z0   = end of the probability flow from z_t         (`ode_steps` Euler steps)
        z0_y ~ N(z0, r_t^2 I) p(y | z0_y)                   (`inner`)
        z_s  = alpha_s z0_y + sigma_s n,  n ~ N(0, I)

    inner = "langevin":  u = z0 + r_t n,  then langevin_steps times
        u = u - h (grad |A D(u) - y|^2 / 2 sigma_y^2 + (u - z0) / r_t^2) + sqrt(2 h) n
        h = step_size / (L / sigma_y^2 + 1 / r_t^2),  L the largest curvature of |A D(u) - y|^2 / 2 at z0
    inner = "exact":  one draw by a proximal step
        z0_y = argmin_u |A D(u) - y - sigma_y n_2|^2 + (sigma_y / r_t)^2 |u - z0 - r_t n_1|^2

| | paper | official code | here |
|---|---|---|---|
| r_t | sigma_t / alpha_t | the same | `spread` times that of a signal with standard deviation `data_std` |
| spread | – | – | 0.7 |
| start of the chain | z0 | z0 | a draw of N(z0, r_t^2): only what y shows must move |
| h | tuned per task | 1e-5 to 1e-4, decayed to 1/100 | from the curvature (of a codec a lower bound), step_size 0.2 |
| langevin_steps | 100 | 100 | 30 |
| sigma_y | beta_y | 0.01 for a noise of 0.05 | the noise level |
| ode_steps | 5 | 5 | 2 |
| start | noise | noise | the first guess that y gives, with the noise of the path |
| grid | sigma 100 to 0.1, rho 7, 200 steps | the same | `restoration`, 50 steps |

The two kinds draw from the same Gaussian, Langevin's chain up to a share step_size / 4 of the variance along y, and it
also takes operators that are not linear and decoders.  Through a decoder the proximal step is a few conjugate
gradients, exact in name only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from ..linalg import dot, expand_to, grad
from ..operators.base import LinearOperator
from ..priors.base import Prior
from ..priors.schedule import LinearFlow
from ..problem import Problem
from ..rng import ImageRng
from ..sample import follow_flow
from ..solver import Range, Solver
from ..times import restoration
from ._descent import curvature
from ._hold import proximal_step
from ._path import isotropic_std
from ._start import noisy_first_guess

__all__ = ["DAPS"]

Inner = Literal["langevin", "exact"]
LOWEST, HIGHEST = 0.01, 1000.0  # sigma/alpha between which the inner grid runs
ROUNDS = 4  # of power iteration per step; the direction is kept from step to step


class State(NamedTuple):
    """The point of the path, and the direction in which the misfit is most curved."""

    z: Tensor  # (B, *latent_shape)
    steepest: Tensor  # the same shape


@dataclass(frozen=True, kw_only=True)
class DAPS(Solver[State]):
    """Decoupled annealing: denoise fully, draw from the data around it, and put all the noise back.

    Arguments:
        ode_steps: network calls for one clean end.
        inner: how the draw given y is made: "langevin", for every operator and prior, or "exact", for linear ones.
        langevin_steps: steps of the chain.
        step_size: of the chain, as a share of the inverse of the largest curvature; stable below 2.
        spread: r_t in units of the standard deviation of an isotropic signal given z_t.
        data_std: standard deviation of that signal; spread 1 and a large value give the paper's r_t.
    """

    times = "restoration"
    steps = 50

    ode_steps: Annotated[int, Range(1)] = 2
    inner: Inner = "langevin"
    langevin_steps: Annotated[int, Range(0)] = 30
    step_size: Annotated[float, Range(0, 2)] = 0.2
    spread: Annotated[float, Range(0.001, HIGHEST)] = 0.7
    data_std: Annotated[float, Range(0.001, HIGHEST)] = 0.2

    def network_calls(self, steps: int) -> int:
        return steps * self.ode_steps

    def check(self, problem: Problem, prior: Prior | None = None) -> None:
        super().check(problem, prior)
        if self.inner == "exact" and not isinstance(problem.operator, LinearOperator):
            raise TypeError(
                f"DAPS: inner='exact' needs a linear operator, and {type(problem.operator).__name__} is not one; use "
                "inner='langevin'."
            )

    def init(self, t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> State:
        z = noisy_first_guess(t, problem, prior, rng)
        return State(z, rng.randn_like(z))

    def step(self, state: State, t: Tensor, s: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> State:
        flow = LinearFlow()
        ratio = min(float(prior.schedule.ratio(t)), HIGHEST)
        inner = prior.schedule.time(flow.ratio(restoration(self.ode_steps, ratio, LOWEST))).to(t)
        z0 = follow_flow(prior, state.z, torch.cat([t[None], inner[1:]]))
        r_t = self.spread * isotropic_std(prior, t, self.data_std)
        draw = self._langevin if self.inner == "langevin" else self._exact
        z0_y, steepest = draw(z0, state.steepest, r_t, problem, prior, rng)
        return State(prior.at(s, z0_y, rng.randn_like(z0_y)), steepest)

    def estimate(self, state: State) -> Tensor:
        return state.z

    def _langevin(
        self, z0: Tensor, steepest: Tensor, r: Tensor, problem: Problem, prior: Prior, rng: ImageRng
    ) -> tuple[Tensor, Tensor]:
        """A draw of N(z0, r^2) p(y | .) by unadjusted Langevin steps, and the direction of the largest curvature."""
        largest, steepest = curvature(problem, prior.decode, z0, steepest, ROUNDS)
        precision = 1 / problem.level.square()
        h = self.step_size / (largest * precision + 1 / r.square())

        def energy(u: Tensor) -> Tensor:  # -log of the density (B,)
            misfit, shift = problem.residual(prior.decode(u)), u - z0
            return precision * dot(misfit, misfit) / 2 + dot(shift, shift) / (2 * r.square())

        u = z0 + r * rng.randn_like(z0)
        for _ in range(self.langevin_steps):
            u = u - expand_to(h, u) * grad(energy, u) + expand_to((2 * h).sqrt(), u) * rng.randn_like(u)
        return u, steepest

    def _exact(
        self, z0: Tensor, steepest: Tensor, r: Tensor, problem: Problem, prior: Prior, rng: ImageRng
    ) -> tuple[Tensor, Tensor]:
        """The same draw by one proximal step between perturbed data and a perturbed clean end."""
        z = z0 + r * rng.randn_like(z0)
        y = problem.y + expand_to(problem.std, problem.y) * rng.randn_like(problem.y)
        return proximal_step(z, problem, (problem.level / r).square(), prior, y), steepest
