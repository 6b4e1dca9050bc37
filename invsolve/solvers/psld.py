"""PSLD: solving linear inverse problems provably via posterior sampling with latent diffusion models
(Rout et al., NeurIPS 2023, arXiv 2307.00619).

    for t -> s in times:
        z0, z1 = endpoints at z_t
        x0     = D(z0)
        L      = max(|A x0 - y|, R) + gluing * |z0 - E(x0 + G (y - A x0))|
        z_s    = alpha_s z0 + sigma_s z1 - step_size * grad_{z_t} L     (through network, decoder and encoder)

R = sigma_y sqrt(m) is the misfit that the noise leaves.

The second term asks that the picture with its measured part replaced by the data is a picture the encoder gives z0 for.

| | paper | official code | FlowDPS's version | here |
|---|---|---|---|---|
| step_size | 1 | 1 | 15 at 768x768, fp16 | (|A x0 - y| - R)_+ / (|g| max(|g|, |g0|)) |
| noise level in L | – | no | no | yes |
| gluing | 0.1 | 0.1 | 0.1 | 0.3, chosen on photographs |
| G | A^T | A^T | A^+ (super-resolution), A^T elsewhere | A^T (A A^T + sigma_y^2 / r^2)^-1, `back` |
| y - A x0 | – | with fresh noise added to A x0 | as it is | as it is |
| grid | 1000 DDIM steps | 1000, guidance 7.5 | 28 steps of the flow, shift 4 | `karras`, 28 |

The gradient of a norm has the same length however near the data are, so that a fixed step jumps to and fro across
them, and one that suits super-resolution is far too long for a blur.  By default a step along the gradient g at z_t is
as long as the misfit would need to fall to the noise level, were it linear, but no longer than the clean end z0 would
have to move by its own gradient g0: where noise hides z0, g is next to nothing.  Below that level there is none.

G A has to be a projection, which A^T A is for masks and A^+ A for every linear operator; but A^+ makes up from noise
what a blur has all but lost, so that G by default weighs the data against the uncertainty r of the clean end
(`explain_data`).

A step belongs to the rectified flow; on any other path it is scaled by alpha + sigma, so that the same prior gives the
same picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from ..linalg import expand_to, norm
from ..operators.base import LinearOperator
from ..priors.base import Prior
from ..problem import Problem
from ..rng import ImageRng
from ..solver import Range, Solver
from ._hold import explain_data
from ._path import isotropic_std
from ._start import noisy_first_guess

__all__ = ["PSLD"]

Back = Literal["prox", "pinv", "adjoint"]


@dataclass(frozen=True, kw_only=True)
class PSLD(Solver[Tensor]):
    """Posterior sampling with latent diffusion: DPS for latents, and a term that keeps decoder and encoder together.

    Arguments:
        step_size: step along the gradient of L; None for the one that leaves the noise of the problem.
        gluing: weight of the second term of L.
        back: G, which takes data to pictures: `prox` the regularised inverse, `pinv` A^+ or `adjoint` A^T.
        data_std: standard deviation of the latents, for r.
    """

    requires = LinearOperator
    times = "karras"
    steps = 28
    published: ClassVar[Mapping[str, Any]] = {"step_size": 1.0, "gluing": 0.1, "back": "adjoint"}

    step_size: Annotated[float | None, Range(0)] = None
    gluing: Annotated[float, Range(0)] = 0.3
    back: Back = "prox"
    data_std: Annotated[float, Range(0.001)] = 1.0

    def init(self, t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Tensor:
        return noisy_first_guess(t, problem, prior, rng)

    def step(self, state: Tensor, t: Tensor, s: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Tensor:
        with torch.enable_grad():
            z = state.detach().requires_grad_(True)
            z0, z1 = prior.predict(z, t)
            x0 = prior.decode(z0)
            prediction = problem.operator(x0)
            if self.back == "prox":
                x = explain_data(x0, problem, (problem.level / isotropic_std(prior, t, self.data_std)).square())
            else:
                back = problem.linear.pinv if self.back == "pinv" else problem.linear.adjoint
                x = x0 + back(problem.y) - back(prediction)
            misfit = norm(prediction - problem.y)
            loss = torch.maximum(misfit, problem.radius) + self.gluing * norm(z0 - prior.encode(x))
            g, g0 = torch.autograd.grad(loss.sum(), (z, z0))
        g = g * sum(prior.schedule(t))  # that of the rectified flow, on which the sums are 1
        if self.step_size is None:
            excess, tiny = (misfit.detach() - problem.radius).clamp_min(0), torch.finfo(g.dtype).tiny
            slope = norm(g) * torch.maximum(norm(g), norm(g0))
            move = expand_to(excess / slope.clamp_min(tiny**0.5), g) * g
        else:
            move = self.step_size * g
        return prior.at(s, z0.detach(), z1.detach()) - sum(prior.schedule(s)) * move
