"""PSLD: solving linear inverse problems provably via posterior sampling with latent diffusion models
(Rout et al., NeurIPS 2023, arXiv 2307.00619).

    for t -> s in times:
        z0, z1 = endpoints at z_t
        x0     = D(z0)
        L      = |A x0 - y| + gluing * |z0 - E(G y + x0 - G A x0)|
        z_s    = alpha_s z0 + sigma_s z1 - step_size * grad_{z_t} L     (through network, decoder and encoder)

The second term asks that the picture with its measured part replaced by the data is a picture the encoder gives z0 for.

| | paper | official code | FlowDPS's version | here |
|---|---|---|---|---|
| step_size | 1 | 1 | 15 at 768x768 latents, fp16 | 1 |
| gluing | 0.1 | 0.1 | 0.1 | 0.1 |
| G | A^T | A^T | A^+ (super-resolution), A^T elsewhere | A^+, `back` |
| y - A x0 | – | with fresh noise added to A x0 | as it is | as it is |
| grid | 1000 DDIM steps | 1000, guidance 7.5 | 28 steps of the flow, shift 4 | `flowdps`, 100 |

G A has to be a projection, which A^T A is for masks and A^+ A for every operator.  The step belongs to the rectified
flow; on any other path it is scaled by alpha + sigma at both times, so that the same prior gives the same picture.
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
from ._pieces import noisy_first_guess

__all__ = ["PSLD"]

Back = Literal["pinv", "adjoint"]


@dataclass(frozen=True, kw_only=True)
class PSLD(Solver[Tensor]):
    """Posterior sampling with latent diffusion: DPS for latents, and a term that keeps decoder and encoder together.

    Arguments:
        step_size: step along the gradient of L.
        gluing: weight of the second term of L.
        back: G, which takes data to pictures: `pinv` A^+ or `adjoint` A^T.
    """

    requires = PinvOperator
    times = "flowdps"
    steps = 100

    step_size: float = 1.0
    gluing: float = 0.1
    back: Back = "pinv"

    def __post_init__(self) -> None:
        check_range(self, 0, math.inf, "step_size", "gluing")
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
            loss = norm(prediction - problem.y) + self.gluing * norm(z0 - glued)
            (g,) = torch.autograd.grad(loss.sum(), z)
        scale = sum(prior.schedule(t)) * sum(prior.schedule(s))  # 1 on the rectified flow
        return prior.at(s, z0.detach(), z1.detach()) - self.step_size * scale * g

    def _picture(self, problem: Problem, data: Tensor) -> Tensor:
        """G applied to data (B, *data_shape)."""
        operator = problem.operator
        if self.back == "adjoint":
            if not isinstance(operator, LinearOperator):
                raise TypeError(f"PSLD: {type(operator).__name__} has no adjoint; use back='pinv'.")
            return operator.adjoint(data)
        assert isinstance(operator, PinvOperator)
        return operator.pinv(data)
