"""Least squares by gradients, where the residual need not be linear."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..linalg import dot, expand_to, norm

__all__ = ["least_squares"]

ROUNDING = 1e-4  # of the radius: rows this near to it have arrived
STRETCH = 2.0  # at most, of a step whose end was estimated


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
