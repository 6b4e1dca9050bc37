"""D-Flow: differentiating through flows for controlled generation (Ben-Hamu, Puny, Gat, Karrer, Singer & Lipman,
ICML 2024, arXiv 2402.14017).

    x = sqrt(blend) T^-1(x_y) + sqrt(1 - blend) n,  n ~ N(0, I)        (x_y: a picture made of the data)
    for every step:
        x = `evaluations` evaluations of L-BFGS on  L(x) = -log p(y | D(T(x))) + weight R(x)
        R = |x|^2 / 2 - (d - 2) log |x|                                (-log of the chi-squared density of |x|^2)
    z = T(x)

T carries source points of d entries along the flow by the midpoint rule.  The times of the run only count the steps.

| | paper | PnP-Flow's version | here |
|---|---|---|---|
| objective | misfit, no R for images | |A T(x) - y|^2 + lambda R | -log p(y | x) + weight R |
| weight | – | 0.001: 0.2 of the noise 0.05 in units of -log p | 1 |
| R | |x|^2 / 2 - (d - 1) log |x|, for some tasks | the same with the sign reversed | with d - 2 |
| blend | 0.1 | 0.1 | 0.1 |
| x_y | A^T y, or y | A^T y | regularised least squares |
| T | midpoint, 6 points even in time | 6 points | midpoint, 6 steps of the grid `karras` |
| optimiser | L-BFGS, 20 iterations, strong Wolfe | the same, 3 to 20 times | L-BFGS, 10 evaluations, 10 times |

The published line search looks at the sum over the batch, and a step that is good for one picture waits for the others;
here every picture has its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from ..priors.base import Prior
from ..problem import Problem, first_guess
from ..rng import ImageRng
from ..sample import follow_flow
from ..solver import Range, Solver
from ..times import make_times
from ._source import Descent, Objective, chi_nll, descend, start_descent, transport, transport_calls

__all__ = ["DFlow"]


@dataclass(frozen=True, kw_only=True)
class DFlow(Solver[Descent]):
    """D-Flow: the picture whose source point explains the data best, found by gradients through the whole flow.

    Arguments:
        weight: trust in the source density relative to the likelihood; 1 is its most probable point.
        blend: share of the variance that the inverted first guess has in the first source point.
        ode_steps: midpoint steps of the flow, two network calls each.
        evaluations: evaluations of the objective and its gradient per step.
    """

    needs_float32 = True
    times = "uniform"
    steps = 10

    weight: Annotated[float, Range(0)] = 1.0
    blend: Annotated[float, Range(0, 1)] = 0.1
    ode_steps: Annotated[int, Range(1)] = 6
    evaluations: Annotated[int, Range(1)] = 10

    def network_calls(self, steps: int) -> int:
        one = transport_calls(self.ode_steps)
        inversion = 2 * self.ode_steps - 2
        return inversion + one + steps * self.evaluations * one

    def init(self, t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Descent:
        z = prior.encode(first_guess(problem))
        back = make_times("karras", self.ode_steps, prior.schedule).to(z).flip(0)[1:]  # from the last time above 0
        alpha, _ = prior.schedule(back[0])
        x = follow_flow(prior, alpha * z, back, midpoint=True) / prior.schedule(back[-1])[1]
        x = self.blend**0.5 * x + (1 - self.blend) ** 0.5 * rng.randn_like(x)
        return start_descent(self._objective(problem, prior), x)

    def step(self, state: Descent, t: Tensor, s: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Descent:
        objective = self._objective(problem, prior)
        for _ in range(self.evaluations):
            state = descend(objective, state)
        return state

    def estimate(self, state: Descent) -> Tensor:
        return state.z

    def _objective(self, problem: Problem, prior: Prior) -> Objective:
        """L of source points x (B, *latent_shape), and T(x)."""

        def objective(x: Tensor) -> tuple[Tensor, Tensor]:
            z = transport(prior, x, self.ode_steps)
            return problem.nll(prior.decode(z)) + self.weight * chi_nll(x), z

        return objective
