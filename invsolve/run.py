"""A restoration that is decided once: `plan` takes every default and refuses what cannot work, the `Run` runs."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .allocator import memory_kept
from .defaults import default_solver, default_steps, problems_of, sigma_of, with_file_tables
from .devices import find_device, parse_dtype
from .doubts import judge
from .doubts.expected import chi2_of, name_of, rounding_of
from .files.atomic import sha256_of
from .files.holes import hidden_share
from .files.images import load_image, to_tensor
from .operators import OPERATORS, Operator, build_operator
from .operators.base import check_shape
from .operators.sizes import image_shape_of
from .priors import Prior, as_grey, default_dtype, load_prior
from .priors.identity import prior_sha256
from .problem import Problem
from .result import Result
from .rng import image_seeds
from .solve import Observer, solve
from .solver import Solver
from .solvers import build_solver
from .spec import parse_spec
from .times import check_grid

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

__all__ = ["Run", "plan"]

FILES = ("mask", "kernel", "tables_from", "folder")  # fields that are paths
FAR = 2.0  # a value beyond this is no rounding at the edge of [-1, 1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """All that decides the pictures of a restoration; calling it restores them.

    Arguments:
        problems: operator, noise and data of consecutive measurements; one, unless some have noise and others none.
        prior: the prior; None if its weights were not to be loaded.
        solver: the algorithm with its hyperparameters.
        times: name of the time grid.
        steps: number of time steps.
        samples: posterior samples of each measurement.
        seeds: one for each measurement.
        device: where to compute.
        dtype: of the network.
        asked: what the prior is: its name, and what it is asked with.
        weights: the hash of its files; None if it has none.
        rounding: standard deviation of the rounding of each measurement, see `rounding_of`.
        batch_size: most pictures that go through the network at once; it decides no more than the last digits.
        checkpointing: gradients recompute what they need instead of storing it.
    """

    problems: tuple[Problem, ...]
    prior: Prior | None
    solver: Solver[Any]
    times: str
    steps: int
    samples: int
    seeds: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype
    asked: Mapping[str, Any]
    weights: Callable[[], str | None]
    rounding: tuple[float, ...]
    batch_size: int = 8
    checkpointing: bool = False
    _hashes: dict[str, str] = field(default_factory=dict, init=False, repr=False)

    @property
    def operator(self) -> Operator:
        """What made the data."""
        return self.problems[0].operator

    @property
    def network_calls(self) -> int:
        """Calls of `Prior.predict` for each sample."""
        return self.solver.network_calls(self.steps)

    @property
    def key(self) -> str:
        """A hash of all that decides the pictures: the record without the software, but with invsolve's version."""
        told = {key: value for key, value in self.record().items() if key != "software"}
        text = json.dumps([told, version("invsolve")], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def record(self) -> dict[str, Any]:
        """The description of the run, as JSON holds it.

        Files are told by name and SHA-256: a record says nothing about the folders of the machine.
        """
        spec = self.operator.spec or {"name": type(self.operator).__name__}
        record = {
            "operator": _public(spec),
            "sigma": sigma_of(self.problems),
            "solver": _public({"name": name_of(self.solver), **vars(self.solver)}),
            "prior": dict(self.asked),
            "times": self.times,
            "steps": self.steps,
            "samples": self.samples,
            "seed": self.seeds[0] if len(self.seeds) == 1 else list(self.seeds),
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "sha256": self.hashes(),
            "software": {"invsolve": version("invsolve"), "torch": torch.__version__},
        }
        if (hidden := hidden_share(self.operator.data_mask)) is not None:
            record["hidden"] = hidden
        plain: dict[str, Any] = json.loads(json.dumps(record, default=str))
        return plain

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the data, and of the files that take part: weights, masks, kernels, a fitted flow."""
        if not self._hashes:
            found = {}
            for part, values in (("operator", self.operator.spec or {}), ("solver", vars(self.solver))):
                for key, value in values.items():
                    if key in FILES and value:
                        found[key] = (prior_sha256(value) or "") if part == "solver" else sha256_of(Path(value))
            if self.operator.spec is None:  # what is not named is known by its numbers
                found["operator"] = _sha256(self.operator.state_dict().values())
            found["data"] = _sha256(problem.y for problem in self.problems)
            if (weights := self.weights()) is not None:
                found["prior"] = weights
            self._hashes.update(found)
        return dict(self._hashes)

    def __call__(self, observers: Sequence[Observer] = ()) -> Result:
        """Restore the pictures.

        Arguments:
            observers: called after every step.

        Returns:
            Result: samples (B, S, C, H, W) in [-1, 1], without the operator's `border`.

        Raises:
            ValueError: it was planned without its prior.
        """
        prior = self.prior
        if prior is None:
            raise ValueError("This run was planned without its prior; plan it with load=True.")
        starts = itertools.accumulate((len(problem.y) for problem in self.problems), initial=0)
        with memory_kept(), prior.checkpointed() if self.checkpointing else nullcontext():
            results = [
                solve(
                    problem,
                    prior,
                    self.solver,
                    self.times,
                    steps=self.steps,
                    samples=self.samples,
                    seed=self.seeds[start : start + len(problem.y)],
                    batch_size=self.batch_size,
                    observers=observers,
                )
                for problem, start in zip(self.problems, starts, strict=False)
            ]
        record = self.record() | {"notes": list(self.operator.notes)}
        joined, far = _joined(self.problems, results, record)
        result = judge(joined, self._each(), self.solver, prior, self.times, self.rounding, far)
        return replace(result, samples=self.operator.crop(result.samples))

    def _each(self) -> list[Problem]:
        """A problem for each measurement."""
        return [
            problem.rows(torch.tensor([b], device=problem.y.device))
            for problem in self.problems
            for b in range(len(problem.y))
        ]


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

    The arguments are those of `restore`, and:

    Arguments:
        y: the measurement.
        operator: what made it.
        prior: the prior.
        solver: the solver.
        sigma: noise level, or noise model.
        samples: of each measurement.
        steps: number of time steps.
        times: name of the time grid.
        seed: one, or one for each measurement.
        device: where to compute.
        dtype: of the network.
        batch_size: most pictures that go through the network at once.
        checkpointing: less memory for gradients, more time.
        asked: what the record says of the prior; by default its name.
        weights: gives the hash of the files of the prior; by default it is made of a prior that is given by name.
        load: whether to load the weights of a prior that is given by name; a run without them cannot be called.

    Raises:
        ValueError: an unknown name or field, a shape or value that does not fit; the message says what to do.
        TypeError: the operator or the prior lacks what the solver needs, or an argument is of another type.
    """
    _check_arguments(operator, prior, solver, times)
    wide = torch.float64 if parse_dtype(dtype) == torch.float64 else torch.float32
    device = _device_of(prior, operator) if device is None else find_device(device)
    data, operator = _measurement(y, operator, device, wide)
    problems = problems_of(sigma, operator, data)
    rounding = tuple(rounding_of(row) for row in data.split(1))
    if operator.data_mask is not None:  # what a picture holds inside a hole is not a measurement
        problems = tuple(replace(p, y=p.y * operator.data_mask.to(p.y)) for p in problems)
    if solver is None:
        solver = default_solver(operator)
        steps = default_steps(operator, samples, times) if steps is None else steps
    solver = build_solver(solver) if isinstance(solver, str | Mapping) else solver
    for problem in problems:
        solver.check(problem)  # before gigabytes are loaded
    given = isinstance(prior, Prior)
    name = type(prior).__name__ if isinstance(prior, Prior) else Path(prior).name
    if weights is None:
        weights = (lambda: None) if isinstance(prior, Prior) else partial(prior_sha256, os.fspath(prior))
    found = prior if isinstance(prior, Prior) else load_prior(prior, dtype, device=device) if load else None
    if found is not None:
        found = found if found.placed else found.to(device)
        found = as_grey(found) if found.channels == 3 and operator.image_shape[0] == 1 else found
        for problem in problems:
            solver.check(problem, found)
    network = _network_dtype(found, solver) if found is not None else default_dtype(str(prior), device)
    return Run(
        problems=problems,
        prior=found,
        solver=solver,
        times=solver.times if times is None else times,
        steps=solver.steps if steps is None else steps,
        samples=samples,
        seeds=tuple(image_seeds(seed, len(data))),
        device=device,
        dtype=network or (wide if given or parse_dtype(dtype) is None else parse_dtype(dtype) or wide),
        asked={"name": name} if asked is None else asked,
        weights=weights,
        rounding=rounding,
        batch_size=batch_size,
        checkpointing=checkpointing,
    )


def _measurement(
    y: Tensor | np.ndarray | Image.Image | str | Path,
    operator: Operator | str | Mapping[str, Any],
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Tensor, Operator]:
    """The data (B, *data_shape) and the operator, both on the device."""
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
    return data, operator


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


def _sha256(tensors: Iterable[Tensor]) -> str:
    """The hash of what tensors hold."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _public(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Fields with the names of files and folders instead of their paths."""
    return {key: Path(value).name if key in FILES and value else value for key, value in spec.items()}
