"""DPS: diffusion posterior sampling for general noisy inverse problems (Chung et al., ICLR 2023, arXiv 2209.14687).

    for t -> s in times:
        z0, eps = endpoints at z_t
        z_s     = alpha_s z0 + sqrt(sigma_s^2 - c1^2) eps + temperature c1 n,  n ~ N(0, I)
        z_s     = z_s - step_size * grad_{z_t} |A D(z0) - y|
        c1      = eta * the standard deviation of the ancestral step

| | paper | official code | RED-diff's version | here |
|---|---|---|---|---|
| gradient | of the squared norm, step zeta / |r| | of the norm (half of it) | 2x the official one | of the norm |
| step_size | 0.3 to 1 (x 2) | 0.3 blur and super-resolution, 0.5 inpainting, 1000 steps | 0.1 to 2 | 10 at 100 steps |
| eta | 1 (DDPM, learned variance) | 1 | 0 to 1 | 1 |
| temperature | 1 | 1 | 1 | 1 |
| clip | – | yes | yes | no |
| start | noise | noise | – | the first guess that y gives, with the noise of the path |
| grid | 1000 even steps | 1000 | 100 | `restoration` |

The published step belongs to variance-preserving latents with 1000 steps: on any other path the update is scaled by
hypot(alpha, sigma), so that a prior viewed under another schedule gives the same picture.  MCG-diff's comparison on
mixtures (arXiv 2308.07983) runs DPS with step_size 0.2, eta 1 and a temperature of 0.6 or 0.85, which it calls eta.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from ..linalg import expand_to, norm
from ..priors.base import Prior
from ..problem import Problem
from ..rng import ImageRng
from ..solver import Range, Solver
from ._path import ancestral_std, transition
from ._start import noisy_first_guess

__all__ = ["DPS"]


@dataclass(frozen=True, kw_only=True)
class DPS(Solver[Tensor]):
    """Diffusion posterior sampling: ancestral steps guided by the gradient of the misfit through the network.

    Arguments:
        step_size: weight of the gradient of the misfit norm |A x - y|.
        eta: share of fresh noise; 1 is the ancestral (DDPM) step, 0 the deterministic DDIM step.
        temperature: factor on the fresh noise; below 1 the samples end at a lower noise level than the path.
        clip: clip the clean estimate to [-1, 1] inside the misfit and the step, as the official code does; only
            sensible for pixel priors.
    """

    times = "restoration"
    steps = 100
    published: ClassVar[Mapping[str, Any]] = {"step_size": 0.3, "clip": True}

    step_size: Annotated[float, Range(0)] = 10.0
    eta: Annotated[float, Range(0, 1)] = 1.0
    temperature: Annotated[float, Range(0, 1)] = 1.0
    clip: bool = False

    def init(self, t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Tensor:
        return noisy_first_guess(t, problem, prior, rng)

    def step(self, state: Tensor, t: Tensor, s: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Tensor:
        with torch.enable_grad():
            z = state.detach().requires_grad_(True)
            z0, eps = prior.predict(z, t)
            z0 = z0.clamp(-1, 1) if self.clip else z0
            misfit = norm(problem.residual(prior.decode(z0)))
            (g,) = torch.autograd.grad(misfit.sum(), z)
        fresh_std = ancestral_std(prior, t, s, self.eta)
        z_s = transition(prior, s, z0.detach(), eps.detach(), fresh_std, rng, self.temperature)
        scale = torch.hypot(*prior.schedule(s)) * torch.hypot(*prior.schedule(t))  # 1 on a VP path
        return z_s - self.step_size * expand_to(scale, g) * g
