"""Runs samplers on problems with known posteriors and keeps one line per sampler and problem."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..files.atomic import append_lines, read_lines
from ..priors.identity import prior_sha256
from ..problem import Problem
from ..result import json_number
from ..rng import derive_seed
from ..solve import default_times, solve
from ..solver import Solver
from ..solvers import SOLVERS, build_solver
from .metrics import evaluate
from .problems import EXACT, PRIOR, Case, Row, Suite

__all__ = [
    "CURVE",
    "Measured",
    "default_rows",
    "load_records",
    "measure",
    "run_row",
    "run_suite",
    "sample_each",
    "steps_for",
    "times_for",
]

CURVE = (5, 10, 20, 50, 100, 200, 500)  # network calls per sample of the curves
BILL = ("steps", "calls", "gradients", "seconds")
MOST = 10**9  # of counts and numbers of problems
ROWS_PER_BATCH = 4096  # of mixtures in few dimensions


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one row gave on one problem; a line of results.jsonl."""

    key: str
    suite: str
    setting: str
    problem: int
    row: str
    samples: int
    seed: int
    steps: int
    calls: float
    gradients: float
    seconds: float
    failed: int  # samples that did not stay finite
    error: str = ""  # why a solver cannot do this problem
    metrics: dict[str, float] = field(default_factory=dict)
    software: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line."""
        values = asdict(self)
        values["metrics"] = {name: json_number(value) for name, value in self.metrics.items()}
        return json.dumps(values)

    @classmethod
    def from_json(cls, line: str) -> Measured:
        """What `to_json` wrote."""
        values = json.loads(line)
        values["metrics"] = {name: math.nan if v is None else float(v) for name, v in values["metrics"].items()}
        return cls(**values)


def steps_for(solver: Solver[Any], calls: int) -> int:
    """The largest number of steps whose network calls per sample stay within `calls`, at least 1.

    A solver whose steps cost no calls takes its own number.
    """
    if solver.network_calls(2) == solver.network_calls(1):
        return solver.steps
    steps = 1
    while steps < 1000 and solver.network_calls(steps + 1) <= calls:
        steps += 1
    return steps


def _steps_of(row: Row) -> int:
    """How many steps a row takes; 0 for exact and prior samples."""
    if row.spec in (EXACT, PRIOR):
        return 0
    return steps_for(build_solver(row.spec), row.calls) if row.steps is None else row.steps


def times_for(row: Row, suite: Suite, case: Case, solver: Solver[Any]) -> Tensor:
    """The times a solver is run on."""
    steps = _steps_of(row)
    if row.times == "suite":
        return suite.times(case, steps)
    return default_times(case.problem, case.prior, solver, steps, None if row.times == "own" else row.times)


def run_row(row: Row, suite: Suite, case: Case, samples: int, seed: int) -> tuple[Tensor, dict[str, float]]:
    """Samples (n, C, H, W) of one row for one problem, and the bill: steps, calls, gradients, seconds."""
    start = time.perf_counter()
    if row.spec in (EXACT, PRIOR):  # independent of the exact samples that all rows are compared with
        draw = case.exact if row.spec == EXACT else case.ignorant
        x = draw(samples, derive_seed(seed, "row"))
        return x, {"steps": 0, "calls": 0.0, "gradients": 0.0, "seconds": time.perf_counter() - start}
    x, bill = sample_each(row, suite, case, case.problem, samples, derive_seed(seed, case.key), seed)
    return x[0], bill | {"seconds": time.perf_counter() - start}


def sample_each(
    row: Row, suite: Suite, case: Case, problem: Problem, samples: int, seed: int, pick_seed: int
) -> tuple[Tensor, dict[str, float]]:
    """What a solver makes of every measurement of a problem (N, samples, C, H, W), in runs of the row's particles.

    Arguments:
        row: names the solver.
        suite: gives the grid.
        case: gives the prior.
        problem: N measurements.
        samples: of each.
        seed: of the samples.
        pick_seed: of the choice among the particles of a run.
    """
    solver, n = build_solver(row.spec), len(problem.y)
    group = (row.particles or samples) if solver.interacting else samples
    one_each = row.one_each and solver.interacting
    runs = samples if one_each else math.ceil(samples / group)
    result = solve(
        problem.rows(torch.arange(n).repeat_interleave(runs)),
        case.prior,
        solver,
        times_for(row, suite, case, solver),
        samples=group,
        seed=seed,
        batch_size=max(ROWS_PER_BATCH // max(1, case.truth[0].numel() // 100), 1),
    )
    x = result.samples  # (n runs, group, C, H, W)
    if one_each:
        pick = torch.randint(group, (len(x),), generator=torch.Generator().manual_seed(derive_seed(pick_seed, "pick")))
        x = x[torch.arange(len(x)), pick][:, None]
    return x.unflatten(0, (n, runs)).flatten(1, 2)[:, :samples], {
        "steps": int(result.stats["steps"]),
        "calls": result.stats["network"] * (group if one_each else 1),  # those of particles thrown away count
        "gradients": result.stats["network_vjp"] * (group if one_each else 1),
    }


def measure(row: Row, suite: Suite, case: Case, *, samples: int, seed: int, key: str = "") -> Measured:
    """All numbers of one row on one problem, or the sentence that says why the solver cannot do it."""
    error, metrics, failed, bill = "", dict.fromkeys(suite.columns, math.nan), 0, dict.fromkeys(BILL, 0.0)
    try:
        x, bill = run_row(row, suite, case, samples, seed)
    except (TypeError, ValueError) as reason:
        error = " ".join(str(reason).split())
    else:
        failed = int((~x.flatten(1).isfinite().all(dim=1)).sum())
        metrics = evaluate(case, x, case.exact(suite.reference, seed), suite.columns)
    return Measured(
        key=key,
        suite=suite.name,
        setting=case.setting,
        problem=case.index,
        row=row.label,
        samples=samples,
        seed=seed,
        steps=int(bill["steps"]),
        calls=bill["calls"],
        gradients=bill["gradients"],
        seconds=bill["seconds"],
        failed=failed,
        error=error,
        metrics=metrics,
        software={"invsolve": __version__, "torch": torch.__version__},
    )


def default_rows(suite: Suite, specs: Sequence[str] = (), **fields: Any) -> list[Row]:
    """The floor, the prior, and the given solvers, or the rows of the suite, or all solvers.

    A bare name stands for the suite's settings of that solver, if it has some; "dps()" is dps with its own defaults.

    Arguments:
        suite: whose rows, settings and number of calls are taken for what is not given.
        specs: solvers.
        fields: of `Row`, for every solver that has a use for them; None leaves what the suite has.

    Raises:
        ValueError: a solver cannot be read, or a field has another value.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    if "calls" in given:
        given.setdefault("steps", None)  # or the steps of the suite's settings would stay
    rows = [suite.settings_of.get(spec, Row(spec=spec, calls=suite.calls)) for spec in specs or SOLVERS]
    rows = list(suite.rows if suite.rows and not specs else rows)
    for k, row in enumerate(rows):
        together = build_solver(row.spec).interacting  # a mistyped name must not wait for its turn
        of_particles = () if together else ("particles", "one_each")
        rows[k] = replace(row, **{name: value for name, value in given.items() if name not in of_particles})
    return [Row(spec=EXACT), Row(spec=PRIOR), *rows]


def run_suite(
    suite: Suite,
    rows: Iterable[Row],
    *,
    problems: int | None = None,
    first: int = 0,
    settings: Sequence[str] | None = None,
    samples: int | None = None,
    seed: int = 0,
    records: Path | None = None,
    report: Callable[[Measured], None] = lambda _: None,
) -> list[Measured]:
    """Measure every row on every problem of the suite.

    Arguments:
        suite: a suite.
        rows: what to measure.
        problems: problems per setting; by default those of the suite.
        first: number of the first problem.
        settings: the settings to run; all by default.
        samples: samples per problem; by default those of the suite.
        seed: of the samples; the problems do not depend on it.
        records: a file of JSON lines; what is in it already is not run again, and every new line is added at once.
        report: called with every measurement, also with those found in the file.

    Raises:
        TypeError: settings is one text.
        ValueError: a setting is unknown, the suite has fewer problems, or a count is out of range.
    """
    if isinstance(settings, str):
        raise TypeError(f"settings must be a sequence of texts, got {settings!r}; write [{settings!r}].")
    chosen = tuple(dict.fromkeys(settings or suite.settings))
    problems = suite.problems if problems is None else problems
    samples = suite.samples if samples is None else samples
    for name, value, least in (("problems", problems, 1), ("first", first, 0), ("samples", samples, 2)):
        if not least <= value <= MOST:
            raise ValueError(f"{name} must be {least} to {MOST}, got {value}.")
    for setting in chosen:
        suite.case(setting, first + problems - 1)  # what is not there must not wait for its turn
    known = {record.key: record for record in load_records(records)} if records is not None else {}
    measured = []
    identities = {row: _identity(row) for row in rows}  # once: a fit is read from its folder
    for setting in chosen:
        for case in (suite.case(setting, index) for index in range(first, first + problems)):
            for row, identity in identities.items():
                key = _key(suite, case, row, identity, samples, seed)
                record = known.get(key)
                if record is None or record.error or record.steps != _steps_of(row):  # refused before, or of other code
                    before, record = record, measure(row, suite, case, samples=samples, seed=seed, key=key)
                    if records is not None and not (before and before.error == record.error != ""):
                        append_lines(records, [record.to_json()])
                measured.append(record)
                report(record)
    return measured


def load_records(path: Path) -> Iterator[Measured]:
    """The measurements in a file of JSON lines; a last line that was cut short is left out.

    Raises:
        ValueError: the file holds something else.
    """
    return read_lines(path, Measured.from_json)


def _identity(row: Row) -> list[str | None]:
    """The solver with all its fields, and a hash of its fit: one in the same folder may be another."""
    if row.spec in (EXACT, PRIOR):
        return [None]
    solver = build_solver(row.spec)
    folder = getattr(solver, "folder", None)
    return [repr(solver)] if folder is None else [repr(solver), prior_sha256(folder)]


def _key(suite: Suite, case: Case, row: Row, identity: list[str | None], samples: int, seed: int) -> str:
    """A hash of all that decides the numbers."""
    solver, *fit = identity
    parts = [case.key, asdict(row), solver, samples, suite.reference, seed, __version__, list(suite.columns), *fit]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
