"""The samplers of deepinv that `compare.py` runs, on our network, operators and data (see deepinv_physics.py)."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import torch
from deepinv_physics import decomposed, measured, network, plain
from packaging.version import Version
from setting import NotApplicableError, Outcome, Setting
from torch import Tensor

from invsolve import LinearOperator, make_times
from invsolve.operators.spectral import SpectralOperator
from invsolve.rng import derive_seed
from invsolve.solvers._start import first_guess

Grid = Literal["linear", "karras", "restoration"]
Start = Literal["noise", "guess"]
OLDEST = "0.5"  # version of deepinv with all of these


def deepinv_diffpir(
    setting: Setting, *, weight: float = 7.0, zeta: float = 0.1, prox: Literal["closed", "cg"] = "closed"
) -> Outcome:
    """DiffPIR of deepinv with its defaults.

    Arguments:
        setting: the problem, with a linear operator.
        weight: its lambda_; as its sigma is in [0, 1] and its path in [-1, 1] units, 14 is the 7 of the paper.
        zeta: share of fresh noise.
        prox: `closed` is our operator's, as in deepinv's BlurFFT and Downsampling; `cg` the conjugate gradients of its
            LinearPhysics, whose 50 steps smooth where the data say little.
    """
    from deepinv.optim.data_fidelity import L2
    from deepinv.sampling import DiffPIR

    need_linear(setting)
    sigma, y = float(setting.problem.std[0]) / 2, measured(setting)
    physics, denoiser = plain(setting, sigma, closed_prox=prox == "closed"), network(setting.prior)
    solver = DiffPIR(
        denoiser, L2(), sigma=sigma, max_iter=setting.steps, zeta=zeta, lambda_=weight, device=str(y.device)
    )
    return run_deepinv(setting, denoiser, lambda _: solver(y, physics))


def deepinv_dps(
    setting: Setting,
    *,
    weight: float = 1.0,
    guidance: Literal["norm", "annealed"] = "norm",
    solver: Literal["ddpm", "ddim"] = "ddpm",
) -> Outcome:
    """DPS of deepinv with its defaults."""
    from deepinv.sampling import DPS

    y, denoiser = measured(setting), network(setting.prior)
    physics = plain(setting, float(setting.problem.std[0]) / 2)
    sampler = DPS(
        denoiser,
        solver=solver,
        num_steps=setting.steps + 1,  # times, not steps
        weight=weight,
        guidance=guidance,
        device=y.device,
        rng=torch.Generator(y.device),
    )
    shape = (len(y), *setting.problem.operator.image_shape)
    return run_deepinv(setting, denoiser, lambda seed: sampler(y, physics, x_init=shape, seed=seed))


def deepinv_pigdm(
    setting: Setting, *, weight: float = 1.0, eta: float = 1.0, grid: Grid = "linear", start: Start = "noise"
) -> Outcome:
    """PiGDM of deepinv, its system solved exactly where a decomposition is known and by conjugate gradients elsewhere.

    Arguments:
        setting: the problem, with a linear operator.
        weight: of the guidance.
        eta: share of fresh noise; 1 is DDPM, 0 is DDIM.
        grid: see `posterior_sampler`.
        start: see `posterior_sampler`.
    """
    from deepinv.sampling import PiGDMDataFidelity

    return posterior_sampler(setting, PiGDMDataFidelity(weight=weight), eta, grid, start)


def deepinv_mmps(
    setting: Setting,
    *,
    weight: float = 1.0,
    eta: float = 1.0,
    grid: Grid = "linear",
    start: Start = "noise",
    cg_steps: int = 3,
) -> Outcome:
    """Moment matching (MMPS) of deepinv.

    Arguments:
        setting: the problem, with a linear operator.
        weight: of the guidance.
        eta: share of fresh noise; 1 is DDPM, 0 is DDIM.
        grid: see `posterior_sampler`.
        start: see `posterior_sampler`.
        cg_steps: of its conjugate gradients; a time step takes cg_steps + 2 gradients through the network.
    """
    from deepinv.sampling import MomentMatchingDataFidelity

    data_fidelity = MomentMatchingDataFidelity(weight=weight, cg_max_iter=cg_steps)
    return posterior_sampler(setting, data_fidelity, eta, grid, start)


def posterior_sampler(setting: Setting, data_fidelity: Any, eta: float, grid: Grid, start: Start) -> Outcome:
    """PosteriorDiffusion of deepinv by ancestral steps.

    Arguments:
        setting: the problem, with a linear operator.
        data_fidelity: the approximation of p(y | x_t).
        eta: share of fresh noise.
        grid: `linear` is the grid of its DPS, equal steps of its variance-preserving path from pure noise; the others
            are ours of that name, from sigma/alpha = 40 and 2 down.
        start: `noise` is deepinv's own, without the picture that a path of finite noise has below it; `guess` adds our
            regularised least squares.
    """
    from deepinv.sampling import AncestralSolver, EDMDiffusionSDE, PosteriorDiffusion, VariancePreservingDiffusion

    need_linear(setting)
    y, denoiser, sigma = measured(setting), network(setting.prior), float(setting.problem.level[0]) / 2
    known = isinstance(setting.problem.operator, SpectralOperator)
    physics = decomposed(setting, sigma) if known else plain(setting, sigma)
    if grid == "linear":
        times = torch.linspace(1, 0, setting.steps + 1, dtype=torch.float64)
        sde = VariancePreservingDiffusion(device=y.device)
    else:  # the time is the noise level
        times = noise_levels(setting, grid)
        sde = EDMDiffusionSDE(sigma_t=lambda t: t, variance_exploding=True, T=float(times[0]), device=y.device)
    solver = AncestralSolver(timesteps=times.to(y.device), eta=eta, rng=torch.Generator(y.device))
    sampler = PosteriorDiffusion(data_fidelity, denoiser, sde, solver, device=y.device)
    shape = (len(y), *setting.problem.operator.image_shape)

    def sample(seed: int) -> Tensor:
        if start == "noise":
            return sampler(y, physics, x_init=shape, seed=seed)
        noise = sde.sample_init(shape, rng=torch.Generator(y.device).manual_seed(seed), t=times[0])
        x = noise + sde.scale_t(times[0]) * first_guess(setting.problem)
        return sampler(y, physics, x_init=x, seed=derive_seed(seed, "steps"))

    return run_deepinv(setting, denoiser, sample)


def deepinv_ddrm(
    setting: Setting, *, eta: float = 0.85, etab: float = 1.0, grid: Grid = "linear", told: float = 1.0
) -> Outcome:
    """DDRM of deepinv.

    Its noise of level sigma has a standard deviation of sigma / sqrt(2), which is right for the two parts of the
    complex numbers of BlurFFT.  With the real components of the other operators the path has less noise than the
    denoiser is told; `told` = 0.7071 tells it the truth.

    Arguments:
        setting: the problem, with an operator whose singular value decomposition is known.
        eta: share of fresh noise in the components that y does not tell.
        etab: trust in y in the others.
        grid: `linear` has equal steps of sigma from 1 to 0 in [0, 1] units, as its default does; the others are ours of
            that name.
        told: the level that the denoiser is told, as a part of sigma.
    """
    from deepinv.sampling import DDRM

    y, denoiser = measured(setting), network(setting.prior)
    physics = decomposed(setting, float(setting.problem.level[0]) / 2)
    levels = torch.linspace(1, 0, setting.steps) if grid == "linear" else noise_levels(setting, grid)[:-1] / 2
    sampler = DDRM(lambda x, level: denoiser(x, told * level), sigmas=levels.tolist(), eta=eta, etab=etab)
    return run_deepinv(setting, denoiser, lambda _: sampler(y, physics))


def check_deepinv() -> None:
    """Refuse to go on without the deepinv that has these samplers.

    Raises:
        ValueError: it is not installed, or too old.
    """
    try:
        found = version("deepinv")
    except PackageNotFoundError:
        found = ""
    if not found or Version(found) < Version(OLDEST):
        raise ValueError(
            f"The methods deepinv-* need deepinv {OLDEST} or newer, got {found or 'none'}; run "
            "pip install '.[bench]', or leave them out with --methods ours classical."
        )


def noise_levels(setting: Setting, grid: str) -> Tensor:
    """The levels sigma/alpha of one of our grids, (steps + 1,), the last of them 0."""
    schedule = setting.prior.schedule
    return schedule.ratio(make_times(grid, setting.steps, schedule))


def need_linear(setting: Setting) -> None:
    """Refuse other operators.

    Raises:
        NotApplicableError: the operator is not linear.
    """
    if not isinstance(setting.problem.operator, LinearOperator):
        raise NotApplicableError("needs a linear operator")


def run_deepinv(setting: Setting, denoiser: Any, sample: Callable[[int], Tensor]) -> Outcome:
    """Draw the samples one after the other, all pictures at once, and count."""
    start = time.perf_counter()
    drawn = []
    for k in range(setting.samples):
        seed = derive_seed(setting.seed, "deepinv", k)
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # DiffPIR and DDRM draw from the global generator
            drawn.append(2 * sample(seed).detach().to(setting.problem.y) - 1)
    seconds = time.perf_counter() - start
    x = torch.stack(drawn, dim=1)
    if not x.isfinite().all():
        raise NotApplicableError("non-finite values")
    rows = x.shape[0] * x.shape[1]
    counts = denoiser.prior.counts
    return Outcome(x.clamp(-1, 1), seconds, counts["network"] / rows, counts["network_vjp"] / rows)


DEEPINV: dict[str, Callable[..., Outcome]] = {
    "deepinv-diffpir": deepinv_diffpir,
    "deepinv-dps": deepinv_dps,
    "deepinv-pigdm": deepinv_pigdm,
    "deepinv-mmps": deepinv_mmps,
    "deepinv-ddrm": deepinv_ddrm,
}
