"""A restoration that is decided: all that its pictures depend on, its record, and the call that makes them."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .allocator import memory_kept
from .defaults import sigma_of
from .doubts import judge
from .doubts.expected import chi2_of, name_of
from .files.atomic import sha256_of
from .files.holes import hidden_share
from .operators import Operator
from .priors import Prior
from .priors.identity import prior_sha256
from .problem import Problem
from .result import Result
from .solve import Observer, solve
from .solver import Solver

if TYPE_CHECKING:
    pass

__all__ = ["Run"]

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
