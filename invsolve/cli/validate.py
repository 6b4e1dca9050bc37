"""`invsolve validate`: samplers against exact posteriors, as tables, curves and calibration tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..files.encode import check_folder_name
from ..files.inputs import check_writable
from ..files.provenance import figure_metadata
from ..solvers import build_solver
from ..validate import (
    CURVE,
    SUITES,
    Measured,
    Row,
    Suite,
    Table,
    calibrate,
    calibration_table,
    curve_figure,
    default_rows,
    find_suite,
    run_suite,
    save_markdown,
    steps_for,
    suite_tables,
)
from .choices import check_at_least
from .options import path_of

__all__ = ["ValidateOptions", "validate_samplers"]

RESULTS = "results.jsonl"
WIDTH = 130  # characters


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidateOptions:
    """The options of `validate`; None is the default of the suite."""

    suite: Annotated[str | None, typer.Argument(help="A family of problems; without it, they are listed.")] = None
    solver: Annotated[
        list[str] | None, typer.Option(help="NAME or 'NAME(field=value, ...)', repeatable.  Default: all.")
    ] = None
    without: Annotated[list[str] | None, typer.Option(help="NAME of a solver to leave out, repeatable.")] = None
    setting: Annotated[list[str] | None, typer.Option(help="Of the suite, such as dy=4, repeatable.")] = None
    problems: Annotated[int | None, typer.Option(help="Per setting; by default those of a full run.")] = None
    first: Annotated[int, typer.Option(help="Number of the first problem; 1000 and up are for tuning.")] = 0
    samples: Annotated[int | None, typer.Option(help="Per problem, or per truth with --calibrate.")] = None
    calls: Annotated[
        int | None,
        typer.Option(help="Network calls per sample at most, unless one step takes more; the steps follow."),
    ] = None
    steps: Annotated[int | None, typer.Option(help="Time steps, instead of --calls.")] = None
    times: Annotated[
        str | None, typer.Option(help="suite: its grid, the default of most rows; own: the solver's; or a grid's name.")
    ] = None
    particles: Annotated[int | None, typer.Option(help="Samples that see each other; by default all.")] = None
    one_each: Annotated[bool, typer.Option("--one-each", help="Keep one particle of every run.")] = False
    seed: Annotated[int, typer.Option(help="Of the samples; the problems are always the same.")] = 0
    curve: Annotated[bool, typer.Option("--curve", help="Error against network calls, 5 to 500.")] = False
    calibrate: Annotated[bool, typer.Option("--calibrate", help="SBC ranks and TARP coverage instead.")] = False
    simulations: Annotated[int | None, typer.Option(help="Truths to calibrate with, by default 200.")] = None
    out: Annotated[
        Path, typer.Option("-o", "--out", parser=path_of, metavar="PATH", help="Folder for the results.")
    ] = Path("validation")


def validate_samplers(options: ValidateOptions, console: Console, errors: Console) -> None:
    """Compare samplers with exact posteriors.

    Writes one line per sampler and problem to results.jsonl, from which an interrupted run goes on, and a table.
    """
    suite, out = options.suite, options.out
    if suite is None:
        width = max(map(len, SUITES))
        for name, entry in SUITES.items():
            console.print(f"  {name:{width}}  {entry.about}  Settings: {', '.join(entry.settings)}.")
        return
    chosen = find_suite(suite)
    check_at_least(
        1,
        calls=options.calls,
        steps=options.steps,
        particles=options.particles,
        problems=options.problems,
    )
    check_at_least(0, first=options.first)
    check_at_least(2, samples=options.samples)
    if options.curve and (options.steps is not None or options.calls is not None):
        unused = "calls" if options.steps is None else "steps"
        raise ValueError(f"--curve chooses the numbers of steps itself; leave out --{unused}.")
    if options.steps is not None and options.calls is not None:
        raise ValueError("--calls stands for the number of steps that it pays for; give it or --steps, not both.")
    if options.simulations is not None and not options.calibrate:
        raise ValueError("--simulations is the number of truths of --calibrate; give both or neither.")
    if options.calibrate and (options.curve or options.problems is not None):
        unused = "curve" if options.curve else "problems"
        raise ValueError(
            f"--calibrate draws its own truths for one operator; --{unused} does nothing there, leave it out."
        )
    setting = list(dict.fromkeys(options.setting or ()))
    options = dataclasses.replace(options, setting=setting, solver=options.solver or [], without=options.without or [])
    rows = _rows(chosen, options)
    check_folder_name(out)
    check_writable(out)
    for name in (RESULTS, "table.md"):
        if (out / name).is_dir():
            raise ValueError(f"{out / name} is a folder, where the results belong; choose another folder with -o.")
    if options.calibrate:
        _calibrate(chosen, rows, out, options, console)
        return
    if options.curve:
        asking = [row for row in rows[2:] if build_solver(row.spec).network_calls(1)]  # the others have one point
        rows = rows[:2] + [point for row in asking for point in _points(row)]
    measured = _run(chosen, rows, out, options, errors)
    for table in suite_tables(chosen, measured, intervals=False):
        _show(table, console)
    save_markdown(suite_tables(chosen, measured), out / "table.md")
    if options.curve:
        for one in options.setting or chosen.settings:
            shown = [record for record in measured if record.setting == one]
            figure = curve_figure(shown, "sw1", f"{chosen.name}, {one}")
            figure.savefig(out / f"curve {one}.png", dpi=150, metadata=figure_metadata("validate"))
    console.print(f"The results are in {out}.")


def _rows(suite: Suite, options: ValidateOptions) -> list[Row]:
    """What is to be run: the exact and the prior samples, and at least one solver."""
    rows = default_rows(
        suite,
        options.solver or (),
        calls=options.calls,
        steps=options.steps,
        times=options.times,
        particles=options.particles,
        one_each=options.one_each or None,
    )
    rows = list(dict.fromkeys(rows))
    names = list(dict.fromkeys(row.spec.partition("(")[0] for row in rows[2:]))
    for name in options.without or ():
        if options.solver or name not in names:
            reason = "--solver names what to run" if options.solver else f"solvers are {', '.join(names)}"
            raise ValueError(f"--without {name} leaves nothing out: {reason}.")
    rows = [row for row in rows if row.spec.partition("(")[0] not in (options.without or ())]
    solvers = [build_solver(row.spec) for row in rows[2:]]
    if not solvers:
        raise ValueError("--without leaves no solver; leave out fewer.")
    if (options.particles is not None or options.one_each) and not any(solver.interacting for solver in solvers):
        unused = "one-each" if options.particles is None else "particles"
        raise ValueError(f"--{unused} is for solvers whose samples see each other, and none here is one; leave it out.")
    return rows


def _show(table: Table, console: Console) -> None:
    """Print a table as wide as it is: folded numbers cannot be read."""
    console.width = max(console.width, WIDTH)
    console.print(table.to_rich())


def _run(suite: Suite, rows: list[Row], out: Path, options: ValidateOptions, errors: Console) -> list[Measured]:
    """Run the suite under a progress bar."""
    settings = options.setting or suite.settings
    problems = suite.problems if options.problems is None else options.problems
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task("", total=len(rows) * len(settings) * problems)
        return run_suite(
            suite,
            rows,
            problems=problems,
            first=options.first,
            settings=settings,
            samples=options.samples,
            seed=options.seed,
            records=out / RESULTS,
            report=lambda record: progress.update(
                task, advance=1, description=f"{record.setting} #{record.problem} {record.row}"
            ),
        )


def _points(row: Row) -> list[Row]:
    """A row at the numbers of calls of a curve; those that pay for the same number of steps are one."""
    solver = build_solver(row.spec)
    least: dict[int, int] = {}
    for calls in CURVE:
        least.setdefault(steps_for(solver, calls), calls)
    return [dataclasses.replace(row, calls=calls, steps=None) for calls in least.values()]


def _calibrate(suite: Suite, rows: list[Row], out: Path, options: ValidateOptions, console: Console) -> None:
    """Calibration with the operator of the first problem of every setting; written setting by setting."""
    finished: list[Table] = []
    counts = {
        "simulations": 200 if options.simulations is None else options.simulations,
        "samples": 100 if options.samples is None else options.samples,
    }
    check_at_least(20, **counts)
    cases = [suite.case(setting, options.first) for setting in options.setting or suite.settings]
    for case in cases:
        found, refused = [], {}
        for row in rows:
            try:
                found.append(calibrate(row, suite, case, **counts, seed=options.seed))
            except (TypeError, ValueError) as reason:  # what it cannot do
                refused[row.label] = " ".join(str(reason).split())
        finished.append(calibration_table(f"{suite.name}, {case.setting}", found, refused))
        _show(finished[-1], console)
        save_markdown(finished, out / "calibration.md")
    console.print(f"The results are in {out}.")
