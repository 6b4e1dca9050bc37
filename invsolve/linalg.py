"""Batched linear algebra on image-shaped tensors; every reduction is per image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["cg", "dot", "expand_to", "gmres", "grad", "norm", "value_and_grad"]


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Inner product per image, (B, *) x (B, *) -> (B,)."""
    return (x * y).flatten(1).sum(dim=1)


def norm(x: Tensor) -> Tensor:
    """Euclidean norm per image, (B, *) -> (B,)."""
    return x.flatten(1).norm(dim=1)


def expand_to(value: Tensor, like: Tensor) -> Tensor:
    """Reshape a scalar or (B,) tensor so that it broadcasts over `like` (B, *)."""
    return value if value.ndim == 0 else value.reshape(-1, *[1] * (like.ndim - 1))


def grad(fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Gradient of a per-image scalar `fn`: (B, *) -> (B,) with respect to `x`; rows do not mix."""
    return value_and_grad(fn, x)[1]


def value_and_grad(fn: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """A per-image scalar `fn`: (B, *) -> (B,) at `x`, and its gradient there."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        value = fn(leaf)
        (g,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), g


def cg(
    matvec: Callable[[Tensor], Tensor],
    b: Tensor,
    x: Tensor | None = None,
    *,
    tolerance: float = 1e-6,
    max_steps: int = 200,
) -> Tensor:
    """Solve M x = b by conjugate gradients for a symmetric positive semi-definite M, per image.

    A row stops moving when its residual is below `tolerance` times the norm of its right-hand side, so the
    result of a picture does not depend on the others in the batch.

    Arguments:
        matvec: x (B, *) -> M x (B, *).
        b: right-hand side (B, *).
        x: start (B, *); zero if not given, which yields the minimum-norm solution of a consistent system.
        tolerance: relative residual at which a row is done.
        max_steps: largest number of products with M.
    """
    x, r = (torch.zeros_like(b), b) if x is None else (x, b - matvec(x))
    p, rr = r, dot(r, r)
    goal = tolerance**2 * dot(b, b)
    for _ in range(max_steps):
        active = rr > goal
        if not active.any():
            break
        mp = matvec(p)
        pmp = dot(p, mp)
        step = torch.where(active & (pmp > 0), rr / pmp.clamp_min(torch.finfo(b.dtype).tiny), 0)
        x = x + expand_to(step, x) * p
        r = r - expand_to(step, r) * mp
        rr_next = torch.where(active, dot(r, r), rr)
        p = torch.where(
            expand_to(active, p), r + expand_to(rr_next / rr.clamp_min(torch.finfo(b.dtype).tiny), p) * p, p
        )
        rr = rr_next
    return x


def gmres(matvec: Callable[[Tensor], Tensor], b: Tensor, *, tolerance: float = 1e-6, max_steps: int = 20) -> Tensor:
    """Solve M x = b by GMRES from zero, per image, for any M: every step makes |b - M x| smaller or leaves it.

    Unlike conjugate gradients it cannot diverge where M is only nearly symmetric or has negative eigenvalues, and it
    keeps one vector per step.

    Arguments:
        matvec: x (B, *) -> M x (B, *).
        b: right-hand side (B, *).
        tolerance: relative residual at which a row is done.
        max_steps: largest number of products with M.
    """
    tiny = torch.finfo(b.dtype).tiny
    size = norm(b)
    basis = [b / expand_to(size.clamp_min(tiny), b)]
    small = b.new_zeros(len(b), max_steps + 1, max_steps)  # M in the basis: M Q_k = Q_{k+1} H
    goal = b.new_zeros(len(b), max_steps + 1, 1)
    goal[:, 0, 0] = size
    weights = b.new_zeros(len(b), 0, 1)
    for k in range(max_steps):
        active = norm((goal - small[:, :, :k] @ weights).squeeze(-1)) > tolerance * size
        if not active.any():
            break
        product = matvec(basis[k])
        length = norm(product)
        for i in [*range(k + 1), *range(k + 1)]:  # twice, or rounding errors tilt the basis
            part = dot(basis[i], product)
            small[:, i, k] += part
            product = product - expand_to(part, product) * basis[i]
        rest = norm(product)
        rest = torch.where(active & (rest > 10 * torch.finfo(b.dtype).eps * length), rest, 0)  # else nothing is left
        small[:, k + 1, k] = rest
        small[:, :, k] = torch.where(active[:, None], small[:, :, k], 0)
        basis.append(torch.where(expand_to(rest > 0, b), product / expand_to(rest.clamp_min(tiny), b), 0))
        weights = torch.linalg.pinv(small[:, : k + 2, : k + 1]) @ goal[:, : k + 2]
    steps = weights.shape[1]
    return sum((expand_to(weights[:, k, 0], b) * basis[k] for k in range(steps)), torch.zeros_like(b))
