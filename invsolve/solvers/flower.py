"""FLOWER: a flow-matching solver for inverse problems (Pourya, El Rawas & Unser, ICLR 2026, arXiv 2509.26287).

    z = noise (here at the first time: first guess plus noise)
    for t -> s in times:
        z0   = clean endpoint at z_t                                        (destination)
        nu^2 = sigma_t^2 / (alpha_t^2 + sigma_t^2)
        z0   = argmin_z |A D(z) - y|^2 / sigma_y^2 + |z - z0|^2 / nu^2 + gamma kappa   (refinement)
               kappa ~ N(0, (nu^-2 + A^T A / sigma_y^2)^-1)
        z_s  = alpha_s z0 + sigma_s n,  n ~ N(0, I)                         (time progression)

mean and kappa together are one draw of the posterior of N(z0, nu^2) given y, made by a single proximal step from
z0 + nu e_1 for the data y + sigma_y e_2, e_1 and e_2 standard normal.  With gamma = 1 and a prior N(m, v I) of variance
v = data_std^2, every z_t then has its exact law given y, however few the steps.  On photographs, whose fine detail
varies far less than nu_t, gamma = 1 leaves noise in the picture.

| | paper | official code | here |
|---|---|---|---|
| gamma | 0 or 1 | 0 | 0 |
| data_std (nu^2 = v sigma^2 / (alpha^2 v + sigma^2)) | 1 | 1 | 1 |
| grid | 100 even steps | 100 even steps | `restoration`, 50 |
| start | noise | noise | regularised least squares plus noise |
| proximal step | closed form or conjugate gradients | 50 conjugate gradients | the same; six through a decoder |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from ..linalg import expand_to
from ..operators.base import LinearOperator
from ..priors.base import Prior
from ..problem import Problem
from ..rng import ImageRng
from ..solver import Range, Solver
from ._hold import proximal_step
from ._path import isotropic_std
from ._start import noisy_first_guess

__all__ = ["FLOWER"]


@dataclass(frozen=True, kw_only=True)
class FLOWER(Solver[Tensor]):
    """Denoise, refine by the data with the uncertainty of the denoised picture, add fresh noise of the next time.

    Arguments:
        gamma: uncertainty added to the refined picture: 0 takes its mean, 1 draws from its posterior.
        data_std: standard deviation of the clean latents in the assumed p(z_0 | z_t).
    """

    requires = LinearOperator
    times = "restoration"
    steps = 50

    gamma: Annotated[float, Range(0, 1)] = 0.0
    data_std: Annotated[float, Range(0.001)] = 1.0

    def init(self, t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Tensor:
        return noisy_first_guess(t, problem, prior, rng)

    def step(self, state: Tensor, t: Tensor, s: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Tensor:
        z0, y = prior.predict(state, t).clean, None
        nu = isotropic_std(prior, t, self.data_std)
        rho = (problem.level / nu).square()
        if self.gamma > 0:
            z0 = z0 + self.gamma * nu * rng.randn_like(z0)
            y = problem.y + self.gamma * expand_to(problem.level, problem.y) * rng.randn_like(problem.y)
        z0 = proximal_step(z0, problem, rho, prior, y)
        return prior.at(s, z0, rng.randn_like(z0))
