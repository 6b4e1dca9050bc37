"""How pictures are compared with the data, and moved towards them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from ..linalg import dot, expand_to, grad, norm
from ..operators.base import LinearOperator, Operator, PinvOperator
from ..priors.base import Prior
from ..problem import Problem
from ..solver import Solver, check_choice, check_range
from ._least_squares import least_squares
from ._path import isotropic_std

__all__ = [
    "DIFFERENCE",
    "DataTerm",
    "approach_data",
    "check_data_term",
    "check_step",
    "curvature",
    "downhill",
    "explain_data",
    "meet_data",
    "misfit",
    "proximal_step",
    "pseudo_inverse_guidance",
]

DataTerm = Literal["half_sq", "nll", "norm", "pinv_norm", "adjoint_norm"]
NEWTON_STEPS = 10  # for one number; two or three are enough where the singular values are alike
ACCURACY = 0.01  # how closely the misfit meets the noise level, which is not known better
DIFFERENCE = 0.01  # step of a difference quotient, in units of the [-1, 1] image
STALL = 0.06  # of the misfit above the noise level: what a step has to take away for another one
LATENT_STEPS = 6  # of a proximal step: more bend latents to show what the decoder cannot, though a blur gains by them
HALVINGS = 6  # of a step that raises the misfit
MIN_RHO = 1e-6  # keeps the proximal step well posed where no picture meets the noise level


def check_step(solver: Solver[Any], step_size: float | None, data_term: str) -> None:
    """Refuse a name that is not one of `DataTerm`, a step that is no number, and none where a data term needs one.

    Without a step size, `approach_data` finds it, which goes down |A x - y| alone.
    """
    check_choice(solver, "data_term", DataTerm)
    check_range(solver, 0, math.inf, "step_size")
    if step_size is None and data_term != "norm":
        name = type(solver).__name__
        raise ValueError(f"{name}: data_term {data_term!r} needs a step_size, for example step_size=1.0.")


def misfit(data_term: DataTerm, problem: Problem, x: Tensor) -> Tensor:
    """How badly pictures x (B, *image_shape) explain the data, by name, per image (B,).

    `half_sq` |A x - y|^2 / 2; `nll` -log p(y | x); `norm` |A x - y|; `pinv_norm` |A^+ (A x - y)| and `adjoint_norm`
    |A^T (A x - y)|.

    Raises:
        TypeError: the operator lacks the pseudo-inverse or adjoint that the name asks for.
    """
    check_data_term(data_term, problem.operator)
    if data_term == "nll":
        return problem.nll(x)
    r = problem.residual(x)
    if data_term == "half_sq":
        return dot(r, r) / 2
    if data_term == "norm":
        return norm(r)
    operator: Any = problem.operator
    if data_term == "pinv_norm":
        return norm(operator.pinv(problem.y + r) - operator.pinv(problem.y))
    return norm(operator.adjoint(r))


def check_data_term(data_term: DataTerm, operator: Operator) -> None:
    """Refuse a data term that asks for a pseudo-inverse or adjoint which the operator lacks.

    Raises:
        TypeError: it does.
    """
    needed = {"pinv_norm": PinvOperator, "adjoint_norm": LinearOperator}.get(data_term, Operator)
    if not isinstance(operator, needed):
        raise TypeError(
            f"data_term {data_term!r} needs a pseudo-inverse or adjoint, which {type(operator).__name__} lacks; "
            "use 'half_sq' or 'norm'."
        )


def meet_data(x: Tensor, problem: Problem, radius: Tensor, steps: int) -> Tensor:
    """The picture nearest to x (B, *image_shape) with |A x - y| <= radius: Morozov's principle; x itself if it has.

    For a linear operator that is its proximal step with the multiplier of the constraint, found by Newton's method; for
    another one without noise its own projection, if it has one, and else up to `steps` steps of `least_squares`.

    Arguments:
        x: pictures (B, *image_shape).
        problem: operator, noise and data.
        radius: largest misfit per image (B,), usually `problem.radius`.
        steps: most gradient steps.
    """
    operator, y = problem.operator, problem.y
    if isinstance(operator, PinvOperator) and not isinstance(operator, LinearOperator) and not problem.std.any():
        return torch.where(expand_to(norm(problem.residual(x)) > radius, x), operator.project(x, y), x)
    if not isinstance(operator, LinearOperator):
        return least_squares(x, problem.residual, radius, steps)
    # With M = A A^T the misfit is r(c) = (I + c M)^-1 r(0) at c = 1 / rho, and 1 / |r(c)| is a concave function of c:
    # Newton's method for 1 / |r(c)| = 1 / radius climbs to the solution from c = 0 without passing it.
    u, r, c, rho = x, problem.residual(x), torch.zeros_like(radius), torch.full_like(radius, 1 / MIN_RHO)
    tiny = torch.finfo(x.dtype).tiny
    for k in range(NEWTON_STEPS):
        size = norm(r)
        far = (size > (1 + ACCURACY) * radius) & (c < 1 / MIN_RHO)
        if not far.any():
            break
        back = operator.adjoint(r)
        solved = (
            back if k == 0 else expand_to(rho, x) * operator.prox(torch.zeros_like(x), r, rho)
        )  # A^T (I + c M)^-1 r
        slope = dot(back, solved) / size.pow(3).clamp_min(tiny)
        step = (1 / radius - 1 / size.clamp_min(tiny)) / slope.clamp_min(tiny)
        c = torch.where(far, (c + step).clamp(max=1 / MIN_RHO), c)
        rho = 1 / c.clamp_min(MIN_RHO)
        u = torch.where(expand_to(far, x), operator.prox(x, y, rho), u)
        r = problem.residual(u)
    return u


def approach_data(z: Tensor, problem: Problem, prior: Prior, radius: Tensor, steps: int) -> Tensor:
    """Up to `steps` conjugate gradient steps on |A D(z) - y| until it is at most `radius`; see `least_squares`.

    Through a decoder they end where they hardly help any more, too: what then is left is what D cannot show, and more
    would only bend z.
    """
    stall = STALL if prior.has_decoder else 0.0
    return least_squares(z, lambda u: problem.residual(prior.decode(u)), radius, steps, stall)


def proximal_step(z0: Tensor, problem: Problem, rho: Tensor, prior: Prior, y: Tensor | None = None) -> Tensor:
    """The proximal step argmin_z |A D(z) - y|^2 + rho |z - z0|^2: the mean given y of z ~ N(z0, sigma_y^2 / rho I).

    For a pixel prior one `explain_data`, exact where A is linear; through a decoder, which nothing inverts, at most
    `LATENT_STEPS` conjugate gradient steps from z0, for every operator.

    Arguments:
        z0: clean ends (B, *latent_shape).
        problem: operator, data and noise level.
        rho: (sigma_y / std of z)^2 per image (B,).
        prior: whose latents they are.
        y: in place of the problem's data.

    Raises:
        TypeError: the operator is neither linear nor has a pseudo-inverse, with a pixel prior.
    """
    if y is not None:
        mask = problem.operator.data_mask  # noise in what was not measured is no misfit
        problem = dataclasses.replace(problem, y=y if mask is None else y * mask)
    if not prior.has_decoder:
        return explain_data(z0, problem, rho)
    pull = expand_to(rho.sqrt(), z0)

    def residual(z: Tensor) -> Tensor:
        return torch.cat([problem.residual(prior.decode(z)).flatten(1), (pull * (z - z0)).flatten(1)], dim=1)

    rounding = 10 * torch.finfo(z0.dtype).eps
    return least_squares(z0, residual, torch.zeros_like(rho), LATENT_STEPS, rounding)


def explain_data(x: Tensor, problem: Problem, rho: Tensor) -> Tensor:
    """Mean of x' given y where x' ~ N(x, sigma_y^2 / rho): a proximal step of rho, differentiable in x.

    An operator that is not linear takes the part 1 / (1 + rho) of the way to what explains y.

    Arguments:
        x: pictures (B, *image_shape).
        problem: operator, data and sigma_y, the noise level or the tolerance of noiseless data.
        rho: (sigma_y / std of x')^2 per image (B,).

    Raises:
        TypeError: the operator is neither linear nor has a pseudo-inverse.
    """
    operator = problem.operator
    if isinstance(operator, LinearOperator):
        return operator.prox(x, problem.y, rho)
    if isinstance(operator, PinvOperator):
        return x + (operator.project(x, problem.y) - x) / (1 + expand_to(rho, x))
    raise TypeError(f"{type(operator).__name__} is neither linear nor has a pseudo-inverse.")


def pseudo_inverse_guidance(
    prior: Prior, problem: Problem, state: Tensor, t: Tensor, data_std: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Both ends at z_t, and which way z_t explains the data: J^T r^2 A^T (r^2 A A^T + sigma_y^2)^-1 (y - A z_0).

    J is the Jacobian of the clean end and r its `isotropic_std`.  All but J is a `proximal_step`, which for a decoder
    puts D beside A, and makes it approximate.
    """
    with torch.enable_grad():
        z = state.detach().requires_grad_(True)
        z0, eps = prior.predict(z, t)
    rho = (problem.level / isotropic_std(prior, t, data_std)).square()
    pull = proximal_step(z0.detach(), problem, rho, prior) - z0.detach()
    (guidance,) = torch.autograd.grad(z0, z, pull)
    return z0.detach(), eps.detach(), guidance


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
