"""How pictures are held to the data: projections, proximal steps, guidance."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ..linalg import dot, expand_to, norm
from ..operators.base import LinearOperator, PinvOperator
from ..priors.base import Prior
from ..problem import Problem
from ._descent import least_squares
from ._path import isotropic_std

__all__ = ["approach_data", "explain_data", "meet_data", "proximal_step", "pseudo_inverse_guidance"]

NEWTON_STEPS = 10  # for one number; two or three are enough where the singular values are alike
ACCURACY = 0.01  # how closely the misfit meets the noise level, which is not known better
STALL = 0.06  # of the misfit above the noise level: what a step has to take away for another one
LATENT_STEPS = 6  # of a proximal step: more bend latents to show what the decoder cannot, though a blur gains by them
MIN_RHO = 1e-6  # keeps the proximal step well posed where no picture meets the noise level


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
