"""PSLD: solving linear inverse problems provably via posterior sampling with latent diffusion models
(Rout et al., NeurIPS 2023, arXiv 2307.00619).

    for t -> s in times:
        z0, z1 = endpoints at z_t
        x0     = D(z0)
        L      = max(|A x0 - y|, sigma_y sqrt(m)) + gluing * |z0 - E(G y + x0 - G A x0)|
        z_s    = alpha_s z0 + sigma_s z1 - step_size * grad_{z_t} L     (through network, decoder and encoder)

The second term asks that the picture with its measured part replaced by the data is a picture the encoder gives z0 for.

| | paper | official code | FlowDPS's version | here |
|---|---|---|---|---|
| step_size | 1 | 1 | 15 at 768x768, fp16 | 0.06 sqrt(d), d latent entries |
| noise level in L | – | no | no | yes |
| gluing | 0.1 | 0.1 | 0.1 | 0.1 |
| G | A^T | A^T | A^+ (super-resolution), A^T elsewhere | A^+, `back` |
| y - A x0 | – | with fresh noise added to A x0 | as it is | as it is |
| grid | 1000 DDIM steps | 1000, guidance 7.5 | 28 steps of the flow, shift 4 | `karras`, 28 |

The gradient of a norm has the same length however large the picture and however near the data: hence the root of d,
with which the 15 of FlowDPS's version is 0.04 sqrt(d), and the noise level, below which the data pull no more.  G A has
to be a projection, which A^T A is for masks and A^+ A for every operator.  The step belongs to the rectified flow; on
any other path it is scaled by alpha + sigma at both times, so that the same prior gives the same picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..linalg import norm
from ..operators.base import LinearOperator, PinvOperator
from ..priors.base import Prior
from ..problem import Problem
from ..rng import ImageRng
from ..solver import Solver, check_range
from ._start import noisy_first_guess

__all__ = ["PSLD"]

Back = Literal["pinv", "adjoint"]

STEP = 0.06  # per root of the number of latent entries, chosen on photographs at 28 steps


@dataclass(frozen=True, kw_only=True)
class PSLD(Solver[Tensor]):
    """Posterior sampling with latent diffusion: DPS for latents, and a term that keeps decoder and encoder together.

    Arguments:
        step_size: step along the gradient of L; None for 0.06 times the root of the number of latent entries.
        gluing: weight of the second term of L.
        back: G, which takes data to pictures: `pinv` A^+ or `adjoint` A^T.
    """

    requires = PinvOperator
    times = "karras"
    steps = 28

    step_size: float | None = None
    gluing: float = 0.1
    back: Back = "pinv"

    def __post_init__(self) -> None:
        check_range(self, 0, math.inf, "gluing")
        if self.step_size is not None:
            check_range(self, 0, math.inf, "step_size")
        if self.back not in get_args(Back):
            raise ValueError(f"PSLD: back must be one of {', '.join(get_args(Back))}, got {self.back!r}.")

    def init(self, t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Tensor:
        return noisy_first_guess(t, problem, prior, rng)

    def step(self, state: Tensor, t: Tensor, s: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Tensor:
        with torch.enable_grad():
            z = state.detach().requires_grad_(True)
            z0, z1 = prior.predict(z, t)
            x0 = prior.decode(z0)
            prediction = problem.operator(x0)
            glued = prior.encode(x0 + self._picture(problem, problem.y) - self._picture(problem, prediction))
            misfit = torch.maximum(norm(prediction - problem.y), problem.radius)
            loss = misfit + self.gluing * norm(z0 - glued)
            (g,) = torch.autograd.grad(loss.sum(), z)
        scale = sum(prior.schedule(t)) * sum(prior.schedule(s))  # 1 on the rectified flow
        step_size = STEP * z[0].numel() ** 0.5 if self.step_size is None else self.step_size
        return prior.at(s, z0.detach(), z1.detach()) - step_size * scale * g

    def _picture(self, problem: Problem, data: Tensor) -> Tensor:
        """G applied to data (B, *data_shape)."""
        operator = problem.operator
        if self.back == "adjoint":
            if not isinstance(operator, LinearOperator):
                raise TypeError(f"PSLD: {type(operator).__name__} has no adjoint; use back='pinv'.")
            return operator.adjoint(data)
        assert isinstance(operator, PinvOperator)
        return operator.pinv(data)
