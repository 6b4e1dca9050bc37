"""The source space of a flow, which D-Flow and SGFM work in: its transport map, and descent there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..linalg import dot, expand_to, norm
from ..priors.base import Prior
from ..sample import follow_flow
from ..times import make_times

__all__ = ["Descent", "chi_nll", "descend", "start_descent", "transport", "transport_calls", "value_grad_z"]

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]  # x (B, *) -> its value (B,) and the latent z that x stands for

SUFFICIENT = 1e-4  # share of the predicted decrease that a step must bring (Armijo)
FIRST_STEP = 0.1  # length of the first step as a share of |x|


def transport(prior: Prior, x: Tensor, steps: int) -> Tensor:
    """T(x): source points x ~ N(0, I) carried along the flow to latents (B, *latent_shape), by the midpoint rule.

    The flow starts at the first ratio R of the grid `karras` by a step of Heun's method from infinite noise,
    alpha_R (E[z_0] + E[z_0 | R x]) / 2 + sigma_R x, with E[z_0] = (E[z_0 | R x] + E[z_0 | -R x]) / 2: for a Gaussian
    prior that start has the right mean, and the right variance up to (variance / R^2)^2 / 8.
    """
    times = make_times("karras", steps, prior.schedule).to(x)
    t = times[0]
    clean, mirrored = (prior.predict(prior.at(t, torch.zeros_like(x), point), t).clean for point in (x, -x))
    return follow_flow(prior, prior.at(t, 0.75 * clean + 0.25 * mirrored, x), times, midpoint=True)


def transport_calls(steps: int) -> int:
    """Predictions in one evaluation of `transport`."""
    return 2 * steps + 2


def value_grad_z(fn: Objective, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The value of fn at x (B, *), its gradient there, and z."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        value, z = fn(leaf)
        (g,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), g, z.detach()


class Descent(NamedTuple):
    """State of a limited-memory BFGS minimisation in which every image has its own step, memory and acceptance."""

    x: Tensor  # the best point (B, *)
    z: Tensor  # the latent that x stands for (B, *latent_shape)
    value: Tensor  # there (B,)
    g: Tensor  # gradient there
    direction: Tensor  # in which the next point is tried
    length: Tensor  # and how far (B,)
    pairs: tuple[tuple[Tensor, Tensor, Tensor], ...] = ()  # (change of x, change of g, 1 / their product or 0)


def start_descent(fn: Objective, x: Tensor) -> Descent:
    """A descent on fn: (B, *) -> (B,), (B, *latent_shape) from x (B, *); one evaluation."""
    value, g, z = value_grad_z(fn, x)
    tiny = torch.finfo(x.dtype).tiny
    return Descent(x, z, value, g, -g, FIRST_STEP * norm(x) / norm(g).clamp_min(tiny))


def descend(fn: Objective, state: Descent, memory: int = 10) -> Descent:
    """Try one point: where it lowers fn enough, it is taken and the next direction is L-BFGS's; elsewhere go less far.

    Exactly one evaluation of fn, whatever happens, so that the cost of a run is known and rows do not wait for each
    other.  Where a try failed, the next is the minimum of the parabola through what is known, within [0.1, 0.5].
    """
    x, z, value, g, direction, length, pairs = state
    trial = x + expand_to(length, x) * direction
    trial_value, trial_g, trial_z = value_grad_z(fn, trial)
    predicted = length * dot(g, direction)
    lower = trial_value <= value + SUFFICIENT * predicted  # False for NaN
    tiny = torch.finfo(x.dtype).tiny

    product = dot(trial - x, trial_g - g)
    useful = lower & (product > 1e-10 * norm(trial - x) * norm(trial_g - g))
    change, bend = (torch.where(expand_to(useful, x), d, 0) for d in (trial - x, trial_g - g))
    pairs = (*pairs, (change, bend, torch.where(useful, 1 / product, 0)))[-memory:]

    moves = ((trial, x), (trial_z, z), (trial_g, g))
    x, z, g = (torch.where(expand_to(lower, new), new, old) for new, old in moves)
    shrink = (-predicted / (2 * (trial_value - value - predicted)).clamp_min(tiny)).nan_to_num(0).clamp(0.1, 0.5)
    length = torch.where(lower, 1.0, shrink * length)
    direction = torch.where(expand_to(lower, x), _quasi_newton(g, pairs), direction)
    return Descent(x, z, torch.where(lower, trial_value, value), g, direction, length, pairs)


def _quasi_newton(g: Tensor, pairs: tuple[tuple[Tensor, Tensor, Tensor], ...]) -> Tensor:
    """-H g by L-BFGS's two loops (Nocedal, 1980); a pair of zeros changes nothing."""
    q, weights, scale = g, [], torch.ones_like(pairs[0][2])
    for change, bend, inverse in reversed(pairs):
        weights.append(inverse * dot(change, q))
        q = q - expand_to(weights[-1], q) * bend
    for _, bend, inverse in pairs:  # that of the newest pair stays
        scale = torch.where(inverse > 0, 1 / (inverse * dot(bend, bend)).clamp_min(1e-30), scale)
    q = expand_to(scale, q) * q
    for (change, bend, inverse), weight in zip(pairs, reversed(weights), strict=True):
        q = q + expand_to(weight - inverse * dot(bend, q), q) * change
    return -q


def chi_nll(x: Tensor) -> Tensor:
    """-log of the chi-squared density of |x|^2 per image (B,): |x|^2 / 2 - (d - 2) log |x|, least at |x|^2 = d - 2."""
    squared = dot(x, x)
    return squared / 2 - (x[0].numel() / 2 - 1) * squared.clamp_min(math.exp(-60)).log()
