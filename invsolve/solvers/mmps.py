"""MMPS: moment matching posterior sampling, from Learning diffusion priors from observations by expectation
maximization (Rozet, Andry, Lanusse & Louppe, NeurIPS 2024, arXiv 2405.13712).

    for t -> s in times:
        z0  = E[z_0 | z_t],  J = d z0 / d z_t
        V   = sigma_t^2 / alpha_t J^T                        (the covariance of z_0 given z_t, by Tweedie)
        w   = (sigma_y^2 + A V A^T)^-1 (y - A z0)            (GMRES, krylov_steps products with V)
        z0  = z0 + V A^T w                                   (E[z_0 | z_t, y] were p(z_0 | z_t) a Gaussian)
        eps = (z_t - alpha_t z0) / sigma_t
        z_s = alpha_s z0 + sqrt(sigma_s^2 - c1^2) eps + c1 n,  n ~ N(0, I)
        c1  = eta * the standard deviation of the ancestral step

Every product with V is a gradient through the network, and V is never formed.  The Jacobian of a network is neither
quite symmetric nor quite positive, on which conjugate gradients diverge within a few steps; GMRES does not, and has the
same limit.  It is preconditioned by (sigma_y^2 + r^2 A A^T)^-1, r^2 = sigma_t^2 / (alpha_t^2 + sigma_t^2), so that its
first direction is that of PiGDM.  For a decoder D the operator is A D, linearised at z0.

| | paper | azula | here |
|---|---|---|---|
| solver | conjugate gradients, few steps | conjugate gradients or GMRES, 1 step | GMRES, krylov_steps = 3 |
| sampler | any | any | DDIM with eta = 1 |
| grid | – | – | `karras`, 100 |
| sigma_y without noise | – | – | 1/255, the tolerance |

Every z_t has its law given y for Gaussian priors and linear operators in the limit of many steps; the error falls like
one over their number.  The grid `restoration` starts too low for that, but gives sharper photographs in few steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from ..operators.base import LinearOperator
from ..priors.base import Prior
from ..problem import Problem
from ..rng import ImageRng
from ..solver import Range, Solver
from ._moments import match_moments
from ._path import ancestral_std, transition
from ._start import noisy_first_guess

__all__ = ["MMPS"]


@dataclass(frozen=True, kw_only=True)
class MMPS(Solver[Tensor]):
    """Moment matching: the network's Jacobian is the covariance with which the data correct its estimate.

    It samples the posterior of Gaussian priors; where p(z_0 | z_t) has several modes its weights of them are off.

    Arguments:
        krylov_steps: GMRES steps per time step, each a gradient through the network.
        eta: share of fresh noise; 1 is the ancestral (DDPM) step, 0 the deterministic DDIM step.
    """

    requires = LinearOperator
    times = "karras"
    steps = 100

    krylov_steps: Annotated[int, Range(1, 1000)] = 3
    eta: Annotated[float, Range(0, 1)] = 1.0

    def init(self, t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Tensor:
        return noisy_first_guess(t, problem, prior, rng)

    def step(self, state: Tensor, t: Tensor, s: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Tensor:
        alpha_t, sigma_t = prior.schedule(t)
        moments = match_moments(state, t, problem, prior, self.krylov_steps)
        clean = moments.clean + moments.gain * moments.pull
        eps = (state - alpha_t * clean) / sigma_t
        return transition(prior, s, clean, eps, ancestral_std(prior, t, s, self.eta), rng)
