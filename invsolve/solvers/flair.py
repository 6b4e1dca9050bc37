"""FLAIR: solving inverse problems with FLAIR, flow-based latent alignment and inverse reconstruction
(Erbach et al., NeurIPS 2025, arXiv 2506.02680).

    mu = E(A^+ y),  e ~ N(0, I)                             (regularised least squares if y is noisy)
    for t in times:                                         (descending)
        n   = c e + sqrt(1 - c^2) xi,  c = carry (1 - t),  xi ~ N(0, I) (trajectory-adjusted noise)
        z_t = (1 - t) mu + t n
        x, e = endpoints of the flow through z_t            (e is carried to the next step)
        lam = min(weight(t), max_pull t)                    (calibrated)
        mu  = mu - lam (e - x - (n - mu))                   (= mu - lam / t (mu - x))
        mu  = argmin |A D(mu) - y|^2 from there, stopped at sigma_y^2 m     (hard data consistency)

    weight(t) = regularizer_weight * max(100 (1 / m(t)) / sum_u 1 / m(u) + weight_shift, 0)

m(t) is the mean squared error of the prior's velocity, `prior.calibration`, measured once per prior (`invsolve
calibrate`) and read off at the nearest of its times; a prior without it has the constant weight regularizer_weight.
On a path other than the rectified flow, t in the weights is the flow time of equal sigma/alpha.

| | paper | official code | here |
|---|---|---|---|
| regularizer_weight | – | 0.5 | 0.5 |
| max_pull | – | unlimited (None here) | 0.8 |
| carry | 1 | 1 | 1 |
| weight_shift | – | 0 in the configs; minus the weight at t = 0 if left out (None here) | 0 |
| times | 1 to 0.2 | linspace(1, 0.18, 52) without its ends | the same, `flair` |
| data steps | argmin | at most 15 of SGD, lr 0.1 (inpainting, deblurring) or 12 (super-resolution), times lam | below |
| stop | – | 1e-4 per value, which is sigma_y = 0.01 | noise level; 1e-4 is `tolerance=1e-4` |
| start | E(A^T y) | E(A^+ y) | as RED-diff |

The official step size follows no rule from task to task, and stops too early without noise and never with more than
it was made for.  Here the data steps end where the misfit is what the problem's noise leaves: for a pixel prior and a
linear operator in one exact step, the nearest such picture; otherwise by conjugate gradients whose step length is that
of a linear problem, or where those hardly help any more: on inpainting often after five, where more would bend latents
to show what the decoder cannot, while a blur takes fifteen and gains by them.  `data_lr` with `max_pull=None` brings
the official steps back.

Without max_pull the official weight is above t where t is below 0.5 to 0.7, depending on the prior, so that mu goes
beyond x, and what is wrong with x grows from step to step.  Up to 1 a stronger pull gives sharper pictures with some
more error, and so does the carried noise on blurs and small pictures, where details have to be made up.  With most
pixels hidden `flair(max_pull=1.0, carry=0.0)` on the grid `restoration` is nearer to the truth: new noise drowns what
is wrong.  On a Gaussian posterior a weaker pull (0.2 without max_pull) keeps more of the spread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..linalg import expand_to, value_and_grad
from ..priors.base import Prior
from ..priors.schedule import LinearFlow
from ..problem import Problem, first_guess
from ..rng import ImageRng
from ..solver import Range, Solver
from ._hold import approach_data, meet_data
from ._misfit import misfit

__all__ = ["FLAIR"]

MIN_ERROR = 1e-7  # added to m(t), as in the official code


class State(NamedTuple):
    """The variational mean, and the noise end that the next step starts from."""

    mu: Tensor  # (B, *latent_shape)
    noise: Tensor  # e (B, *latent_shape)


@dataclass(frozen=True, kw_only=True)
class FLAIR(Solver[State]):
    """FLAIR: a variational mean between a flow prior, trusted where it is good, and data that are held exactly.

    Arguments:
        regularizer_weight: mean over t of the weight of the prior, before max_pull.
        max_pull: most of the way from mu to the prior's clean end x that one step goes; None for no limit.
        carry: how much of the noise end the next noise keeps, relative to the paper; 0 draws all of it anew.
        weight_shift: added to the calibrated weights before they are cut at 0; None subtracts the weight at t = 0.
        data_steps: most gradient steps on the data per time; 0 leaves the data out.
        data_lr: official step size on |A D(mu) - y|^2, which the weight multiplies; None takes no step size at all.
        tolerance: mean squared misfit where the data steps stop; None for that of the problem's noise.
    """

    times = "flair"
    steps = 50
    published: ClassVar[Mapping[str, Any]] = {"max_pull": None, "data_lr": 0.1, "tolerance": 1e-4}

    regularizer_weight: Annotated[float, Range(0)] = 0.5
    max_pull: Annotated[float | None, Range(0)] = 0.8
    carry: Annotated[float, Range(0, 1)] = 1.0
    weight_shift: Annotated[float | None, Range(-1000000.0, 1000000.0)] = 0.0
    data_steps: Annotated[int, Range(0)] = 15
    data_lr: Annotated[float | None, Range(0)] = None
    tolerance: Annotated[float | None, Range(0)] = None

    def init(self, t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> State:
        mu = prior.encode(first_guess(problem))
        return State(mu, rng.randn_like(mu))

    def step(self, state: State, t: Tensor, s: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> State:
        mu, e = state
        flow_t = LinearFlow().time(prior.schedule.ratio(t))
        kept = self.carry * (1 - flow_t)
        n = kept * e + (1 - kept.square()).sqrt() * rng.randn_like(e)
        x, e = prior.predict(prior.at(t, mu, n), t)
        lam = self._lam(flow_t, prior)
        mu = mu - lam * ((e - x) - (n - mu))
        return State(self._hold(mu, lam, problem, prior), e)

    def _lam(self, flow_t: Tensor, prior: Prior) -> Tensor:
        """How much of (mu - x) / t a step takes away at a flow time, a scalar."""
        weight = self.regularizer_weight * self._trust(flow_t, prior)
        return weight if self.max_pull is None else torch.minimum(weight, self.max_pull * flow_t)

    def _trust(self, flow_t: Tensor, prior: Prior) -> Tensor:
        """How good the prior is at a flow time, relative to its mean over all times."""
        if prior.calibration is None:
            return torch.ones_like(flow_t)
        trust = 1 / (prior.calibration.to(flow_t) + MIN_ERROR)  # uniform times from 1 to 0
        trust = trust / trust.mean()
        shift = -trust[-1] if self.weight_shift is None else self.weight_shift
        nearest = ((1 - flow_t) * (len(trust) - 1)).round().long()
        return (trust[nearest] + shift).clamp_min(0)

    def _hold(self, mu: Tensor, lam: Tensor, problem: Problem, prior: Prior) -> Tensor:
        """Hard data consistency."""
        limit = problem.level.square() if self.tolerance is None else torch.full_like(problem.level, self.tolerance)
        limit = limit * problem.n_data  # of the squared misfit (B,)
        if self.data_steps == 0:
            return mu
        if self.data_lr is None:
            if prior.has_decoder:
                return approach_data(mu, problem, prior, limit.sqrt(), self.data_steps)
            return meet_data(mu, problem, limit.sqrt(), self.data_steps)

        for _ in range(self.data_steps):  # on |A D(mu) - y|^2, twice the half that is differentiated
            half, g = value_and_grad(lambda z: misfit("half_sq", problem, prior.decode(z)), mu)
            far = 2 * half >= limit
            if not far.any():
                break
            mu = mu - expand_to(torch.where(far, self.data_lr * lam, 0), mu) * 2 * g
        return mu

    def estimate(self, state: State) -> Tensor:
        return state.mu
