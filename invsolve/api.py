"""`restore`: the whole toolbox in one call."""

from __future__ import annotations

import itertools
import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .allocator import memory_kept
from .devices import find_device, parse_dtype
from .doubts.expected import chi2_of, name_of, rounding_of
from .doubts.judge import DoubtWarning, judge
from .files.holes import hidden_share
from .files.images import load_image, to_tensor
from .operators import OPERATORS, LinearOperator, Operator, Shape, build_operator
from .operators.base import check_shape
from .operators.identity import Identity
from .operators.sizes import image_shape_of
from .priors import Prior, as_grey, load_prior
from .problem import GaussianNoise, Noise, NoNoise, Problem
from .result import Result
from .rng import image_seeds
from .solve import Observer, solve
from .solver import Solver
from .solvers import build_solver
from .spec import parse_level, parse_spec
from .times import check_grid

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

__all__ = [
    "default_solver",
    "default_steps",
    "estimate_sigma",
    "make_noises",
    "restore",
    "sigma_of",
    "with_file_tables",
]

LEAST_NOISE = 1e-5  # the rounding of 16 bits
FAR = 2.0  # a value beyond this is no rounding at the edge of [-1, 1]


def restore(
    y: Tensor | np.ndarray | Image.Image | str | Path,
    *,
    operator: Operator | str | Mapping[str, Any],
    prior: Prior | str | os.PathLike[str] = "natural",
    solver: Solver[Any] | str | Mapping[str, Any] | None = None,
    sigma: float | str | Noise = 0.0,
    samples: int = 1,
    steps: int | None = None,
    times: str | None = None,
    seed: int | Sequence[int] = 0,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = "auto",
    batch_size: int = 8,
    checkpointing: bool = False,
    observers: Sequence[Observer] = (),
) -> Result:
    """Restore a degraded picture: samples of p(x | y) under y = A(x) + noise and the prior.

    Arguments:
        y: the measurement: a path, a PIL image, an integer array (H, W[, C]), or a float tensor or array in [-1, 1]
            with shape (C, H, W) or (B, C, H, W).
        operator: A, or its name with fields such as "blur(sigma=2)"; see `invsolve list operators`.  "jpeg" without
            a quality reads it from y if that is the path of a JPEG file.
        prior: a prior, the name of one, or the folder of a diffusers model.
        solver: a solver, or its name with fields such as "flowdps(step_size=10)"; see `default_solver` for None.
        sigma: standard deviation of Gaussian noise in units of the [-1, 1] picture (0: none), a text such as "5/255"
            for grey levels of 8 bits, "auto" to estimate it for each picture, or a Noise object.
        samples: posterior samples per measurement.
        steps: number of time steps; the solver's default if not given.
        times: name of the time grid, one of TIMES; the solver's own if not given.
        seed: the same seed gives the same pictures; with one seed per picture, each is restored as it is alone.
        device: where to compute; by default where the prior or the operator is, if one was given, else the CPU.
        dtype: of the network: a dtype of torch, its name, or "auto": bfloat16 where the processor computes in it and it
            costs no quality, else float32 (see `default_dtype`).  A prior that is no name keeps its own.  The solver's
            state is float32, or float64 if this is.
        batch_size: most pictures that go through the network at once.
        checkpointing: gradients recompute what they need instead of storing it: less memory, more time.
        observers: called after every step.

    Returns:
        Result: samples (B, S, C, H, W) in [-1, 1], without the operator's `border`, their mean and std, a status for
            each, statistics, and the record of what was asked.  What speaks against them is in `doubts`, and is a
            DoubtWarning too.

    Raises:
        ValueError: an unknown name or field, a shape or value that does not fit; the message says what to do.
        TypeError: the operator lacks what the solver needs, or an argument is of another type.
    """
    _check_arguments(operator, prior, solver, times)
    wide = torch.float64 if parse_dtype(dtype) == torch.float64 else torch.float32
    device = _device_of(prior, operator) if device is None else find_device(device)
    path = Path(y) if isinstance(y, str | os.PathLike) else None
    picture = None if path is None else load_image(path)
    data = to_tensor(y if picture is None else picture.tensor)
    data = data.to(device, wide)
    if isinstance(operator, str | Mapping):
        name, fields = parse_spec(operator, OPERATORS, "operator")
        if path is not None and picture is not None:
            fields = with_file_tables(name, fields, path, picture.format)
        operator = build_operator(name, image_shape_of(name, _shape(data), **fields), **fields)
    operator = operator.to(device)
    kind = type(operator).__name__
    check_shape(kind, "a measurement", data, operator.data_shape, "build the operator for that picture size")
    noises = make_noises(sigma, operator, data)
    rounding = [rounding_of(row) for row in data.split(1)]
    if operator.data_mask is not None:
        data = data * operator.data_mask.to(data)  # what a picture holds inside a hole is not a measurement
    if solver is None:
        solver = default_solver(operator)
        steps = default_steps(operator, samples, times) if steps is None else steps
    solver = build_solver(solver) if isinstance(solver, str | Mapping) else solver
    prior_name = type(prior).__name__ if isinstance(prior, Prior) else Path(prior).name
    prior = prior if isinstance(prior, Prior) else load_prior(prior, dtype, device=device)
    prior = prior if prior.placed else prior.to(device)
    if checkpointing:
        prior.checkpoint_gradients()
    if prior.channels == 3 and operator.image_shape[0] == 1:
        prior = as_grey(prior)
    problems = [Problem(operator, noise, rows) for noise, rows in zip(noises, data.chunk(len(noises)), strict=True)]
    seeds = image_seeds(seed, len(data))
    parts = [seeds] if len(problems) == 1 else [[one] for one in seeds]
    with memory_kept():
        results = [
            solve(
                problem,
                prior,
                solver,
                times,
                steps=steps,
                samples=samples,
                seed=part,
                batch_size=batch_size,
                observers=observers,
            )
            for problem, part in zip(problems, parts, strict=True)
        ]
    sigmas = [sigma_of(noise) for noise in noises]
    record = {
        "operator": operator.spec or kind,
        "solver": {"name": name_of(solver), **vars(solver)},
        "prior": prior_name,
        "sigma": sigmas[0] if len(sigmas) == 1 else sigmas,
        "seed": seed,
        "steps": int(results[0].stats["steps"]),
        "times": solver.times if times is None else times,
        "samples": samples,
        "dtype": str(_network_dtype(prior, solver) or wide).removeprefix("torch."),
        "notes": list(operator.notes),
        "software": {"invsolve": version("invsolve"), "torch": torch.__version__},
    }
    if (hidden := hidden_share(operator.data_mask)) is not None:
        record["hidden"] = hidden
    joined, far = _joined(problems, results, json.loads(json.dumps(record, default=str)))
    result = judge(joined, problems, solver, prior, times, rounding, far)
    if told := list(dict.fromkeys(itertools.chain.from_iterable(result.doubts))):
        warnings.warn(" ".join(told), DoubtWarning, stacklevel=2)
    return replace(result, samples=operator.crop(result.samples))


def _check_arguments(operator: object, prior: object, solver: object, times: object) -> None:
    """Refuse what is of no type that `restore` takes, with one sentence."""
    for name, value, kinds, wanted in (
        ("operator", operator, (Operator, str, Mapping), "an Operator, or its name such as 'blur(sigma=2)'"),
        ("prior", prior, (Prior, str, os.PathLike), "a Prior, its name, or a folder"),
        ("solver", solver, (Solver, str, Mapping, type(None)), "a Solver object, or its name such as 'diffpir'"),
        ("times", times, (str, type(None)), "the name of a time grid; solve() takes a grid of your own"),
    ):
        if not isinstance(value, kinds):
            raise TypeError(f"{name} must be {wanted}, got {value!r}.")
    if isinstance(times, str):
        check_grid(times)


def default_solver(operator: Operator) -> str:
    """The solver where none is named: DDRM for denoising, DiffPIR for other linear operators, else DDNM."""
    if isinstance(operator, Identity):
        return "ddrm"
    return "diffpir" if isinstance(operator, LinearOperator) else "ddnm"


def default_steps(operator: Operator, samples: int, times: str | None = None) -> int | None:
    """Its steps where none are named: one for one denoised picture, which then is the posterior mean; else its own.

    One step is that from the noise of y only, so not on a grid that starts elsewhere.
    """
    from_data = times in (None, "from_data")
    return 1 if isinstance(operator, Identity) and samples == 1 and from_data else None


def with_file_tables(name: str, fields: dict[str, Any], path: Path, file_format: str) -> dict[str, Any]:
    """The fields of an operator; for `jpeg` without a quality on a JPEG file, the file itself says how it was made."""
    if name == "jpeg" and file_format == "JPEG" and not fields.keys() & {"quality", "tables_from"}:
        return fields | {"tables_from": str(path)}
    return fields


def make_noises(sigma: float | str | Noise, operator: Operator, y: Tensor) -> list[Noise]:
    """The noise model that a `sigma` argument stands for: one for all of y, or with "auto" one for each picture.

    Raises:
        ValueError: not a noise level, or "auto" where the operator hides a part of the picture.
    """
    if isinstance(sigma, Noise):
        return [sigma]
    if not (isinstance(sigma, str) and sigma.strip() == "auto"):
        return [_gaussian(sigma)]
    if operator.data_mask is not None and not operator.data_mask.all():
        raise ValueError("The noise of a picture with hidden pixels cannot be estimated; give sigma as a number.")
    return [_noise_of(estimate_sigma(row)) for row in y.split(1)]


def sigma_of(noise: Noise) -> float | str:
    """The noise level for a record: a number, or the text of another noise model."""
    if isinstance(noise, NoNoise):
        return 0.0
    return noise.sigma if isinstance(noise, GaussianNoise) else str(noise)


def estimate_sigma(y: Tensor) -> float:
    """Standard deviation of white Gaussian noise in pictures (B, C, H, W), in their own units (scikit-image).

    It is the mean over channels and pictures; those without any detail count as free of noise.  A mean below what 16
    bits can hold is 0: so little comes from pictures that are flat for the most part.
    """
    from skimage.restoration import estimate_sigma as estimate

    planes = y.detach().cpu().double().flatten(0, 1).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, of the median of no detail at all
        sigmas = [float(estimate(plane)) for plane in planes]
    mean = sum(0.0 if math.isnan(sigma) else sigma for sigma in sigmas) / len(sigmas)
    return mean if mean > LEAST_NOISE else 0.0


def _gaussian(sigma: object) -> Noise:
    if not isinstance(sigma, Real | str) or isinstance(sigma, bool):
        raise ValueError(
            f'sigma must be a number in [-1, 1] units, a text such as "5/255", "auto" or a Noise object, got {sigma!r}.'
        )
    return _noise_of(parse_level(sigma if isinstance(sigma, str) else str(float(sigma)), "sigma", ", or auto"))


def _noise_of(sigma: float) -> Noise:
    return GaussianNoise(sigma) if sigma > 0 else NoNoise()


def _joined(problems: Sequence[Problem], results: Sequence[Result], record: dict[str, Any]) -> tuple[Result, Tensor]:
    """Results of different measurements as one, cut to [-1, 1] with the chi2 of what is left.

    Seconds add up, the other statistics are means per sample.  The second value is the share of what lay far outside
    of [-1, 1] for each measurement (B,).
    """
    samples = [
        torch.where(result.samples.isfinite(), result.samples.clamp(-1, 1), result.samples) for result in results
    ]
    chi2 = [
        torch.stack([chi2_of(problem, x) for x in cut.unbind(dim=1)], dim=1)
        for problem, cut in zip(problems, samples, strict=True)
    ]
    stats = {name: sum(result.stats[name] for result in results) / len(results) for name in results[0].stats}
    stats["seconds"] = sum(result.stats["seconds"] for result in results)
    far = torch.cat([(result.samples.abs() > FAR).flatten(1).double().mean(dim=1) for result in results])
    stats["outside"] = float(far.mean())
    status = tuple(itertools.chain.from_iterable(result.status for result in results))
    return Result(torch.cat(samples), status, torch.cat(chi2), stats, record), far


def _device_of(*given: object) -> torch.device:
    """The device of the first of these that is a module with tensors, else the CPU."""
    modules = [module for module in given if isinstance(module, nn.Module)]
    tensors = itertools.chain.from_iterable((*module.parameters(), *module.buffers()) for module in modules)
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def _network_dtype(prior: Prior, solver: Solver[Any]) -> torch.dtype | None:
    """Of the weights of a prior's network, which come before those of an autoencoder; None if it has none."""
    if solver.needs_float32 and getattr(getattr(prior, "backbone", None), "exact", None) is not None:
        return torch.float32
    return next((p.dtype for p in prior.parameters() if p.is_floating_point()), None)


def _shape(y: Tensor) -> Shape:
    """(C, H, W) of a batch of pictures."""
    _, channels, height, width = y.shape
    return channels, height, width
