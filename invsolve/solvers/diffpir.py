"""DiffPIR: denoising diffusion models for plug-and-play image restoration
(Zhu et al., CVPR workshops 2023, arXiv 2305.08995).

    z_T = alpha_T x_y + sigma_T n                           (x_y: regularised least squares)
    for t -> s in times:
        z0    = clean endpoint at z_t
        rho   = weight * sigma_y^2 / r_t^2,  r_t = sigma_t data_std / sqrt(alpha_t^2 data_std^2 + sigma_t^2)
        z0    = argmin_z |A D(z) - y|^2 + rho |z - z0|^2    (pixels, D(z) = z: the operator's prox)
        eps   = (z_t - alpha_t z0) / sigma_t
        z_s   = alpha_s z0 + sigma_s (sqrt(zeta) n + sqrt(1 - zeta) eps),  n ~ N(0, I)

| | paper | InverseBench | here |
|---|---|---|---|
| weight (lambda) | 1 to 25 by task | 8 | 0.6 |
| data_std | None: r_t = sigma_t / alpha_t | None | 1 |
| zeta | 0.1 to 1 by task | 1 | 1 |
| steps | 100 | 100 | 50 |
| start | degraded picture plus noise, or noise | noise | regularised least squares plus noise |
| grid | even steps | even | `restoration` |
| prox | closed form | one gradient step | closed form, or conjugate gradients |

sigma_t / alpha_t grows without bound towards the noise: the first proximal steps then trust nothing but the data, and
what a blur has all but removed comes back as noise.  r_t is the standard deviation of z_0 given z_t, as in PiGDM.
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

__all__ = ["DiffPIR"]

MIN_RHO = 1e-5  # keeps the proximal step well posed at the first times, where sigma_t / alpha_t is huge


@dataclass(frozen=True, kw_only=True)
class DiffPIR(Solver[Tensor]):
    """Plug-and-play diffusion: a proximal step on the data inside every denoising step.

    Arguments:
        weight: lambda, trust in the prior relative to the data.
        zeta: share of fresh noise, 0 (deterministic) to 1.
        data_std: standard deviation of the clean latents in the assumed p(z_0 | z_t); None is the paper's rho.
    """

    requires = LinearOperator
    times = "restoration"
    steps = 50

    weight: Annotated[float, Range(0)] = 0.6
    zeta: Annotated[float, Range(0, 1)] = 1.0
    data_std: Annotated[float | None, Range(0.001)] = 1.0

    def init(self, t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Tensor:
        return noisy_first_guess(t, problem, prior, rng)

    def step(self, state: Tensor, t: Tensor, s: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Tensor:
        alpha_t, sigma_t = prior.schedule(t)
        z0 = prior.predict(state, t).clean
        spread = prior.schedule.ratio(t) if self.data_std is None else isotropic_std(prior, t, self.data_std)
        rho = self.weight * (problem.level / spread).square()
        z0 = proximal_step(z0, problem, rho.clamp_min(MIN_RHO), prior)
        eps = (state - expand_to(alpha_t, z0) * z0) / expand_to(sigma_t, z0)
        noise = self.zeta**0.5 * rng.randn_like(z0) + (1 - self.zeta) ** 0.5 * eps
        return prior.at(s, z0, noise)
