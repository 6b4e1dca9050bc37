"""MMPS: moment matching posterior sampling, from Learning diffusion priors from observations by expectation
maximization (Rozet, Andry, Lanusse & Louppe, NeurIPS 2024, arXiv 2405.13712).

    for t -> s in times:
        z0  = E[z_0 | z_t],  J = d z0 / d z_t
        V   = sigma_t^2 / alpha_t J^T                        (the covariance of z_0 given z_t, by Tweedie)
        w   = (sigma_y^2 + A V A^T)^-1 (y - A z0)            (GMRES, krylov_steps products with V)
        z0  = z0 + V A^T w                                   (E[z_0 | z_t, y] were p(z_0 | z_t) a Gaussian)
        eps = (z_t - alpha_t z0) / sigma_t
        z_s = alpha_s z0 + sqrt(sigma_s^2 - c1^2) eps + c1 n,  n ~ N(0, I)
        c1  = eta * the standard deviation of the ancestral step

Every product with V is a gradient through the network, and V is never formed.  The Jacobian of a network is neither
quite symmetric nor quite positive, on which conjugate gradients diverge within a few steps; GMRES does not, and has the
same limit.  It is preconditioned by (sigma_y^2 + r^2 A A^T)^-1, r^2 = sigma_t^2 / (alpha_t^2 + sigma_t^2), so that its
first direction is that of PiGDM.  For a decoder D the operator is A D, linearised at z0.

| | paper | azula | here |
|---|---|---|---|
| solver | conjugate gradients, few steps | conjugate gradients or GMRES, 1 step | GMRES, krylov_steps = 3 |
| sampler | any | any | DDIM with eta = 1 |
| grid | – | – | `karras`, 100 |
| sigma_y without noise | – | – | 1/255, the tolerance |

Every z_t has its law given y for Gaussian priors and linear operators in the limit of many steps; the error falls like
one over their number.  The grid `restoration` starts too low for that, but gives sharper photographs in few steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..linalg import expand_to, gmres, norm
from ..operators.base import LinearOperator
from ..priors.base import Prior
from ..problem import Problem
from ..rng import ImageRng
from ..solver import Solver, check_range
from ._data import DIFFERENCE
from ._path import ancestral_std, isotropic_std, transition
from ._start import noisy_first_guess

__all__ = ["MMPS"]

Map = Callable[[Tensor], Tensor]
MIN_RHO = 1e-5  # below, the preconditioner would be the difference of nearly equal numbers


@dataclass(frozen=True, kw_only=True)
class MMPS(Solver[Tensor]):
    """Moment matching: the network's Jacobian is the covariance with which the data correct its estimate.

    Arguments:
        krylov_steps: GMRES steps per time step, each a gradient through the network.
        eta: share of fresh noise; 1 is the ancestral (DDPM) step, 0 the deterministic DDIM step.
    """

    requires = LinearOperator
    samples_posterior = True
    times = "karras"
    steps = 100

    krylov_steps: int = 3
    eta: float = 1.0

    def __post_init__(self) -> None:
        check_range(self, 1, 1000, "krylov_steps")
        check_range(self, 0, 1, "eta")

    def init(self, t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Tensor:
        return noisy_first_guess(t, problem, prior, rng)

    def step(self, state: Tensor, t: Tensor, s: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Tensor:
        alpha_t, sigma_t = prior.schedule(t)
        gain = torch.where(alpha_t > 0, sigma_t.square() / alpha_t, 0)  # J = 0 where alpha_t = 0
        with torch.enable_grad():
            z_t = state.detach().requires_grad_(True)
            z0 = prior.predict(z_t, t).clean
        residual, forward, adjoint = _measurement(problem, prior, z0.detach())
        variance = expand_to(problem.level.square(), residual)
        rho = (problem.level / isotropic_std(prior, t, 1.0)).square().clamp_min(MIN_RHO)
        nothing = problem.y.new_zeros(len(problem.y), *problem.operator.image_shape)

        def covary(u: Tensor) -> Tensor:  # V u
            (g,) = torch.autograd.grad(z0, z_t, u, retain_graph=True)
            return gain * g

        def precondition(v: Tensor) -> Tensor:  # rho (A A^T + rho)^-1 v
            return v - problem.linear.forward(problem.linear.prox(nothing, v, rho))

        def spread(v: Tensor) -> Tensor:  # (sigma_y^2 + A V A^T) v
            return variance * v + forward(covary(adjoint(v)))

        w = precondition(gmres(lambda v: spread(precondition(v)), residual, max_steps=self.krylov_steps))
        clean = z0.detach() + covary(adjoint(w))
        eps = (state - alpha_t * clean) / sigma_t
        return transition(prior, s, clean, eps, ancestral_std(prior, t, s, self.eta), rng)


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
