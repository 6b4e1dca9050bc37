"""FlowChef: steering rectified flow models for controlled image generation (Patel et al., ICCV 2025, arXiv 2412.00100).

    for t -> s in times:
        z0, z1 = endpoints of the flow through z_t
        g      = grad L(z0)                                 (through the decoder, not through the network)
        z_s    = (1 - s) z0 + s z1 - step_size g

On a path other than the rectified flow the step is scaled by alpha_s + sigma_s, so that the same prior gives the same
picture.

| | paper | FlowDPS's version | here |
|---|---|---|---|
| L | misfit of the clean end | |A^+ y - A^+ A D(z)| (super-resolution), A^T elsewhere | |A D(z) - y|, `data_term` |
| step_size | – | 15 at 768x768 latents, fp16 | below |
| grid | – | 28 steps, shift 4 | `karras`, 28 |

A fixed step fits one operator and one size of picture: it ignores how far away the data are and how noisy, and where
s > 1/2 a shift of z_s moves what the network makes of it more than twice as far, which can swing up.  By default the
step takes the clean end towards where the misfit is what the noise leaves, as far as a line search on the
residual says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor

from ..linalg import grad
from ..priors.base import Prior
from ..problem import Problem
from ..rng import ImageRng
from ..solver import Range, Solver
from ._hold import approach_data
from ._misfit import DataTerm, check_data_term, check_step, misfit
from ._start import noisy_first_guess

__all__ = ["FlowChef"]


@dataclass(frozen=True, kw_only=True)
class FlowChef(Solver[Tensor]):
    """FlowChef: the flow is steered by the gradient of the misfit of its clean end; no gradient through the network.

    Arguments:
        step_size: step along the gradient of the misfit; None for the one that leaves the noise of the problem, which
            needs data_term="norm".
        data_term: L(z), x = D(z): `norm` |A x - y|; `half_sq` |A x - y|^2 / 2; `nll` -log p(y | x);
            `pinv_norm` |A^+ (A x - y)| and `adjoint_norm` |A^T (A x - y)| as in FlowDPS's version.
    """

    times = "karras"
    steps = 28
    published: ClassVar[Mapping[str, Any]] = {"step_size": 15.0, "data_term": "pinv_norm"}

    step_size: Annotated[float | None, Range(0)] = None
    data_term: DataTerm = "norm"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_step(self, self.step_size, self.data_term)

    def check(self, problem: Problem, prior: Prior | None = None) -> None:
        super().check(problem, prior)
        check_data_term(self.data_term, problem.operator)

    def init(self, t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Tensor:
        return noisy_first_guess(t, problem, prior, rng)

    def step(self, state: Tensor, t: Tensor, s: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Tensor:
        alpha_s, sigma_s = prior.schedule(s)
        z0, z1 = prior.predict(state, t)
        if self.step_size is None:
            z0 = approach_data(z0, problem, prior, problem.radius, steps=1)
            return prior.at(s, z0, z1)
        g = grad(lambda z: misfit(self.data_term, problem, prior.decode(z)), z0)
        return prior.at(s, z0, z1) - (alpha_s + sigma_s) * self.step_size * g
