"""Batched linear algebra on image-shaped tensors; every reduction is per image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["cg", "dot", "expand_to", "grad", "norm"]


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
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        (g,) = torch.autograd.grad(fn(leaf).sum(), leaf)
    return g


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
    x = torch.zeros_like(b) if x is None else x
    r = b - matvec(x)
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
