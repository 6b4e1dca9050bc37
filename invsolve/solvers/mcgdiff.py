"""MCGdiff: Monte Carlo guided diffusion for Bayesian linear inverse problems
(Cardoso, Janati El Idrissi, Le Corff & Moulines, ICLR 2024, arXiv 2308.07983).

A sequential Monte Carlo sampler: exact for many particles, many steps and an exact prior.  With A = U diag(v) V^T, all
in the basis V and in the variance-exploding coordinates x = z / alpha, r = sigma / alpha; component i of the data is
b_i = (U^T y)_i / v_i with the noise rho_i = sigma_y / v_i.  It is taken for the value of x_i at the time at which
r = rho_i, so before that, x_i given b_i is known up to its potential N(x_i; b_i, r^2 - rho_i^2).

    x_i = K b_i + p sqrt(1 - K) n_i,  p^2 = 1 + r^2,  K = p^2 / (p^2 + r^2 - rho_i^2)         (N particles)
    for t -> s in times:
        z0, eps = endpoints at z_t
        q_i     = max(r_s, rho_i)                             (where component i is compared with the data)
        k_i     = eta q_i sqrt(1 - q_i^2 / r_t^2)             (standard deviation of the DDIM step to q_i)
        m_i     = z0_i + sqrt(q_i^2 - k_i^2) eps_i            (its mean)
        weight  = prod_i N(b_i; m_i, k_i^2 + q_i^2 - rho_i^2) / N(b_i; x_i, r_t^2 - rho_i^2)
        resample the particles by their weights
        x_i     = K b_i + (1 - K) m_i + k_i sqrt(1 - K) n_i,  K = k_i^2 / (k_i^2 + q_i^2 - rho_i^2)
        x_i     = z0_i + sqrt(r_s^2 - l_i^2) (x_i - z0_i) / q_i + l_i n_i,  l_i = eta r_s sqrt(1 - r_s^2 / q_i^2)

Components with rho_i >= r_t, among them the null space, have no data: q_i = r_s, K = 0 and no part in the weight.  The
last line is the second part of the step of a component that passes rho_i between t and s; the others are at q_i = r_s.

| | paper | official code | here |
|---|---|---|---|
| rho_i between two times | on the grid | moved to the nearest time | where it is |
| start | given the data | N(0, I), unweighted | given the data |
| eta | 0.6 at 20 steps, 0.85 at 100 | the same | 1 |
| variance of the potential at rho_i | 0 | 1e-4 | 0 |
| resampling | multinomial | multinomial | systematic |
| noiseless data | a case of its own | | the tolerance for sigma_y |
| particles | 1000 | 1000, one or all returned | all returned |

The data must be a linear function of what the prior diffuses: pixels, not latents of a decoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..linalg import dot
from ..operators.spectral import SpectralOperator
from ..priors.base import Prior
from ..problem import Problem
from ..rng import ImageRng
from ..solver import Solver, check_range
from ._resampling import Resampling, check_resampling, resample

__all__ = ["MCGDiff"]

ROUNDING = 1e-6  # a component that is this close to its own noise is there


class State(NamedTuple):
    """The particles, and how many of them carried the weight."""

    z: Tensor  # (B, *latent_shape)
    ess: Tensor  # (G, steps so far), effective sample size of each group of particles


@dataclass(frozen=True, kw_only=True)
class MCGDiff(Solver[State]):
    """Sequential Monte Carlo in the singular basis of A: samples of the posterior, given enough of them.

    The samples of one measurement are its particles; ask for hundreds.  `State.ess` far below their number says that
    they were too few.

    Arguments:
        eta: share of fresh noise in a step; 1 is the ancestral step.  Without fresh noise the copies that resampling
            makes stay copies.
        resampling: `systematic` (one random number per group), or `multinomial` (one per particle).
    """

    requires = SpectralOperator
    samples_posterior = True
    interacting = True
    latents = False
    times = "vp"
    steps = 200

    eta: float = 1.0
    resampling: Resampling = "systematic"

    def __post_init__(self) -> None:
        check_range(self, 0.01, 1, "eta")
        check_resampling(self, self.resampling)

    def init(self, t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> State:
        operator, (alpha, sigma) = _spectral(problem), prior.schedule(t)
        back = operator.adjoint(problem.y)  # V diag(v^2) b
        if prior.encode(back) is not back:
            raise TypeError("MCGDiff needs a prior of pixels, and this one has a decoder; use for example tds or daps.")
        rho, p = _noise_ratio(problem), torch.hypot(alpha, sigma)

        def gain(v: Tensor) -> Tensor:  # K
            left = (sigma.square() - (alpha * rho(v)).square()).clamp_min(0)
            return torch.where(rho(v) * alpha < sigma, p.square() / (p.square() + left), 0)

        z = operator.spectral(back, lambda v: alpha * _over_square(gain(v), v))
        z = z + operator.spectral(rng.randn_like(back), lambda v: p * (1 - gain(v)).sqrt())
        return State(z, z.new_zeros(len(z) // problem.particles, 0))

    def step(self, state: State, t: Tensor, s: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> State:
        z = state.z
        z0, eps = prior.predict(z, t)
        operator, rho, eta = _spectral(problem), _noise_ratio(problem), self.eta
        back = operator.adjoint(problem.y)  # V diag(v^2) b
        (alpha_t, sigma_t), (alpha_s, _) = prior.schedule(t), prior.schedule(s)
        r_t, r_s = prior.schedule.ratio(t), prior.schedule.ratio(s)

        def seen(v: Tensor) -> Tensor:
            return rho(v) * alpha_t < sigma_t * (1 - ROUNDING)

        def q(v: Tensor) -> Tensor:
            return torch.where(seen(v), torch.maximum(r_s, rho(v)), r_s)

        def k(v: Tensor) -> Tensor:
            return eta * q(v) * (1 - (q(v) / r_t).square()).clamp_min(0).sqrt()

        def kept(v: Tensor) -> Tensor:  # of eps in m
            return (q(v).square() - k(v).square()).clamp_min(0).sqrt()

        def total(v: Tensor) -> Tensor:  # variance of b given z_t
            return k(v).square() + (q(v).square() - rho(v).square()).clamp_min(0)

        def gain(v: Tensor) -> Tensor:  # K
            return torch.where(seen(v), k(v).square() / total(v), 0)

        def fresh(v: Tensor) -> Tensor:  # l
            return eta * r_s * (1 - (r_s / q(v)).square()).clamp_min(0).sqrt().nan_to_num(0)

        def carried(v: Tensor) -> Tensor:  # of x - z0 from q to s
            return torch.where(q(v) > 0, (r_s.square() - fresh(v).square()).clamp_min(0).sqrt() / q(v), 0)

        def now(v: Tensor) -> Tensor:  # one over the standard deviation of b given z_t, and below by the potential
            return torch.where(seen(v), total(v).rsqrt(), 0)

        def before(v: Tensor) -> Tensor:
            return torch.where(seen(v), (sigma_t.square() - (alpha_t * rho(v)).square()).clamp_min(0).rsqrt(), 0)

        ahead = operator.spectral(z0, now) + operator.spectral(eps, lambda v: now(v) * kept(v))
        ahead = ahead - operator.spectral(back, lambda v: _over_square(now(v), v))
        behind = operator.spectral(z, before) - alpha_t * operator.spectral(back, lambda v: _over_square(before(v), v))
        log_w = (dot(behind, behind) - dot(ahead, ahead)) / 2
        parents, _, ess = resample(log_w, problem, self.resampling, 1.0, rng)
        z0, eps = z0[parents], eps[parents]

        x = operator.spectral(z0, lambda v: 1 - carried(v) * gain(v))
        x = x + operator.spectral(eps, lambda v: carried(v) * (1 - gain(v)) * kept(v))
        x = x + operator.spectral(back, lambda v: _over_square(carried(v) * gain(v), v))
        n = rng.randn_like(x)
        x = x + operator.spectral(n, lambda v: torch.hypot(carried(v) * k(v) * (1 - gain(v)).sqrt(), fresh(v)))
        return State(alpha_s * x, torch.cat([state.ess, ess[:, None]], dim=1))

    def estimate(self, state: State) -> Tensor:
        return state.z


def _spectral(problem: Problem) -> SpectralOperator:
    assert isinstance(problem.operator, SpectralOperator)
    return problem.operator


def _noise_ratio(problem: Problem) -> Callable[[Tensor], Tensor]:
    """The ratio rho = sigma_y / v as a function of the singular value v; infinite in the null space."""
    level = problem.level[:, None, None, None]
    level = level[:1] if (level == level[0]).all() else level  # one set of factors for all rows
    return lambda v: torch.where(v > 0, level / v, torch.inf)


def _over_square(factor: Tensor, v: Tensor) -> Tensor:
    """The factor over v^2, which takes A^T y to a multiple of b; zero in the null space."""
    return torch.where(v > 0, factor / v.square().clamp_min(1e-30), 0)
