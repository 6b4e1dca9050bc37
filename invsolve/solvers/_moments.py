"""Moment matching: p(z_0 | z_t) as the Gaussian whose covariance is the network's Jacobian; see `mmps`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..linalg import expand_to, gmres, norm
from ..priors.base import Prior
from ..problem import Problem
from ._descent import DIFFERENCE
from ._path import denoising_gain, isotropic_std

__all__ = ["Moments", "match_moments"]

Map = Callable[[Tensor], Tensor]
MIN_RHO = 1e-5  # below, the preconditioner would be the difference of nearly equal numbers


class Moments(NamedTuple):
    """The ends at z_t and what the data say of them, V = gain J^T being the covariance of z_0 given z_t."""

    clean: Tensor  # z0 = E[z_0 | z_t] (B, *latent_shape)
    noise: Tensor  # E[eps | z_t]
    misfit: Tensor  # y - A D(z0) (B, *data_shape)
    weights: Tensor  # w = (sigma_y^2 + A V A^T)^-1 (y - A D(z0))
    pull: Tensor  # J^T A^T w (B, *latent_shape)
    gain: Tensor  # sigma_t^2 / alpha_t, a scalar; 0 where alpha_t = 0 and with it J


def match_moments(state: Tensor, t: Tensor, problem: Problem, prior: Prior, krylov_steps: int) -> Moments:
    """Solve (sigma_y^2 + A V A^T) w = y - A D(z0) by preconditioned GMRES, each step a gradient through the network.

    Arguments:
        state: z_t (B, *latent_shape).
        t: the time.
        problem: with a linear operator; a decoder D is linearised at z0.
        prior: gives z0 and, by gradients, V.
        krylov_steps: products with V.
    """
    gain = denoising_gain(prior, t)
    with torch.enable_grad():
        z_t = state.detach().requires_grad_(True)
        z0, eps = prior.predict(z_t, t)
    misfit, forward, adjoint = _measurement(problem, prior, z0.detach())
    variance = expand_to(problem.level.square(), misfit)
    rho = (problem.level / isotropic_std(prior, t, 1.0)).square().clamp_min(MIN_RHO)
    nothing = problem.y.new_zeros(len(problem.y), *problem.operator.image_shape)

    def pull_back(u: Tensor) -> Tensor:  # J^T u
        (g,) = torch.autograd.grad(z0, z_t, u, retain_graph=True)
        return g

    def precondition(v: Tensor) -> Tensor:  # rho (A A^T + rho)^-1 v
        return v - problem.linear.forward(problem.linear.prox(nothing, v, rho))

    def spread(v: Tensor) -> Tensor:  # (sigma_y^2 + A V A^T) v
        return variance * v + forward(gain * pull_back(adjoint(v)))

    w = precondition(gmres(lambda v: spread(precondition(v)), misfit, max_steps=krylov_steps))
    return Moments(z0.detach(), eps.detach(), misfit, w, pull_back(adjoint(w)), gain)


def _measurement(problem: Problem, prior: Prior, z0: Tensor) -> tuple[Tensor, Map, Map]:
    """The misfit y - A D(z0), and products with the derivative of A D at z0 and with its transpose."""
    operator = problem.linear
    x0 = prior.decode(z0)
    if x0 is z0:
        return -problem.residual(x0), operator.forward, operator.adjoint
    with torch.enable_grad():
        z = z0.requires_grad_(True)
        data = operator(prior.decode(z))
    here = data.detach()

    def forward(u: Tensor) -> Tensor:  # a difference quotient: decoders with attention have no forward derivative
        step = expand_to(DIFFERENCE * u[0].numel() ** 0.5 / norm(u).clamp_min(torch.finfo(u.dtype).tiny), u)
        return (operator(prior.decode(z0.detach() + step * u)) - here) / expand_to(step.flatten(), here)

    def adjoint(v: Tensor) -> Tensor:
        (g,) = torch.autograd.grad(data, z, v, retain_graph=True)
        return g

    return problem.y - here, forward, adjoint
