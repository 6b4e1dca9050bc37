"""A package of somebody else: a solver, an operator and a prior, added to invsolve by entry points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from invsolve import LinearOperator, Prior, Problem, Solver
from invsolve.linalg import expand_to
from invsolve.operators.base import LinearOperator as Linear
from invsolve.priors import Endpoints, LinearFlow
from invsolve.rng import ImageRng
from invsolve.solver import Range
from invsolve.solvers._hold import proximal_step


class ExampleMirror(LinearOperator):
    """y = x mirrored at its vertical axis."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(-1)

    def adjoint(self, y: Tensor) -> Tensor:
        return y.flip(-1)


@dataclass(frozen=True, kw_only=True)
class ExampleSteps(Solver[Tensor]):
    """A proximal step on the data in every step of the flow.

    Arguments:
        weight: trust in the prior.
    """

    requires = Linear
    times = "restoration"
    steps = 20

    weight: Annotated[float, Range(0.01)] = 1.0

    def init(self, t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Tensor:
        shape = prior.latent_shape(problem.operator.image_shape)
        return prior.schedule(t)[1].to(problem.y) * rng.randn(shape, dtype=problem.y.dtype, device=problem.y.device)

    def step(self, state: Tensor, t: Tensor, s: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Tensor:
        clean = prior.predict(state, t).clean
        rho = self.weight * (problem.level / prior.schedule.ratio(t)).square()
        clean = proximal_step(clean, problem, rho.clamp_min(1e-5), prior)
        return prior.at(s, clean, rng.randn_like(clean))


class ExampleFlat(Prior):
    """Pictures of white noise, whose posterior is known."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule = LinearFlow()

    def predict(self, z: Tensor, t: Tensor) -> Endpoints:
        alpha, sigma = (expand_to(a.to(z), z) for a in self.schedule(t))
        total = alpha.square() + sigma.square()
        return Endpoints(alpha / total * z, sigma / total * z)


def example_flat(_dtype: torch.dtype = torch.float32) -> Prior:
    """White noise as a picture."""
    return ExampleFlat()
