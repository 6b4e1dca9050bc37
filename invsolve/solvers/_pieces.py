"""Steps that several papers share."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..linalg import dot, expand_to, grad, norm
from ..operators.base import LinearOperator, PinvOperator
from ..operators.spectral import SpectralOperator
from ..priors.base import Prior
from ..priors.schedule import LinearFlow
from ..problem import Problem
from ..rng import ImageRng
from ..solver import Solver

__all__ = [
    "WEIGHTINGS",
    "DataTerm",
    "Resampling",
    "ancestral_std",
    "approach_data",
    "check_data_term",
    "check_resampling",
    "check_weighting",
    "curvature",
    "first_guess",
    "isotropic_std",
    "meet_data",
    "misfit",
    "noisy_first_guess",
    "ode",
    "pseudo_inverse_guidance",
    "resample",
    "transition",
]

Resampling = Literal["systematic", "multinomial"]
DataTerm = Literal["half_sq", "nll", "norm", "pinv_norm", "adjoint_norm"]

WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {  # of r = sigma/alpha, for score distillation
    "s_over_a": lambda r: r,  # "linear" in the official code of RED-diff
    "sqrt": torch.sqrt,
    "square": torch.square,
    "log": torch.log1p,
    "trunc_linear": lambda r: r.clamp(max=1),
    "power2over3": lambda r: r ** (2 / 3),
    "const": torch.ones_like,
}

SIGNAL_STD = 0.5  # standard deviation of a photograph in [-1, 1] units
NEWTON_STEPS = 10  # for one number; two or three are enough where the singular values are alike
ACCURACY = 0.01  # how closely the misfit meets the noise level, which is not known better
DIFFERENCE = 0.01  # step of a difference quotient, in units of the [-1, 1] image
MIN_RHO = 1e-6  # keeps the proximal step well posed where no picture meets the noise level


def ancestral_std(prior: Prior, t: Tensor, s: Tensor, eta: float) -> Tensor:
    """Eta times the standard deviation of p(z_s | z_t, z_0) (DDIM's sigma; Song et al., arXiv 2010.02502, eq. 16).

    Written with the ratios r = sigma/alpha it holds on every path: alpha_s r_s sqrt(1 - (r_s / r_t)^2).
    """
    _, sigma_s = prior.schedule(s)
    shrink = prior.schedule.ratio(s) / prior.schedule.ratio(t)
    return eta * sigma_s * (1 - shrink.square()).clamp_min(0).sqrt()


def transition(
    prior: Prior, s: Tensor, clean: Tensor, noise: Tensor, fresh_std: Tensor, rng: ImageRng, temperature: float = 1.0
) -> Tensor:
    """alpha_s clean + sqrt(sigma_s^2 - fresh_std^2) noise + temperature fresh_std n with n ~ N(0, I).

    Arguments:
        prior: whose schedule gives alpha and sigma.
        s: the time to go to.
        clean: E[z_0 | z_t] or what a solver made of it (B, *latent_shape).
        noise: E[eps | z_t] (B, *latent_shape).
        fresh_std: standard deviation of the fresh noise, at most sigma_s.
        rng: where the fresh noise comes from.
        temperature: factor on the fresh noise alone; 1 keeps the level of the path.
    """
    alpha_s, sigma_s = prior.schedule(s)
    kept = (sigma_s.square() - fresh_std.square()).clamp_min(0).sqrt()
    fresh = temperature * expand_to(torch.as_tensor(fresh_std), clean) * rng.randn_like(clean)
    return expand_to(alpha_s, clean) * clean + expand_to(kept, noise) * noise + fresh


def first_guess(problem: Problem) -> Tensor:
    """A picture made of the data alone (B, *image_shape): A^+ y, or zero where A has no pseudo-inverse.

    With noise, a linear operator's data are weighed against the spread of photographs, since A^+ would amplify the
    noise without bound where A keeps little: argmin_x |A x - y|^2 + (sigma / 0.5)^2 |x|^2.
    """
    operator, y, std = problem.operator, problem.y, problem.std
    zero = y.new_zeros(len(y), *operator.image_shape)
    if isinstance(operator, LinearOperator) and bool((std > 0).all()):
        return operator.prox(zero, y, (std / SIGNAL_STD).square())
    return operator.pinv(y) if isinstance(operator, PinvOperator) else zero


def noisy_first_guess(t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> Tensor:
    """The first guess at time t of the path (B, *latent_shape): pure noise where alpha_t = 0.

    In pixels and with a known spectrum, what y shows with less noise than the path has at t is taken from y as it is,
    and only the noise that it lacks is added: DDRM's start (arXiv 2201.11793, eq. 4).  A noisy picture is then itself
    the point of the path at its own noise level.
    """
    guess, operator = first_guess(problem), problem.operator
    z0 = prior.encode(guess)
    noise = rng.randn_like(z0)
    if isinstance(operator, SpectralOperator) and z0 is guess:
        own = expand_to(problem.std / prior.schedule.ratio(t), z0)  # noise of y over that of the path where v = 1

        def seen(v: Tensor) -> Tensor:
            return (v > 0) & (v >= own * (1 - 1e-5))  # equal up to rounding at the noise of y itself

        z0 = operator.spectral(guess, lambda v: torch.where(seen(v), 0.0, 1.0)) + operator.spectral(
            operator.pinv(problem.y), lambda v: torch.where(seen(v), 1.0, 0.0)
        )
        noise = operator.spectral(
            noise, lambda v: torch.where(seen(v), (1 - (own / v.clamp_min(1e-30)).square()).clamp_min(0).sqrt(), 1.0)
        )
    return prior.at(t, z0, noise)


def isotropic_std(prior: Prior, t: Tensor, data_std: float) -> Tensor:
    """Standard deviation of z_0 given z_t if z_0 ~ N(m, data_std^2 I): r_t of PiGDM and OT-ODE, nu_t of FLOWER."""
    alpha, sigma = prior.schedule(t)
    return data_std * sigma / torch.hypot(alpha * data_std, sigma)


def pseudo_inverse_guidance(
    prior: Prior, problem: Problem, state: Tensor, t: Tensor, data_std: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Both ends at z_t, and which way z_t explains the data: J^T r^2 A^T (r^2 A A^T + sigma_y^2)^-1 (y - A z_0).

    J is the Jacobian of the clean end and r its `isotropic_std`; sigma_y is the noise level, or the tolerance of
    noiseless data.  All but J is a proximal step on the picture, for a decoder carried back to the latent by the
    encoder; an operator that is not linear takes the part 1 / (1 + sigma_y^2 / r^2) of the way to what explains y.
    """
    with torch.enable_grad():
        z = state.detach().requires_grad_(True)
        z0, eps = prior.predict(z, t)
    x0, operator = prior.decode(z0.detach()), problem.operator
    rho = (problem.level / isotropic_std(prior, t, data_std)).square()  # (B,)
    if isinstance(operator, LinearOperator):
        x = operator.prox(x0, problem.y, rho)
    else:
        assert isinstance(operator, PinvOperator)
        x = x0 + (operator.project(x0, problem.y) - x0) / (1 + expand_to(rho, x0))
    (guidance,) = torch.autograd.grad(z0, z, prior.encode(x) - prior.encode(x0))
    return z0.detach(), eps.detach(), guidance


def check_data_term(solver: Solver[Any], data_term: str) -> None:
    """Refuse the name of a misfit that is not one of `DataTerm`, with one sentence."""
    if data_term not in get_args(DataTerm):
        known = ", ".join(get_args(DataTerm))
        raise ValueError(f"{type(solver).__name__}: data_term must be one of {known}, got {data_term!r}.")


def check_weighting(weighting: str) -> None:
    """Refuse a weighting that is not a name of `WEIGHTINGS`, with one sentence."""
    if weighting not in WEIGHTINGS:
        raise ValueError(f"Unknown weighting {weighting!r}; choose one of {', '.join(WEIGHTINGS)}.")


def misfit(data_term: DataTerm, problem: Problem, x: Tensor) -> Tensor:
    """How badly pictures x (B, *image_shape) explain the data, by name, per image (B,).

    `half_sq` |A x - y|^2 / 2; `nll` -log p(y | x); `norm` |A x - y|; `pinv_norm` |A^+ (A x - y)| and `adjoint_norm`
    |A^T (A x - y)|.

    Raises:
        TypeError: the operator lacks the pseudo-inverse or adjoint that the name asks for.
    """
    if data_term == "nll":
        return problem.nll(x)
    r = problem.residual(x)
    if data_term == "half_sq":
        return dot(r, r) / 2
    if data_term == "norm":
        return norm(r)
    operator = problem.operator
    if data_term == "pinv_norm" and isinstance(operator, PinvOperator):
        return norm(operator.pinv(problem.y + r) - operator.pinv(problem.y))
    if data_term == "adjoint_norm" and isinstance(operator, LinearOperator):
        return norm(operator.adjoint(r))
    raise TypeError(
        f"data_term {data_term!r} needs a pseudo-inverse or adjoint, which {type(operator).__name__} lacks; "
        "use 'half_sq' or 'norm'."
    )


def meet_data(x: Tensor, problem: Problem, radius: Tensor, steps: int) -> Tensor:
    """The picture nearest to x (B, *image_shape) with |A x - y| <= radius: Morozov's principle; x itself if it has.

    For a linear operator that is its proximal step with the multiplier of the constraint, found by Newton's method; for
    another one without noise its own projection, if it has one, and else up to `steps` steps of `approach_data`.

    Arguments:
        x: pictures (B, *image_shape).
        problem: operator, noise and data.
        radius: largest misfit per image (B,), usually the noise level times the root of the number of data.
        steps: most gradient steps.
    """
    operator, y = problem.operator, problem.y
    if isinstance(operator, PinvOperator) and not isinstance(operator, LinearOperator) and not problem.std.any():
        return torch.where(expand_to(norm(problem.residual(x)) > radius, x), operator.project(x, y), x)
    if not isinstance(operator, LinearOperator):
        return approach_data(x, problem, lambda u: u, radius, steps)
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


def approach_data(
    z: Tensor, problem: Problem, decode: Callable[[Tensor], Tensor], radius: Tensor, steps: int
) -> Tensor:
    """Up to `steps` gradient steps on |A D(z) - y| until it is at most `radius`, without a step size to choose.

    A step goes to where the misfit would be `radius` were it linear in z (Polyak, 1969), and is then shortened to where
    it first is, or is least, were the residual linear between the two ends.  A step that makes the misfit larger after
    all is not taken, and the next one is a quarter as long.

    Arguments:
        z: latents (B, *latent_shape).
        problem: operator, noise and data.
        decode: latents to pictures.
        radius: misfit per image (B,) at which a row is done.
        steps: most steps.
    """
    tiny, pace = torch.finfo(z.dtype).tiny, torch.ones_like(radius)
    for _ in range(steps):
        with torch.enable_grad():
            leaf = z.detach().requires_grad_(True)
            r = problem.residual(decode(leaf))
            size = norm(r)
            (g,) = torch.autograd.grad(size.sum(), leaf)
        r, size = r.detach(), size.detach()
        if not (size > radius).any():
            break
        move = -expand_to(pace * (size - radius).clamp_min(0) / dot(g, g).clamp_min(tiny), z) * g
        d = problem.residual(decode(z + move)) - r
        a, b, c = dot(d, d), dot(r, d), (size.square() - radius.square()).clamp_min(0)  # |r + k d|^2 = radius^2
        share = (-b - (b.square() - a * c).clamp_min(0).sqrt()) / a.clamp_min(tiny)
        moved = z + expand_to(share.clamp(0, 1), z) * move
        lower = norm(problem.residual(decode(moved))) < size
        z, pace = torch.where(expand_to(lower, z), moved, z), torch.where(lower, 1, pace / 4)
    return z


def ode(prior: Prior, z: Tensor, times: Tensor, *, midpoint: bool = False) -> Tensor:
    """Follow the probability flow from z (B, *latent_shape) at the first time to the last, in either direction.

    One step from t to s is DDIM's, alpha_s clean + sigma_s noise, which on every path is Euler's step of the rectified
    flow.  The midpoint rule doubles the calls and, on that flow, makes the error of second order.

    Arguments:
        prior: whose flow it is.
        z: where it starts.
        times: monotone, (n + 1,).
        midpoint: the midpoint rule, 2 n calls, instead of Euler's, n calls.
    """
    flow, schedule = LinearFlow(), prior.schedule
    for t, s in pairwise(times):
        if not midpoint:
            z = prior.at(s, *prior.predict(z, t))
            continue
        flow_t, flow_s = (flow.time(schedule.ratio(u)) for u in (t, s))
        middle = schedule.time(flow.ratio((flow_t + flow_s) / 2))
        clean, noise = prior.predict(prior.at(middle, *prior.predict(z, t)), middle)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
        z = (alpha_s + sigma_s) * (z / (alpha_t + sigma_t) + (flow_s - flow_t) * (noise - clean))
    return z


def curvature(
    problem: Problem, decode: Callable[[Tensor], Tensor], z: Tensor, v: Tensor, rounds: int
) -> tuple[Tensor, Tensor]:
    """The largest curvature of |A D(z) - y|^2 / 2 per image (B,), by power iteration from v; the last v warm starts.

    J^T J v with the Jacobian J at z is a difference of residuals, exact for linear A D, carried back by a gradient.

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
    return largest, v


def check_resampling(solver: Solver[Any], resampling: str) -> None:
    """Refuse the name of a resampling scheme that is not one of `Resampling`, with one sentence."""
    if resampling not in get_args(Resampling):
        known = ", ".join(get_args(Resampling))
        raise ValueError(f"{type(solver).__name__}: resampling must be one of {known}, got {resampling!r}.")


def resample(log_w: Tensor, problem: Problem, resampling: Resampling, rng: ImageRng) -> tuple[Tensor, Tensor]:
    """The parent of every particle (B,), and the effective sample size (sum w)^2 / sum w^2 of every group (G,).

    A particle that is not finite has no children.

    Arguments:
        log_w: log weights (B,), up to a constant in each group.
        problem: which says how many consecutive rows are a group.
        resampling: `systematic`, with the first random number of each group, or `multinomial`.
        rng: where the numbers come from.
    """
    n = problem.particles
    weights = log_w.double().nan_to_num(-torch.inf, -torch.inf).unflatten(0, (-1, n)).softmax(dim=1)  # (G, N)
    u = rng.rand((), dtype=weights.dtype, device=weights.device).unflatten(0, (-1, n))
    if resampling == "systematic":
        u = (torch.arange(n).to(u) + u[:, :1]) / n
    chosen = torch.searchsorted(weights.cumsum(dim=1), u.contiguous(), right=True).clamp(max=n - 1)
    first = n * torch.arange(len(weights), device=chosen.device)[:, None]
    return (first + chosen).flatten(), 1 / weights.square().sum(dim=1).to(log_w)
