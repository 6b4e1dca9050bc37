"""The methods that `compare.py` runs: the solvers of invsolve, classical ones, and those of deepinv."""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from deepinv_methods import DEEPINV
from denoise_table import cbm3d
from PIL import Image
from setting import NotApplicableError, Outcome, Setting
from torch import Tensor

from invsolve import SOLVERS, Operator, Problem, build_solver, default_times, solve
from invsolve.errors import sentence
from invsolve.operators import CircularBlur, Inpaint
from invsolve.spec import format_spec, parse_spec


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
