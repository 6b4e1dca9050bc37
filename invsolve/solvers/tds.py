"""TDS: practical and asymptotically exact conditional sampling in diffusion models
(Wu, Trippe, Naesseth, Blei & Cunningham, NeurIPS 2023, arXiv 2306.17775): the twisted diffusion sampler.

A sequential Monte Carlo sampler for any operator that can be differentiated, and through any decoder D: exact for many
particles, many steps and an exact prior.

    z_T = hypot(alpha_T, sigma_T) n,  n ~ N(0, I),  w = 1     (N particles)
    for t -> s in times:
        z0, eps = endpoints at z_t
        twist   = a guess of p(y | z_t) made of z0; p(y | D(z0)) itself in the last step
        w       = w * twist
        resample the particles by their weights, after which w = 1, if few carry the weight or s = 0
        k       = eta * the standard deviation of the ancestral step
        m       = alpha_s z0 + sqrt(sigma_s^2 - k^2) eps
        delta   = (alpha_s sigma_t^2 / alpha_t - sigma_t sqrt(sigma_s^2 - k^2)) grad_{z_t} log twist
        z_s     = m + delta + k n
        w       = w N(z_s; m, k^2) / (N(z_s; m + delta, k^2) twist)

The factor of the gradient is what the step from t to s makes of a change of the score.  In the last step k = 0, and z_s
is the z0 for which the weight was taken, without delta.

| | paper | here |
|---|---|---|
| twist | p(y | z0) | N(y; A D(z0), r^2 A A^T + sigma_y^2), r^2 = Var[z_0 | z_t] were z_0 ~ N(m, data_std^2 I) |
| the same, krylov_steps | | N(y; A z0, A V A^T + sigma_y^2) without its determinant; V as in `mmps` |
| twist where A is not linear | p(y | z0) | p(y | D(z0)) to the power sigma_y^2 / (r^2 + sigma_y^2) |
| step | ancestral | DDIM's with eta = 1, which is the ancestral one |
| resampling | systematic, every step or when needed | systematic, every step; `resample_below` |
| noiseless data | a mask: exact | the tolerance for sigma_y |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from ..linalg import dot
from ..operators.base import LinearOperator
from ..priors.base import Prior
from ..problem import Problem
from ..rng import ImageRng
from ..solver import Range, Solver
from ._moments import match_moments
from ._path import ancestral_std, isotropic_std
from ._resampling import Resampling, resample

__all__ = ["TDS"]


class State(NamedTuple):
    """The particles with the weights that the next twist completes, and how many of them carried the weight."""

    z: Tensor  # (B, *latent_shape)
    log_w: Tensor  # (B,)
    ess: Tensor  # (G, steps so far), effective sample size of each group of particles


@dataclass(frozen=True, kw_only=True)
class TDS(Solver[State]):
    """Sequential Monte Carlo with guided proposals: samples of the posterior of any operator, given enough of them.

    The samples of one measurement are its particles; ask for hundreds.  `State.ess` far below their number says that
    they were too few.

    Arguments:
        krylov_steps: 0, or the products, each a gradient through the network, with the covariance of z_0 given z_t
            that take the place of r^2 in the twist of a linear operator.  Where the entries of z_0 depend on each other
            and the data are precise, no number of particles makes up for a twist without it.
        data_std: standard deviation of the clean latents in the assumed p(z_0 | z_t) of the twist.
        eta: share of fresh noise in a step; 1 is the ancestral step.
        resample_below: share of effective particles below which they are resampled before the last step; 1 is always.
        resampling: `systematic` (one random number per group), or `multinomial` (one per particle).
    """

    interacting = True
    times = "vp"
    steps = 100

    krylov_steps: Annotated[int, Range(0, 1000)] = 0
    data_std: Annotated[float, Range(0.001)] = 1.0
    eta: Annotated[float, Range(0.01, 1)] = 1.0
    resample_below: Annotated[float, Range(0, 1)] = 1.0
    resampling: Resampling = "systematic"

    @property
    def samples_posterior(self) -> bool:
        return True

    def check(self, problem: Problem, prior: Prior | None = None) -> None:
        super().check(problem, prior)
        if self.krylov_steps and not isinstance(problem.operator, LinearOperator):
            raise TypeError(
                f"TDS: krylov_steps={self.krylov_steps} needs a linear operator, and {type(problem.operator).__name__} "
                "is none; leave krylov_steps at 0."
            )

    def init(self, t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> State:
        y = problem.y
        n = rng.randn(prior.latent_shape(problem.operator.image_shape), dtype=y.dtype, device=y.device)
        ess = y.new_zeros(len(y) // problem.particles, 0)
        return State(torch.hypot(*prior.schedule(t)) * n, y.new_zeros(len(y)), ess)

    def step(self, state: State, t: Tensor, s: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> State:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = prior.schedule(t), prior.schedule(s)
        z0, eps, log_twist, g = self._look(state.z, t, problem, prior)
        last = bool(sigma_s == 0)
        if last:
            log_twist = -problem.nll(prior.decode(z0))

        below = 1.0 if last else self.resample_below
        parents, log_w, ess = resample(state.log_w + log_twist, problem, self.resampling, below, rng)
        z0, eps, g, log_twist = z0[parents], eps[parents], g[parents], log_twist[parents]

        k = ancestral_std(prior, t, s, self.eta)
        kept = (sigma_s.square() - k.square()).clamp_min(0).sqrt()
        m = alpha_s * z0 + kept * eps
        factor = torch.where(alpha_t > 0, alpha_s * sigma_t.square() / alpha_t - sigma_t * kept, 0)
        delta = torch.zeros_like(m) if last else factor * g
        n = rng.randn_like(m)
        proposed = torch.zeros_like(log_twist) if last else dot(delta, delta) / (2 * k.square()) + dot(delta, n) / k
        return State(m + delta + k * n, log_w - proposed - log_twist, torch.cat([state.ess, ess[:, None]], dim=1))

    def estimate(self, state: State) -> Tensor:
        return state.z

    def _look(self, z: Tensor, t: Tensor, problem: Problem, prior: Prior) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The endpoints at z, the logarithm of the twist (B,) and its gradient."""
        if self.krylov_steps:
            moments = match_moments(z, t, problem, prior, self.krylov_steps)
            return moments.clean, moments.noise, -dot(moments.misfit, moments.weights) / 2, moments.pull
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            z0, eps = prior.predict(z, t)
            log_twist = self._log_twist(z0, t, problem, prior)
            (g,) = torch.autograd.grad(log_twist.sum(), z)
        return z0.detach(), eps.detach(), log_twist.detach(), g

    def _log_twist(self, z0: Tensor, t: Tensor, problem: Problem, prior: Prior) -> Tensor:
        """Log of the twist (B,), differentiable."""
        x, operator, level = prior.decode(z0), problem.operator, problem.level
        r2 = isotropic_std(prior, t, self.data_std).square()
        rho = level.square() / r2  # (B,)
        if not isinstance(operator, LinearOperator):
            return -problem.nll(x) * rho / (1 + rho)
        # The largest of log N(y; A u, sigma_y^2) N(u; x, r^2) over u is log N(y; A x, r^2 A A^T + sigma_y^2), and where
        # it is taken may be held fixed when differentiating.
        u = operator.prox(x.detach(), problem.y, rho)
        misfit = problem.residual(u)
        return -(dot(u - x, u - x) / r2 + dot(misfit, misfit) / level.square()) / 2
