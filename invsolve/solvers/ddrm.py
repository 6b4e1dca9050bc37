"""DDRM: denoising diffusion restoration models (Kawar, Elad, Ermon & Song, NeurIPS 2022, arXiv 2201.11793).

With A = U diag(v) V^T, in the variance-exploding coordinates x = V^T z / alpha, and r = sigma_s / alpha_s:

    x_i = (U^T y)_i / v_i + sqrt(r_T^2 - sigma_y^2 / v_i^2) n_i if v_i r_T >= sigma_y, else r_T n_i
    for t -> s in times:
        z0, eps = endpoints at z_t
        z_s     = alpha_s V x,  n ~ N(0, I)

        component                  x_i
        v_i > 0, v_i r >= sigma_y  (1 - eta_b) z0_i + eta_b (U^T y)_i / v_i + sqrt(r^2 - eta_b^2 sigma_y^2 / v_i^2) n_i
        v_i > 0, v_i r < sigma_y   z0_i + sqrt(1 - eta_a^2) r ((U^T y)_i - v_i z0_i) / sigma_y + eta_a r n_i
        v_i = 0                    z0_i + sqrt(1 - eta_c^2) r eps_i + eta_c r n_i

z0_i, eps_i and n_i are components in the basis V.  The first two cases are z0 + V diag(lambda) V^T A^+ (y - A z0) with
lambda = eta_b, or sqrt(1 - eta_a^2) r v_i / sigma_y < 1.  For latent priors, where the singular basis of A D is not
known, v_i / (v_i^2 + (sigma_y / r)^2), one proximal step, takes the place of lambda / v_i, and noise is refreshed as
in the null space.

Of pixels that a mask hides the network knows little, so that their eps is well shorter than noise, and z_s made of it
has too little noise for its time: hence eta_c = 1 here.

| | paper | official code | here |
|---|---|---|---|
| eta_a | 0.85 | 0.85 | 0.85 |
| eta_b | 1 | 1 | 1 |
| eta_c | 0.85 | 0.85 | 1 |
| grid | 20 even steps | 20 even steps | `from_data`, 20 |
| start | as above | x scaled by 1 / r_T for alpha_T | as above; r_T n plus a regularised guess |
| noiseless data at the last step | y | z0 | y |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..linalg import expand_to
from ..operators.spectral import SpectralOperator
from ..priors.base import Prior
from ..problem import Problem
from ..rng import ImageRng
from ..solver import Range, Solver
from ._hold import proximal_step
from ._path import transition
from ._start import noisy_first_guess

__all__ = ["DDRM"]


@dataclass(frozen=True, kw_only=True)
class DDRM(Solver[Tensor]):
    """Restoration in the singular basis of A: every component follows the data or the prior, whichever is less noisy.

    Arguments:
        eta_a: share of fresh noise in the components that y knows less well than z_s.
        eta_b: trust in y in the components that it knows better.
        eta_c: share of fresh noise in the null space.
    """

    requires = SpectralOperator
    times = "from_data"
    steps = 20

    eta_a: Annotated[float, Range(0, 1)] = 0.85
    eta_b: Annotated[float, Range(0, 1)] = 1.0
    eta_c: Annotated[float, Range(0, 1)] = 1.0

    def init(self, t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Tensor:
        return noisy_first_guess(t, problem, prior, rng)

    def step(self, state: Tensor, t: Tensor, s: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Tensor:
        z0, eps = prior.predict(state, t)
        operator, (alpha, sigma) = problem.operator, prior.schedule(s)
        assert isinstance(operator, SpectralOperator)
        c = expand_to(alpha * problem.std, z0)  # (B, 1, 1, 1)
        eta_a, eta_b, eta_c = self.eta_a, self.eta_b, self.eta_c

        def pull(v: Tensor) -> Tensor:  # lambda
            return torch.where(v * sigma >= c, eta_b, (1 - eta_a**2) ** 0.5 * v * sigma / c.clamp_min(1e-30))

        def fresh(v: Tensor) -> Tensor:
            free = (sigma.square() - (eta_b * c / v.clamp_min(1e-30)).square()).clamp_min(0).sqrt()
            return torch.where(v > 0, torch.where(v * sigma >= c, free, eta_a * sigma), eta_c * sigma)

        def kept(v: Tensor) -> Tensor:
            return torch.where(v > 0, 0, (1 - eta_c**2) ** 0.5 * sigma)

        if prior.has_decoder:  # the singular basis of A D is not known
            rho = torch.where(c > 0, c / sigma, 0).flatten().square().clamp(1e-6, 1e6)
            return transition(prior, s, proximal_step(z0, problem, rho, prior), eps, eta_c * sigma, rng)
        x = z0 + operator.spectral(operator.pinv(-problem.residual(z0)), pull)
        return alpha * x + operator.spectral(eps, kept) + operator.spectral(rng.randn_like(x), fresh)
