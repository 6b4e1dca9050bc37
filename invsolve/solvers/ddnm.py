"""DDNM and DDNM+: zero-shot image restoration using the denoising diffusion null-space model
(Wang, Yu & Zhang, ICLR 2023, arXiv 2212.00490).

With A = U diag(v) V^T and c = alpha_s sigma_y (c = 0 is DDNM):

    for t -> s in times:
        z0, eps = endpoints at z_t
        z0      = z0 + V diag(lambda_i) V^T (A^+ y - z0)            (= z0 + V diag(lambda_i / v_i) U^T (y - A z0))
        z_s     = alpha_s z0 + V diag(kept_i) V^T eps + V diag(fresh_i) V^T n,  n ~ N(0, I)

        component                  lambda_i                       kept_i                 fresh_i
        v_i > 0, v_i sigma_s >= c  1                              0                      sqrt(sigma_s^2 - c^2 / v_i^2)
        v_i > 0, v_i sigma_s < c   v_i sigma_s sqrt(1-eta^2) / c  0                      eta sigma_s
        v_i = 0                    0                              sqrt(1-eta^2) sigma_s  eta sigma_s

so that the noise of y and the fresh noise together have the level sigma_s of the path.  Without a spectrum
(non-circular blur, latent priors) v_i / (v_i^2 + (c / sigma_s)^2) takes the place of lambda_i / v_i, one proximal
step; on pixels a non-linear operator uses its pseudo-inverse with lambda = min(1, sigma_s / c).  Both then refresh
noise as in the null space, slightly more than needed, since how much of it came with y is not known.

| | paper | official code | here |
|---|---|---|---|
| eta | 0.85 | 0.85 | 0.85 |
| steps | 100 | 100 | 50 |
| grid | even steps | even steps | `from_data` |
| start | noise | noise | the first guess that y gives, with the noise of the path |
| time travel | for large holes | 1 | none |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..linalg import expand_to
from ..operators.base import LinearOperator, PinvOperator
from ..operators.spectral import SpectralOperator
from ..priors.base import Prior
from ..problem import Problem
from ..rng import ImageRng
from ..solver import Range, Solver
from ._hold import proximal_step
from ._path import transition
from ._start import noisy_first_guess

__all__ = ["DDNM"]


@dataclass(frozen=True, kw_only=True)
class DDNM(Solver[Tensor]):
    """Null-space diffusion (DDNM+): the data fix the range of A, the prior fills the null space; noise-aware.

    Arguments:
        eta: share of fresh noise in the null space, 0 to 1.
    """

    requires = PinvOperator
    times = "from_data"
    steps = 50

    eta: Annotated[float, Range(0, 1)] = 0.85

    def init(self, t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Tensor:
        return noisy_first_guess(t, problem, prior, rng)

    def step(self, state: Tensor, t: Tensor, s: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Tensor:
        z0, eps = prior.predict(state, t)
        alpha_s, sigma_s = prior.schedule(s)
        c = expand_to(alpha_s * problem.std, z0)  # (B, 1, 1, 1)
        eta, rest = self.eta, (1 - self.eta**2) ** 0.5
        operator = problem.operator

        if not isinstance(operator, SpectralOperator) or prior.has_decoder:  # no spectrum, or not in the space of z
            distrust = torch.where(c > 0, c / sigma_s, 0).flatten()  # infinite at the last step of a noisy problem
            z0 = self._consistent(z0, problem, distrust, prior)
            return transition(prior, s, z0, eps, eta * sigma_s, rng)

        def trust(v: Tensor) -> Tensor:  # lambda
            damped = v * sigma_s * rest / c.clamp_min(1e-30)
            return torch.where(v > 0, torch.where(v * sigma_s >= c, 1, damped), 0)

        def fresh(v: Tensor) -> Tensor:
            matched = (sigma_s.square() - (c / v.clamp_min(1e-30)).square()).clamp_min(0).sqrt()
            return torch.where((v > 0) & (v * sigma_s >= c), matched, eta * sigma_s)

        def kept(v: Tensor) -> Tensor:
            return torch.where(v > 0, 0, rest * sigma_s)

        z0 = z0 + operator.spectral(operator.pinv(problem.y) - z0, trust)
        noise = operator.spectral(eps, kept) + operator.spectral(rng.randn_like(eps), fresh)
        return alpha_s * z0 + noise

    def _consistent(self, z0: Tensor, problem: Problem, distrust: Tensor, prior: Prior) -> Tensor:
        """z0 made to explain y where no spectrum is at hand, trusting y less as c / sigma_s (B,) grows."""
        operator = problem.operator
        if isinstance(operator, LinearOperator) or prior.has_decoder:
            return proximal_step(z0, problem, distrust.square().clamp(1e-6, 1e6), prior)
        assert isinstance(operator, PinvOperator)
        return z0 + expand_to(1 / distrust.clamp_min(1), z0) * (operator.project(z0, problem.y) - z0)
