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

The data must be a linear function of what the prior diffuses: pixels, not latents of a decoder.  Where they are precise
compared with the prior, a thousand particles are too few (docs/suites.md, `gaussian-100`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..linalg import dot
from ..operators.spectral import SpectralOperator
from ..priors.base import Prior
from ..problem import Problem
from ..rng import ImageRng
from ..solver import Range, Solver
from ._resampling import Resampling, resample

__all__ = ["MCGDiff"]

ROUNDING = 1e-6  # a component that is this close to its own noise is there


class State(NamedTuple):
    """The particles, and how many of them carried the weight."""

    z: Tensor  # (B, *latent_shape)
    ess: Tensor  # (G, steps so far), effective sample size of each group of particles


class Components(NamedTuple):
    """What a step does to every component, in the names of the box."""

    seen: Tensor  # whether it is compared with the data
    k: Tensor
    kept: Tensor  # factor of eps in m
    total: Tensor  # variance of b given z_t
    gain: Tensor  # K
    fresh: Tensor  # l
    carried: Tensor  # factor of x - z0 from q to s


@dataclass(frozen=True, kw_only=True)
class MCGDiff(Solver[State]):
    """Sequential Monte Carlo in the singular basis of A: samples of the posterior, given enough of them.

    The samples of one measurement are its particles; ask for hundreds.  `State.ess` far below their number says that
    they were too few, as a thousand are where the data are precise compared with the prior.

    Arguments:
        eta: share of fresh noise in a step; 1 is the ancestral step.  Without fresh noise the copies that resampling
            makes stay copies.
        resampling: `systematic` (one random number per group), or `multinomial` (one per particle).
    """

    requires = SpectralOperator
    interacting = True
    latents = False
    times = "vp"
    steps = 200
    published: ClassVar[Mapping[str, Any]] = {"eta": 0.85, "resampling": "multinomial"}

    eta: Annotated[float, Range(0.01, 1)] = 1.0
    resampling: Resampling = "systematic"

    @property
    def samples_posterior(self) -> bool:
        return True

    def init(self, t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> State:
        operator, (alpha, sigma) = _spectral(problem), prior.schedule(t)
        back = operator.adjoint(problem.y)  # V diag(v^2) b
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
        operator, rho = _spectral(problem), _noise_ratio(problem)
        back = operator.adjoint(problem.y)  # V diag(v^2) b
        (alpha_t, sigma_t), (alpha_s, _) = prior.schedule(t), prior.schedule(s)
        r_t, r_s = prior.schedule.ratio(t), prior.schedule.ratio(s)

        def weigh(v: Tensor) -> list[Tensor]:
            """Factors of z0, eps and b in (m - b) / std(b | z_t), and of z and b in the same for the potential."""
            c = self._components(rho(v), alpha_t, sigma_t, r_t, r_s)
            now = torch.where(c.seen, c.total.rsqrt(), 0)
            before = torch.where(c.seen, (sigma_t.square() - (alpha_t * rho(v)).square()).clamp_min(0).rsqrt(), 0)
            return [now, now * c.kept, -_over_square(now, v), before, -alpha_t * _over_square(before, v)]

        def move(v: Tensor) -> list[Tensor]:
            """Factors of z0, eps, b and n in the particles at s."""
            c = self._components(rho(v), alpha_t, sigma_t, r_t, r_s)
            rest = c.carried * (1 - c.gain)
            noise = torch.hypot(c.carried * c.k * (1 - c.gain).sqrt(), c.fresh)
            return [1 - c.carried * c.gain, rest * c.kept, _over_square(c.carried * c.gain, v), noise]

        ahead_z0, ahead_eps, ahead_b, behind_z, behind_b = _spectral_terms(operator, [z0, eps, back, z, back], weigh)
        ahead, behind = ahead_z0 + ahead_eps + ahead_b, behind_z + behind_b
        log_w = (dot(behind, behind) - dot(ahead, ahead)) / 2
        parents, _, ess = resample(log_w, problem, self.resampling, 1.0, rng)
        z0, eps = z0[parents], eps[parents]
        x = sum(_spectral_terms(operator, [z0, eps, back, rng.randn_like(z0)], move))
        return State(alpha_s * x, torch.cat([state.ess, ess[:, None]], dim=1))

    def _components(self, rho: Tensor, alpha_t: Tensor, sigma_t: Tensor, r_t: Tensor, r_s: Tensor) -> Components:
        """The scalars of the box for components with the noise rho."""
        seen = rho * alpha_t < sigma_t * (1 - ROUNDING)
        q = torch.where(seen, torch.maximum(r_s, rho), r_s)
        k = self.eta * q * (1 - (q / r_t).square()).clamp_min(0).sqrt()
        total = k.square() + (q.square() - rho.square()).clamp_min(0)
        fresh = self.eta * r_s * (1 - (r_s / q).square()).clamp_min(0).sqrt().nan_to_num(0)
        return Components(
            seen=seen,
            k=k,
            kept=(q.square() - k.square()).clamp_min(0).sqrt(),
            total=total,
            gain=torch.where(seen, k.square() / total, 0),
            fresh=fresh,
            carried=torch.where(q > 0, (r_s.square() - fresh.square()).clamp_min(0).sqrt() / q, 0),
        )

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


def _spectral_terms(
    operator: SpectralOperator, terms: list[Tensor], factors: Callable[[Tensor], list[Tensor]]
) -> tuple[Tensor, ...]:
    """Every term (B, *image_shape) with its own factors of the singular values, in one pass."""
    n = len(terms[0])

    def stacked(v: Tensor) -> Tensor:
        return torch.cat([f.expand(n, *f.shape[1:]) for f in torch.broadcast_tensors(*factors(v))])

    return operator.spectral(torch.cat(terms), stacked).chunk(len(terms))


def _over_square(factor: Tensor, v: Tensor) -> Tensor:
    """The factor over v^2, which takes A^T y to a multiple of b; zero in the null space."""
    return torch.where(v > 0, factor / v.square().clamp_min(1e-30), 0)
