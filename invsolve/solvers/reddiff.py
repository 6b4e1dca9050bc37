"""RED-diff: a variational perspective on solving inverse problems with diffusion models
(Mardani, Song, Kautz & Vahdat, ICLR 2024, arXiv 2305.04391).

    mu = A^+ y                                              (regularised least squares if y is noisy)
    for t in times:                                         (descending)
        z_t = alpha_t mu + sigma_t n,  n ~ N(0, I)
        eps = noise endpoint at z_t                         (no gradient)
        g   = A^T (A mu - y) / m + weight * w(t) * (eps - n) / d
        mu  = Adam step along g,  betas (0.9, 0.99)

m measured values and d latent entries per picture: both terms are means, as in the official code, and `weight` is
lambda there.  Next to the sum |A mu - y|^2 / 2 of the paper it is lambda_sum = weight * m / d: with convention = "sum"
`weight` is that one.

| | paper | official code | here |
|---|---|---|---|
| weight | – | 0.25 (1 for 1000 steps) | 0.25 |
| w(t) | lambda / SNR | sigma/alpha | `s_over_a` |
| lr | – | 0.1 to 0.5 | 0.1 |
| result | mu | mu before the last Adam step | mu |

The official code takes the means over the whole batch, which only scales both terms; here they are per picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..linalg import expand_to, grad
from ..priors.base import Prior
from ..problem import Problem, first_guess
from ..rng import ImageRng
from ..solver import Range, Solver
from ._misfit import misfit
from ._weighting import Convention, Weighting, weigh, weight_of_means

__all__ = ["REDDiff"]


class State(NamedTuple):
    """The variational mean with its optimiser."""

    mu: Tensor  # (B, *latent_shape)
    optimizer: torch.optim.Adam


@dataclass(frozen=True, kw_only=True)
class REDDiff(Solver[State]):
    """Variational inference with one Adam step per time: fast, sharp, mode-seeking.

    Arguments:
        lr: learning rate of Adam.
        weight: lambda, weight of the regulariser relative to the data term.
        convention: of `weight`: `mean` between means, as in the official code, or `sum` between sums, as in the paper.
        weighting: w(t) as a function of sigma/alpha.

    Raises:
        ValueError: an unknown weighting or convention.
    """

    times = "vp"
    steps = 100
    published: ClassVar[Mapping[str, Any]] = {"lr": 0.1, "weight": 0.25, "weighting": "s_over_a"}

    lr: Annotated[float, Range(0)] = 0.1
    weight: Annotated[float, Range(0)] = 0.25
    convention: Convention = "mean"
    weighting: Weighting = "s_over_a"

    def init(self, t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> State:
        mu = prior.encode(first_guess(problem)).clone()
        return State(mu, torch.optim.Adam([mu], lr=self.lr, betas=(0.9, 0.99)))

    def step(self, state: State, t: Tensor, s: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> State:
        mu, optimizer = state
        n = rng.randn_like(mu)
        eps = prior.predict(prior.at(t, mu, n), t).noise
        d, m = mu[0].numel(), problem.n_data
        weight = weight_of_means(self.weight, self.convention, m, d) * weigh(self.weighting, prior.schedule.ratio(t))
        g = grad(lambda z: misfit("half_sq", problem, prior.decode(z)) / m, mu)
        mu.grad = g + expand_to(weight, mu) * (eps - n) / d
        optimizer.step()
        return State(mu, optimizer)

    def estimate(self, state: State) -> Tensor:
        return state.mu.clone()  # Adam goes on in place
