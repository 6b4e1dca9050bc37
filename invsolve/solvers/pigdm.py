"""PiGDM: pseudoinverse-guided diffusion models for inverse problems (Song, Vahdat, Mardani & Kautz, ICLR 2023).

    for t -> s in times:
        z0, eps = endpoints at z_t,  J = d z0 / d z_t
        r^2     = sigma_t^2 / (alpha_t^2 + sigma_t^2)
        g       = J^T r^2 A^T (r^2 A A^T + sigma_y^2)^-1 (y - A z0)           (J^T A^+ (y - A z0) without noise)
        z_s     = alpha_s z0 + sqrt(sigma_s^2 - c1^2) eps + c1 n,  n ~ N(0, I)
        z_s     = z_s + weight * alpha_s alpha_t g                            (update = "clean")
        c1      = eta * the standard deviation of the ancestral step

or, with update = "ends", both ends are moved before the step as the score grad log p(y | z_t) = J^T A^T (...)^-1 (...)
asks for: z0 by weight sigma_t^2 / (alpha_t r^2) g and eps by -weight sigma_t / r^2 g.  The guidance of "clean" does not
shrink with the step: it is the stronger with few steps, but with a hundred it fits the noise of y.

| | paper | RED-diff's version | here |
|---|---|---|---|
| update | clean, alpha_t for alpha_s alpha_t | clean | clean |
| weight | 1 | 1 | 1 |
| eta | 1 | 1 | 1 |
| data_std (r^2 = v sigma^2 / (alpha^2 v + sigma^2)) | 1 | – (noiseless only) | 1 |
| grid | 20 to 100 even steps | 100 even steps | `restoration`, 30 |
| sigma_y of noiseless data | 0 | 0 | the tolerance, 1/255 |
| start | noise | noisy A^+ y | regularised least squares plus noise |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from torch import Tensor

from ..linalg import expand_to
from ..operators.base import PinvOperator
from ..priors.base import Prior
from ..problem import Problem
from ..rng import ImageRng
from ..solver import Range, Solver
from ._hold import pseudo_inverse_guidance
from ._path import ancestral_std, denoising_gain, isotropic_std, transition
from ._start import noisy_first_guess

__all__ = ["PiGDM"]

Update = Literal["clean", "ends"]


@dataclass(frozen=True, kw_only=True)
class PiGDM(Solver[Tensor]):
    """Pseudoinverse guidance: ancestral steps pulled by A^+ (y - A x) through the network's Jacobian.

    Arguments:
        weight: of the guidance.
        eta: share of fresh noise; 1 is the ancestral (DDPM) step, 0 the deterministic DDIM step.
        data_std: standard deviation of the clean latents in the assumed p(z_0 | z_t).
        update: `clean` adds the guidance to z_s as published; `ends` moves both ends of the path by the guided score,
            which is right in the limit of small steps, where `clean` fits the noise of y.
    """

    requires = PinvOperator
    times = "restoration"
    steps = 30
    published: ClassVar[Mapping[str, Any]] = {"weight": 1.0, "eta": 1.0}

    weight: Annotated[float, Range(0)] = 1.0
    eta: Annotated[float, Range(0, 1)] = 1.0
    data_std: Annotated[float, Range(0.001)] = 1.0
    update: Update = "clean"

    def init(self, t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Tensor:
        return noisy_first_guess(t, problem, prior, rng)

    def step(self, state: Tensor, t: Tensor, s: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Tensor:
        z0, eps, g = pseudo_inverse_guidance(prior, problem, state, t, self.data_std)
        (alpha_t, sigma_t), (alpha_s, _) = prior.schedule(t), prior.schedule(s)
        c1 = ancestral_std(prior, t, s, self.eta)
        if self.update == "clean":
            return transition(prior, s, z0, eps, c1, rng) + self.weight * expand_to(alpha_s * alpha_t, g) * g
        score = self.weight * g / isotropic_std(prior, t, self.data_std).square()
        return transition(prior, s, z0 + denoising_gain(prior, t) * score, eps - sigma_t * score, c1, rng)
