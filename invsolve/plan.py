"""`plan`: every default is taken, and what cannot work is refused, before anything runs."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .defaults import default_solver, default_steps, problems_of, with_file_tables
from .devices import find_device, parse_dtype
from .doubts.expected import rounding_of
from .files.images import load_image, to_tensor
from .operators import OPERATORS, Operator, build_operator
from .operators.base import check_shape
from .operators.sizes import image_shape_of
from .priors import Prior, as_grey, default_dtype, load_prior
from .priors.identity import prior_sha256
from .problem import Problem
from .rng import image_seeds
from .run import Run
from .solver import Solver
from .solvers import build_solver
from .spec import parse_spec
from .times import check_grid

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

__all__ = ["plan"]


def plan(
    y: Tensor | np.ndarray | Image.Image | str | Path,
    *,
    operator: Operator | str | Mapping[str, Any],
    prior: Prior | str | os.PathLike[str] = "natural",
    solver: Solver[Any] | str | Mapping[str, Any] | None = None,
    sigma: object = 0.0,
    samples: int = 1,
    steps: int | None = None,
    times: str | None = None,
    seed: int | Sequence[int] = 0,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = "auto",
    batch_size: int = 8,
    checkpointing: bool = False,
    asked: Mapping[str, Any] | None = None,
    weights: Callable[[], str | None] | None = None,
    load: bool = True,
) -> Run:
    """Decide a restoration: every default is taken, and what cannot work is refused.

    The arguments are those of `restore`.  `asked` is what the record says of the prior, by default its name, and
    `weights` gives the hash of its files.  Without `load`, a prior that is named stays on the disk, and the run cannot
    be called.

    Raises:
        ValueError: an unknown name or field, a shape or value that does not fit; the message says what to do.
        TypeError: the operator or the prior lacks what the solver needs, or an argument is of another type.
    """
    _check_arguments(operator, prior, solver, times)
    wide = torch.float64 if parse_dtype(dtype) == torch.float64 else torch.float32
    device = _device_of(prior, operator) if device is None else find_device(device)
    problems, rounding = _measured(y, operator, sigma, device, wide)
    operator = problems[0].operator
    if solver is None:
        solver = default_solver(operator)
        steps = default_steps(operator, samples, times) if steps is None else steps
    solver = build_solver(solver) if isinstance(solver, str | Mapping) else solver
    _check(solver, problems)  # before gigabytes are loaded
    found = _prior_of(prior, dtype, device, operator) if load or isinstance(prior, Prior) else None
    if found is not None:
        _check(solver, problems, found)
    network = default_dtype(str(prior), device) if found is None else _network_dtype(found, solver) or wide
    return Run(
        problems=problems,
        prior=found,
        solver=solver,
        times=solver.times if times is None else times,
        steps=solver.steps if steps is None else steps,
        samples=samples,
        seeds=tuple(image_seeds(seed, len(rounding))),
        device=device,
        dtype=network if found is not None else parse_dtype(dtype) or network,
        asked={"name": _name_of(prior)} if asked is None else asked,
        weights=_weights_of(prior) if weights is None else weights,
        rounding=rounding,
        batch_size=batch_size,
        checkpointing=checkpointing,
    )


def _measured(
    y: Tensor | np.ndarray | Image.Image | str | Path,
    operator: Operator | str | Mapping[str, Any],
    sigma: object,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[tuple[Problem, ...], tuple[float, ...]]:
    """The problems that the data are, on the device, and the rounding of each measurement."""
    path = Path(y) if isinstance(y, str | os.PathLike) else None
    picture = None if path is None else load_image(path)
    data = to_tensor(y if picture is None else picture.tensor).to(device, dtype)
    if not isinstance(operator, Operator):
        name, fields = parse_spec(operator, OPERATORS, "operator")
        if path is not None and picture is not None:
            fields = with_file_tables(name, fields, path, picture.format)
        _, channels, height, width = data.shape
        operator = build_operator(name, image_shape_of(name, (channels, height, width), **fields), **fields)
    operator = operator.to(device)
    remedy = "build the operator for that picture size"
    check_shape(type(operator).__name__, "a measurement", data, operator.data_shape, remedy)
    problems = problems_of(sigma, operator, data)
    if (mask := operator.data_mask) is not None:  # what a picture holds inside a hole is not a measurement
        problems = tuple(replace(problem, y=problem.y * mask.to(problem.y)) for problem in problems)
    return problems, tuple(rounding_of(row) for row in data.split(1))


def _check(solver: Solver[Any], problems: Sequence[Problem], prior: Prior | None = None) -> None:
    for problem in problems:
        solver.check(problem, prior)


def _prior_of(
    prior: Prior | str | os.PathLike[str], dtype: torch.dtype | str, device: torch.device, operator: Operator
) -> Prior:
    """The prior, on the device, for pictures with as many channels as the operator's."""
    found = prior if isinstance(prior, Prior) else load_prior(prior, dtype, device=device)
    found = found if found.placed else found.to(device)
    return as_grey(found) if found.channels == 3 and operator.image_shape[0] == 1 else found


def _name_of(prior: Prior | str | os.PathLike[str]) -> str:
    return type(prior).__name__ if isinstance(prior, Prior) else Path(prior).name


def _weights_of(prior: Prior | str | os.PathLike[str]) -> Callable[[], str | None]:
    """Gives the hash of the files of a prior that is named; None for one that was loaded by somebody else."""
    return (lambda: None) if isinstance(prior, Prior) else partial(prior_sha256, os.fspath(prior))


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
