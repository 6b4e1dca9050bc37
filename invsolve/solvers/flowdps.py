"""FlowDPS: flow-driven posterior sampling for inverse problems (Kim, Kim & Ye, ICCV 2025, arXiv 2503.08136).

    for t -> s in times:                                    (t = 1 noise, t = 0 data)
        z0, z1 = endpoints of the flow through z_t
        z0_y   = z0 - step_size * grad L(z0_y), from z0, inner_steps times
        z0     = z0_y                                       (or (1 - t) z0 + t z0_y: `interpolate`)
        z1     = c z1 + sqrt(1 - c^2) eps,  c = carry sqrt(s),  eps ~ N(0, I)
        z_s    = alpha_s z0 + sigma_s z1

On a path other than the rectified flow, t and s in c and in the weights of z0 are the flow times of equal sigma/alpha.

| | paper | official code | here |
|---|---|---|---|
| L | misfit, step shrinking with t | |A^+ (y - A D(z))| (super-resolution), A^T elsewhere | |A D(z) - y|, `data_term` |
| step_size | – | 15 at 768x768 latents, fp16 | below |
| inner_steps | several (conjugate gradients) | 3 of gradient descent | at most 15, see below |
| clean end | (1 - t) z0 + t z0_y | the same | z0_y; the same with a step_size |
| noise share 1 - c^2 | eta | 1 - s | 1 - carry^2 s |
| carry | – | 1 | 1 |
| grid | shift 4 | 4u / (1 + 3u) twice shifted | `flowdps` |

The official objective is a norm, not its square, so its gradient has the same size however small the misfit is, and
it takes one norm over the whole batch; here every picture has its own.  A fixed step fits one operator and one size of
picture: super-resolution x4 by means keeps a sixteenth of a gradient.  By default the inner steps are conjugate
gradients, each to where the misfit is what the noise leaves, were it linear; they end there or, through a decoder,
where they hardly help any more.

The interpolation damps inner steps of a fixed size as t falls; without it they overshoot at low noise.  Where they end
at the noise level it only takes the data away: its last weights are 0.14 and 0.01, and photographs under a pixel prior
keep a chi2 far above 1.

What is wrong with z0 is in z1, too, and `carry` takes it along.  That is sharper where details have to be made up, on
blurs and small pictures; where pixels are hidden `flowdps(carry=0.0)` on the grid `restoration` is nearer to the truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor

from ..linalg import grad
from ..priors.base import Prior
from ..priors.schedule import LinearFlow
from ..problem import Problem
from ..rng import ImageRng
from ..solver import Range, Solver
from ._hold import approach_data
from ._misfit import DataTerm, check_data_term, check_step, misfit
from ._start import noisy_first_guess

__all__ = ["FlowDPS"]


@dataclass(frozen=True, kw_only=True)
class FlowDPS(Solver[Tensor]):
    """Flow-driven posterior sampling: gradient steps on the clean endpoint, partly fresh noise on the other.

    Arguments:
        step_size: step of the inner gradient descent; None for the one that leaves the noise of the problem, which
            needs data_term="norm".
        inner_steps: most steps on the clean endpoint per time step.
        data_term: L(z), x = D(z): `norm` |A x - y|; `half_sq` |A x - y|^2 / 2; `nll` -log p(y | x);
            `pinv_norm` |A^+ (A x - y)| and `adjoint_norm` |A^T (A x - y)| as in the official code.
        carry: how much of the noise end the next noise keeps, relative to the official code; 0 draws all of it anew.
        interpolate: go only the share t of the way to the clean end that explains y, as in the paper; None where
            step_size is given.
    """

    times = "flowdps"
    steps = 28
    published: ClassVar[Mapping[str, Any]] = {"step_size": 15.0, "inner_steps": 3, "data_term": "pinv_norm"}

    step_size: Annotated[float | None, Range(0)] = None
    inner_steps: Annotated[int, Range(0)] = 15
    data_term: DataTerm = "norm"
    carry: Annotated[float, Range(0, 1)] = 1.0
    interpolate: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_step(self, self.step_size, self.data_term)

    def check(self, problem: Problem, prior: Prior | None = None) -> None:
        super().check(problem, prior)
        check_data_term(self.data_term, problem.operator)

    def init(self, t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Tensor:
        return noisy_first_guess(t, problem, prior, rng)

    def step(self, state: Tensor, t: Tensor, s: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Tensor:
        flow_t, flow_s = (LinearFlow().time(prior.schedule.ratio(u)) for u in (t, s))

        z0, z1 = prior.predict(state, t)
        z0_y = z0
        if self.step_size is None:
            z0_y = approach_data(z0, problem, prior, problem.radius, self.inner_steps)
        else:
            for _ in range(self.inner_steps):
                z0_y = z0_y - self.step_size * grad(lambda z: misfit(self.data_term, problem, prior.decode(z)), z0_y)

        interpolate = self.step_size is not None if self.interpolate is None else self.interpolate
        z0 = (1 - flow_t) * z0 + flow_t * z0_y if interpolate else z0_y
        kept = self.carry**2 * flow_s
        z1 = kept.sqrt() * z1 + (1 - kept).sqrt() * rng.randn_like(z1)
        return prior.at(s, z0, z1)
