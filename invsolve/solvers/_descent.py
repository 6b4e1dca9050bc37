"""Steps downhill on the misfit: how long they may be, and conjugate gradients for its least squares."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..linalg import dot, expand_to, grad, norm
from ..operators.base import LinearOperator
from ..problem import Problem
from ._misfit import misfit

__all__ = ["DIFFERENCE", "curvature", "downhill", "least_squares"]

ROUNDING = 1e-4  # of the radius: rows this near to it have arrived
STRETCH = 2.0  # at most, of a step whose end was estimated
DIFFERENCE = 0.01  # step of a difference quotient, in units of the [-1, 1] image
HALVINGS = 6  # of a step that raises the misfit


def downhill(z: Tensor, move: Tensor, problem: Problem, decode: Callable[[Tensor], Tensor]) -> Tensor:
    """Step from z to z - move (B, *latent_shape), or a half, a quarter, ... of it where that raises |A D(z) - y|.

    For operators that are not linear, whose gradient may be that of something smoother; where every share down to
    1 / 32 raises the misfit, z stays.
    """
    start, share = misfit("half_sq", problem, decode(z)), torch.ones_like(problem.level)
    for _ in range(HALVINGS):
        worse = misfit("half_sq", problem, decode(z - expand_to(share, z) * move)) > start
        if not worse.any():
            break
        share = torch.where(worse, share / 2, share)
    else:
        share = torch.where(worse, 0, share)
    return z - expand_to(share, z) * move


def curvature(
    problem: Problem, decode: Callable[[Tensor], Tensor], z: Tensor, v: Tensor, rounds: int
) -> tuple[Tensor, Tensor]:
    """The largest curvature of |A D(z) - y|^2 / 2 per image (B,), by power iteration from v; the last v warm starts.

    J^T J v with the Jacobian J at z is a difference of residuals, exact for linear A D, carried back by a gradient.
    Differences may see nothing of a codec, which is flat between its jumps: the curvature is at least that along the
    gradient, |J^T r|^2 / |r|^2 for the residual r.

    Arguments:
        problem: operator and data.
        decode: latents to pictures.
        z: where (B, *latent_shape).
        v: a direction that is not orthogonal to the steepest, the same shape.
        rounds: number of products with J^T J.
    """
    length = DIFFERENCE * z[0].numel() ** 0.5  # of the step: DIFFERENCE in every entry on average
    here, largest = problem.residual(decode(z)), norm(z)
    for _ in range(rounds):
        v = v / expand_to(norm(v), v).clamp_min(torch.finfo(v.dtype).tiny)
        push = ((problem.residual(decode(z + length * v)) - here) / length).detach()
        v = grad(lambda u, push=push: dot(problem.residual(decode(u)), push), z)  # type: ignore[misc]
        largest = norm(v)
    if not isinstance(problem.operator, LinearOperator):
        pull, here = grad(lambda u: misfit("half_sq", problem, decode(u)), z), here.detach()
        largest = torch.maximum(largest, dot(pull, pull) / dot(here, here).clamp_min(torch.finfo(v.dtype).tiny))
    return largest, v


def least_squares(
    z: Tensor, residual: Callable[[Tensor], Tensor], radius: Tensor, steps: int, stall: float = 0.0
) -> Tensor:
    """Up to `steps` conjugate gradient steps on |r(z)| until it is at most `radius`, with no step size to choose.

    The directions are those of Polak and Ribiere (1969), which for a linear r is conjugate gradients on the normal
    equations.  A step goes to where |r| would be `radius` were it linear in z (Polyak, 1969), and is then changed to
    where it first is, or is least, were r linear along it.  A step that makes |r| larger after all is not taken; the
    next one goes straight down, a quarter as long if that one did, too.

    Arguments:
        z: start (B, *).
        residual: r, (B, *) -> (B, *), differentiable; rows do not mix.
        radius: |r| per image (B,) at which a row is done.
        steps: most steps.
        stall: a row is done, too, when a step takes away no more than this share of what |r| exceeds the radius by.
    """

    def look(z: Tensor, slope: bool) -> tuple[Tensor, Tensor, Tensor]:
        """r, its length and, if wanted, the gradient of half its square."""
        with torch.set_grad_enabled(slope):
            leaf = z.detach().requires_grad_(slope)
            r = residual(leaf)
            g = torch.autograd.grad(dot(r, r).sum() / 2, leaf)[0] if slope else leaf
        return r.detach(), norm(r.detach()), g

    tiny, pace = torch.finfo(z.dtype).tiny, torch.ones_like(radius)
    r, size, g = look(z, steps > 0)
    direction, steepest = -g, torch.ones_like(radius, dtype=torch.bool)
    stuck = ~steepest
    for k in range(1, steps + 1):
        active = ~stuck & (size > (1 + ROUNDING) * radius)
        if not active.any():
            break
        length = pace * (size - radius).clamp_min(0) * size / -dot(g, direction).clamp_max(-(tiny**0.5))
        move = expand_to(length, z) * direction
        d = residual(z + move) - r
        a, b, c = dot(d, d), dot(r, d), (size.square() - radius.square()).clamp_min(0)  # |r + k d|^2 = radius^2
        share = (-b - (b.square() - a * c).clamp_min(0).sqrt()) / a.clamp_min(tiny)
        moved = z + expand_to(share.clamp(0, STRETCH), z) * move
        found = look(moved, k < steps)
        lower = active & (found[1] < size)
        stuck = stuck | (lower & (found[1] - radius > (1 - stall) * (size - radius)))
        z = torch.where(expand_to(lower, z), moved, z)
        if k == steps:
            break
        turn = (dot(found[2], found[2] - g) / dot(g, g).clamp_min(tiny)).clamp_min(0)
        r, size, g = (
            torch.where(expand_to(lower, new), new, old) for new, old in zip(found, (r, size, g), strict=True)
        )
        pace = torch.where(lower, 1, torch.where(steepest, pace / 4, pace))
        direction = expand_to(torch.where(lower, turn, 0), z) * direction - g
        steepest = ~lower | (turn == 0) | (dot(g, direction) >= 0)
        direction = torch.where(expand_to(steepest, z), -g, direction)
    return z
