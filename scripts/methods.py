"""The methods that `compare.py` runs: the solvers of invsolve, classical ones, and those of deepinv.

deepinv works in [0, 1]: its measurement is (y + A(1)) / 2 for a linear operator A, its noise sigma / 2, its denoiser
one call of our prior; adjoint, pseudo-inverse and proximal step are those of our operator.
"""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from denoise_table import cbm3d
from PIL import Image
from torch import Tensor

from invsolve import SOLVERS, LinearOperator, Operator, Prior, Problem, build_solver, default_times, solve
from invsolve.choices import sentence
from invsolve.operators import CircularBlur, Inpaint
from invsolve.priors import Metered
from invsolve.rng import derive_seed
from invsolve.spec import format_spec, parse_spec


@dataclass(frozen=True)
class Setting:
    """What a method is given besides its fields."""

    truth: Tensor
    problem: Problem
    prior: Prior
    steps: int
    times: str | None
    samples: int
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What a method gives back."""

    samples: Tensor  # (B, S, C, H, W) in [-1, 1]
    seconds: float
    calls: float = 0.0  # of the network, per sample
    gradients: float = 0.0  # through the network, per sample


class NotApplicableError(Exception):
    """The method cannot do this task; the text says why."""


def run_ours(setting: Setting, name: str, fields: dict[str, Any]) -> Outcome:
    """A solver of invsolve."""
    solver = build_solver({"name": name, **fields})
    grid = default_times(setting.problem, setting.prior, solver, setting.steps, setting.times)
    try:
        result = solve(setting.problem, setting.prior, solver, grid, samples=setting.samples, seed=setting.seed)
    except (TypeError, ValueError) as error:  # such as a flow that has to be fitted first
        raise NotApplicableError(sentence(error)) from error
    if not result.ok:
        raise NotApplicableError("non-finite values")
    stats = result.stats
    return Outcome(result.samples.clamp(-1, 1), stats["seconds"], stats["network"], stats["network_vjp"])


def classical(fn: Callable[..., Tensor]) -> Callable[..., Outcome]:
    """A function of the problem as a method."""

    def run(setting: Setting, **fields: Any) -> Outcome:
        start = time.perf_counter()
        x = fn(setting.problem, **fields).clamp(-1, 1).to(setting.problem.y)
        return Outcome(x[:, None], time.perf_counter() - start)

    parameters = list(inspect.signature(fn).parameters.values())[1:]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # what parse_spec reads
    run.__annotations__ = {key: value for key, value in fn.__annotations__.items() if key not in ("problem", "return")}
    return run


def measurement(problem: Problem) -> Tensor:
    """The measurement itself."""
    return problem.y


def bicubic(problem: Problem) -> Tensor:
    """Pillow's bicubic enlargement, without rounding to 8 bits."""
    _, height, width = problem.operator.image_shape
    rows = [
        [np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC)) for plane in picture]
        for picture in problem.y.cpu().float().numpy()
    ]
    return torch.from_numpy(np.array(rows))


def wiener(problem: Problem) -> Tensor:
    """Unsupervised Wiener deconvolution of scikit-image (circular boundary, like the blur's), channel by channel."""
    from skimage.restoration import unsupervised_wiener

    kernel = blur_of(problem.operator).kernel.cpu().numpy()
    planes = problem.y.double().cpu().flatten(0, 1).numpy()
    sharp = [unsupervised_wiener(plane, kernel, rng=0, clip=False)[0] for plane in planes]
    return torch.from_numpy(np.array(sharp)).reshape(problem.y.shape)


def tv_deconvolution(problem: Problem, *, weight: float = 0.001, steps: int = 50) -> Tensor:
    """Total-variation deconvolution: FISTA with scikit-image's Chambolle denoiser as the proximal step.

    Arguments:
        problem: with a circular blur, whose largest gain is 1.
        weight: of the total variation.
        steps: of FISTA.
    """
    from skimage.restoration import denoise_tv_chambolle

    operator = blur_of(problem.operator)
    x = ahead = problem.y
    momentum = 1.0
    for _ in range(steps):
        moved = ahead - operator.adjoint(operator(ahead) - problem.y)
        smooth = [denoise_tv_chambolle(p.cpu().numpy(), weight=weight, max_num_iter=20, channel_axis=0) for p in moved]
        previous, x = x, torch.from_numpy(np.array(smooth)).to(moved)
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = x + (momentum - 1) / following * (x - previous)
        momentum = following
    return x


def biharmonic(problem: Problem) -> Tensor:
    """Biharmonic inpainting of scikit-image, channel by channel; observed pixels keep their noise."""
    from skimage.restoration import inpaint_biharmonic

    operator = problem.operator
    if not isinstance(operator, Inpaint):
        raise NotApplicableError("fills in pixels only")
    hidden = (operator.observed[0] == 0).cpu().numpy()
    pictures_ = problem.y.double().cpu().permute(0, 2, 3, 1).numpy()
    filled = [inpaint_biharmonic(picture, hidden, channel_axis=-1) for picture in pictures_]
    return torch.from_numpy(np.array(filled)).permute(0, 3, 1, 2)


def bm3d_of_task(problem: Problem) -> Tensor:
    """CBM3D at the true noise level."""
    return cbm3d(problem.y.cpu(), float(problem.std[0]))


def blur_of(operator: Operator) -> CircularBlur:
    """The operator as a circular blur."""
    if not isinstance(operator, CircularBlur):
        raise NotApplicableError("undoes a circular blur only")
    return operator


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

    if not isinstance(setting.problem.operator, LinearOperator):
        raise NotApplicableError("needs a linear operator")
    physics, denoiser, y = deepinv_setting(setting, closed_prox=prox == "closed")
    sigma = float(setting.problem.std[0]) / 2
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

    physics, denoiser, y = deepinv_setting(setting)
    rng = torch.Generator(y.device)
    sampler = DPS(
        denoiser,
        solver=solver,
        num_steps=setting.steps + 1,  # times, not steps
        weight=weight,
        guidance=guidance,
        device=y.device,
        rng=rng,
    )
    shape = (len(y), *setting.problem.operator.image_shape)
    return run_deepinv(setting, denoiser, lambda seed: sampler(y, physics, x_init=shape, seed=seed))


def deepinv_setting(setting: Setting, closed_prox: bool = True) -> tuple[Any, Any, Tensor]:
    """The physics, denoiser and measurement of this problem for deepinv, in [0, 1]."""
    from deepinv.models import Denoiser
    from deepinv.physics import GaussianNoise as Gaussian
    from deepinv.physics import LinearPhysics, Physics, ZeroNoise

    problem, operator = setting.problem, setting.problem.operator
    sigma = float(problem.std[0]) / 2
    noise = Gaussian(sigma) if sigma > 0 else ZeroNoise()

    class Network(Denoiser):
        """D(x, sigma) in [0, 1] by one call of the prior."""

        def __init__(self, prior: Prior) -> None:
            super().__init__()
            self.prior = Metered(prior)

        def forward(self, x: Tensor, sigma: Tensor | float, **_: Any) -> Tensor:
            ratio = 2 * torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1)
            t = self.prior.schedule.time(ratio if len(ratio) > 1 else ratio[0])
            alpha, _ = self.prior.schedule(t)
            z = alpha.reshape(-1, 1, 1, 1) * (2 * x - 1)
            return (self.prior.predict(z, t).clean + 1) / 2

    class Linear(LinearPhysics):
        """A linear operator; its closed forms serve deepinv too."""

        def A(self, x: Tensor, **_: Any) -> Tensor:  # noqa: N802 - deepinv's name
            return operator(x)

        def A_adjoint(self, y: Tensor, **_: Any) -> Tensor:  # noqa: N802
            return linear.adjoint(y)

        def A_dagger(self, y: Tensor, **_: Any) -> Tensor:  # noqa: N802
            return linear.pinv(y)

        def prox_l2(self, z: Tensor, y: Tensor, gamma: Tensor | float, **_: Any) -> Tensor:
            """argmin_x gamma |A x - y|^2 / 2 + |x - z|^2 / 2."""
            if not closed_prox:
                return super().prox_l2(z, y, gamma)
            return linear.prox(z, y, 1 / torch.as_tensor(gamma, dtype=z.dtype, device=z.device))

    class Affine(Physics):
        """Any other operator on [-1, 1] pictures, seen from [0, 1]."""

        def A(self, x: Tensor, **_: Any) -> Tensor:  # noqa: N802
            return (operator(2 * x - 1) + 1) / 2

    if isinstance(operator, LinearOperator):
        linear = operator
        white = problem.y.new_ones(1, *operator.image_shape)
        return Linear(noise_model=noise), Network(setting.prior), (problem.y + operator(white)) / 2
    return Affine(noise_model=noise), Network(setting.prior), (problem.y + 1) / 2


def run_deepinv(setting: Setting, denoiser: Any, sample: Callable[[int], Tensor]) -> Outcome:
    """Draw the samples one after the other, all pictures at once, and count."""
    start = time.perf_counter()
    drawn = []
    for k in range(setting.samples):
        seed = derive_seed(setting.seed, "deepinv", k)
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # DiffPIR draws from the global generator
            drawn.append(2 * sample(seed).detach().to(setting.problem.y) - 1)
    seconds = time.perf_counter() - start
    x = torch.stack(drawn, dim=1)
    if not x.isfinite().all():
        raise NotApplicableError("non-finite values")
    rows = x.shape[0] * x.shape[1]
    counts = denoiser.prior.counts
    return Outcome(x.clamp(-1, 1), seconds, counts["network"] / rows, counts["network_vjp"] / rows)


def autoencoder(setting: Setting) -> Outcome:
    """The truth through the autoencoder of a latent prior: its own error, which bounds what a sampler can reach."""
    start = time.perf_counter()
    prior = setting.prior.sized(setting.problem.operator.image_shape)
    with torch.no_grad():
        z = prior.encode(setting.truth)
        if z is setting.truth:
            raise NotApplicableError("the prior has no autoencoder")
        return Outcome(prior.decode(z).clamp(-1, 1)[:, None], time.perf_counter() - start)


CLASSICAL: dict[str, Callable[..., Outcome]] = {
    "measurement": classical(measurement),
    "bicubic": classical(bicubic),
    "wiener": classical(wiener),
    "tv-deconvolution": classical(tv_deconvolution),
    "biharmonic": classical(biharmonic),
    "cbm3d": classical(bm3d_of_task),
}
DEEPINV: dict[str, Callable[..., Outcome]] = {"deepinv-diffpir": deepinv_diffpir, "deepinv-dps": deepinv_dps}
BOUNDS: dict[str, Callable[..., Outcome]] = {"autoencoder": autoencoder}
METHODS: dict[str, Callable[..., Any]] = {**SOLVERS, **CLASSICAL, **DEEPINV, **BOUNDS}


def run_method(spec: str, setting: Setting) -> Outcome:
    """Whatever kind of method it is."""
    name, fields = parse_spec(spec, METHODS, "method")
    return run_ours(setting, name, fields) if name in SOLVERS else METHODS[name](setting, **fields)


def kind_of(name: str) -> str:
    """classical, deepinv, bound or ours."""
    tables = {"classical": CLASSICAL, "deepinv": DEEPINV, "bound": BOUNDS}
    return next((kind for kind, table in tables.items() if name in table), "ours")


def canonical(spec: str) -> str:
    """The spec with all fields of a solver written out: a changed default makes another row."""
    name, fields = parse_spec(spec, METHODS, "method")
    if name in SOLVERS:
        return format_spec(name, dataclasses.asdict(build_solver({"name": name, **fields})))
    defaults = {
        key: p.default for key, p in inspect.signature(METHODS[name]).parameters.items() if p.kind is p.KEYWORD_ONLY
    }
    return format_spec(name, {**defaults, **fields})
