"""OT-ODE: training-free linear image inverses via flows (Pokle, Muckley, Chen & Karrer, TMLR 2024, arXiv 2310.04432).

    z = alpha_0 x_y + sigma_0 n                             (t_0 the first time, x_y: regularised least squares)
    for t -> s in times:
        z0, z1 = endpoints of the flow through z_t,  J = d z0 / d z_t
        r^2    = sigma_t^2 / (alpha_t^2 + sigma_t^2)
        g      = J^T A^T (r^2 A A^T + sigma_y^2)^-1 (y - A z0)
        z0     = z0 + gamma_t sigma_t^2 / alpha_t g
        z1     = z1 - gamma_t sigma_t g
        z_s    = alpha_s z0 + sigma_s z1                    (an Euler step along v - gamma_t sigma_t / alpha_t g)

The flow has alpha = 1 - t and sigma = t (t = 0 data, the paper's 1 - t); on any other path an Euler step in the flow
time of equal sigma/alpha is the same motion of the ends.

| | paper | PnP-Flow's version | here |
|---|---|---|---|
| gamma | 1 | 1 or sqrt(alpha / (alpha^2 + sigma^2)) by task | `constant` or `gamma_t` |
| share of data at the first time | 0.2 | 0.1 to 0.4 by task | 1/3 (`restoration`) |
| start | A^T y plus noise | A^T y plus noise | regularised least squares plus noise |
| data_std (r^2 = v sigma^2 / (alpha^2 v + sigma^2)) | 1 | 1 | 0.5, that of photographs |
| steps | – | – | 100 |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from ..operators.base import PinvOperator
from ..priors.base import Prior
from ..priors.schedule import LinearFlow
from ..problem import Problem
from ..rng import ImageRng
from ..solver import Range, Solver
from ._hold import pseudo_inverse_guidance
from ._path import denoising_gain, isotropic_std
from ._start import noisy_first_guess

__all__ = ["OTODE"]

Gamma = Literal["constant", "gamma_t"]


@dataclass(frozen=True, kw_only=True)
class OTODE(Solver[Tensor]):
    """The flow's own ODE with pseudoinverse guidance in its velocity: deterministic but for the start.

    Arguments:
        weight: factor of the guidance.
        gamma: `constant` 1, or `gamma_t` sqrt(alpha / (alpha^2 + sigma^2)) of the flow, weaker where it is noisy.
        data_std: standard deviation of the clean latents in the assumed p(z_0 | z_t).
    """

    requires = PinvOperator
    needs_float32 = True
    times = "restoration"
    steps = 100

    weight: Annotated[float, Range(0)] = 1.0
    gamma: Gamma = "constant"
    data_std: Annotated[float, Range(0.001)] = 0.5

    def init(self, t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Tensor:
        return noisy_first_guess(t, problem, prior, rng)

    def step(self, state: Tensor, t: Tensor, s: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Tensor:
        z0, z1, g = pseudo_inverse_guidance(prior, problem, state, t, self.data_std)
        _, sigma_t = prior.schedule(t)
        score = self._gamma(prior, t) * g / isotropic_std(prior, t, self.data_std).square()
        return prior.at(s, z0 + denoising_gain(prior, t) * score, z1 - sigma_t * score)

    def _gamma(self, prior: Prior, t: Tensor) -> Tensor:
        alpha, sigma = LinearFlow()(LinearFlow().time(prior.schedule.ratio(t)))
        shape = (alpha / (alpha.square() + sigma.square())).sqrt() if self.gamma == "gamma_t" else torch.ones_like(t)
        return self.weight * shape
