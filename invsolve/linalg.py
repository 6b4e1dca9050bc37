"""Batched linear algebra on image-shaped tensors; every reduction is per image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["cg", "dot", "expand_to", "gmres", "grad", "norm", "proximal_cg", "value_and_grad"]

# A proximal step by conjugate gradients ends where a step lowers its objective by less than this part of it.
_PROXIMAL_TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-18}


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


def proximal_cg(
    forward: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    rho: Tensor,
    *,
    precondition: Callable[[Tensor], Tensor] = lambda r: r,
    inner: Callable[[Tensor, Tensor], Tensor] | None = None,
    max_steps: int = 2000,
) -> Tensor:
    """The picture argmin_u |A u - y|^2 + rho |u - x|^2 by conjugate gradients from u = x, per image.

    A row ends where a step lowers its objective by less than 3e-5 of it in float32, 1e-18 in float64.  With
    rho = (noise / prior std)^2 the objective is in units of the noise variance, so that u differs from the exact
    answer by a small part of the uncertainty of u itself.

    Arguments:
        forward: A, images (B, *) to data (B, *).
        adjoint: A^T with respect to `inner`.
        x: images (B, *); their dtype may be complex, if `inner` takes it.
        y: data (B, *).
        rho: positive, a scalar or one per image (B,).
        precondition: a symmetric positive map near (A^T A + rho)^-1.
        inner: inner product of images per image, (B, *) x (B, *) -> (B,), if not the usual one.
        max_steps: largest number of steps, each of one A and one A^T.
    """
    tolerance, tiny = _PROXIMAL_TOLERANCE[y.dtype], torch.finfo(y.dtype).tiny
    inner = inner or _vecdot
    misfit = y - forward(x)
    objective = _vecdot(misfit, misfit)
    floor = torch.finfo(y.dtype).eps * objective  # what is left of it after rounding
    r = adjoint(misfit)
    z = precondition(r)
    u, p, rz = x, z, inner(r, z)
    active = rz > 0
    for _ in range(max_steps):
        if not active.any():
            break
        hp = torch.addcmul(adjoint(forward(p)), expand_to(rho, p), p)
        step = torch.where(active, rz / inner(p, hp).clamp_min(tiny), 0)
        u = torch.addcmul(u, expand_to(step, u), p)
        r = torch.addcmul(r, expand_to(step, r), hp, value=-1)
        objective = objective - step * rz
        z = precondition(r)
        following = inner(r, z)
        active = active & (step * rz > tolerance * torch.maximum(objective, floor)) & (following > 0)
        p = torch.addcmul(z, expand_to(following / rz.clamp_min(tiny), p), p)
        rz = following
    return u


def _vecdot(x: Tensor, y: Tensor) -> Tensor:
    """`dot` without a product of the size of x."""
    return torch.matmul(x.flatten(1)[:, None], y.flatten(1)[:, :, None]).flatten()


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
