"""Tables, paired comparisons and curves from measurements."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..files.atomic import atomic_write
from .calibration import Calibration
from .metrics import LEVEL, SLICES
from .problems import EXACT, PRIOR, Suite
from .reference import PUBLISHED
from .runner import Measured

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table as RichTable

__all__ = [
    "Paired",
    "Table",
    "calibration_table",
    "curve",
    "curve_figure",
    "paired",
    "save_markdown",
    "suite_tables",
]

HEADINGS = {
    "mean_error": "mean",
    "cov_error": "cov",
    "bures": "Bures",
    "kl": "KL",
    "sw1": "SW1",
    "sw2": "SW2",
    "max_sw2": "max-SW2",
    "mode_tv": "TV",
    "coverage": f"cov{100 * LEVEL:.0f}",
    "chi2": "chi2",
    "rmse": "RMSE",
    "ksd": "KSD",
}
MEANING = {
    "mean_error": "mean: its error |m - m*| / sqrt(trace C*)",
    "cov_error": "cov: the error of the covariance |C - C*| / |C*| (Frobenius)",
    "bures": "Bures: W2 between Gaussians with the two pairs of moments",
    "kl": "KL: of the same Gaussians, samples from exact",
    "sw1": f"SW1: mean 1-d W1 over {SLICES} random directions",
    "sw2": f"SW2: root mean squared 1-d W2 over the same {SLICES} directions",
    "max_sw2": f"max-SW2: largest 1-d W2 over the same {SLICES} directions",
    "mode_tv": "TV: total variation of the weights of the mixture components",
    "coverage": f"cov{100 * LEVEL:.0f}: exact mass in the samples' central intervals, mean over entries",
    "chi2": "chi2: |A x - y|^2 / (m sigma^2), mean over samples",
    "rmse": "RMSE: of samples to the true x",
    "ksd": "KSD: score kernel Stein discrepancy under the exact posterior score",
}


@dataclass(frozen=True)
class Table:
    """A table that can be shown on a console or written as Markdown."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def to_rich(self) -> RichTable:
        """For a console."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as RichTable

        table = RichTable(
            title=self.title,
            caption="\n".join(self.notes),
            caption_justify="left",
            title_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        for k, name in enumerate(self.header):
            table.add_column(name, justify="left" if k == 0 else "right", overflow="fold", no_wrap=k > 0, min_width=3)
        for row in self.rows:
            table.add_row(*row)
        return table

    def to_markdown(self) -> str:
        """For a file."""
        lines = [f"### {self.title}", ""]
        lines += [_line(self.header), _line(["---"] + ["---:"] * (len(self.header) - 1))]
        lines += [_line(row) for row in self.rows]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes), ""])


def save_markdown(tables: Iterable[Table], path: Path) -> None:
    """Write tables to a Markdown file."""
    atomic_write(path, "\n".join(table.to_markdown() for table in tables).encode())


def suite_tables(suite: Suite, measured: Sequence[Measured], *, intervals: bool = True) -> list[Table]:
    """One table per setting, a row per sampler and number of steps.

    Arguments:
        suite: whose settings and columns are shown.
        measured: measurements; those of other suites are left out.
        intervals: print mean ± 1.96 std / sqrt(problems), not the mean alone.
    """
    tables = []
    for setting in suite.settings:
        records = [record for record in measured if record.suite == suite.name and record.setting == setting]
        if not records:
            continue
        groups = _groups(records)
        floor = next((group for group in groups.values() if group[0].row == EXACT), None)
        rows = [_row(suite, group, floor, intervals) for group in groups.values()]
        errors = {f"{record.row}: {record.error}" for record in records if record.error}
        published = PUBLISHED.get((suite.name, setting))
        notes = [
            f"{records[0].samples} samples per problem, compared with {suite.reference} exact ones.",
            "; ".join(MEANING[name] for name in suite.columns) + ".",
            f"x floor: mean SW1 over that of {EXACT}; calls: of the network per sample; s: seconds per problem.",
        ]
        notes += sorted(errors)
        if published is not None:
            for name, values in published.rows.items():
                shown = {column: _number(*(value if intervals else value[:1])) for column, value in values.items()}
                cells = [shown.get(column, "") for column in suite.columns]
                rows.append((f"{name} ({published.kind})", *cells, *[""] * 4))
            notes += [f"{published.kind.capitalize()}: {published.source}.", published.note]
        problems = len({record.problem for record in records})
        tables.append(
            Table(
                title=f"{suite.name}, {setting}: {problems} problem{'s' if problems > 1 else ''}",
                header=("sampler", *(HEADINGS[name] for name in suite.columns), "x floor", "calls", "s", "failed"),
                rows=tuple(rows),
                notes=tuple(notes),
            )
        )
    return tables


@dataclass(frozen=True)
class Paired:
    """The difference of a metric between two samplers on the same problems."""

    difference: float  # mean of first minus second
    interval: float  # 1.96 standard errors
    mean: float  # of the second
    problems: int

    @property
    def relative(self) -> float:
        """The difference as a share of the second's mean."""
        return self.difference / self.mean


def paired(measured: Iterable[Measured], first: str, second: str, metric: str = "sw1") -> Paired:
    """Compare two rows problem by problem; the spread between problems is wider than that between samplers.

    Raises:
        ValueError: they have no problem in common, one was measured with several numbers of steps or not at all, or
            the metric is not among the columns.
    """
    values: dict[str, dict[tuple[str, str, int, int, int], float]] = {first: {}, second: {}}
    steps: dict[str, set[int]] = {first: set(), second: set()}
    for record in measured:
        if record.row in values:
            if metric not in record.metrics:
                raise ValueError(f"{record.suite} has no {metric!r}; choose of {', '.join(record.metrics)}.")
            if record.error:
                raise ValueError(f"{record.row!r} was not measured on {record.suite}, {record.setting}: {record.error}")
            run = (record.suite, record.setting, record.problem, record.samples, record.seed)
            values[record.row][run] = record.metrics[metric]
            steps[record.row].add(record.steps)
    for row, found in steps.items():
        if len(found) > 1:
            raise ValueError(f"{row!r} was measured with {sorted(found)} steps; give the records of one of them.")
    common = sorted(values[first].keys() & values[second].keys())
    if not common:
        raise ValueError(f"{first!r} and {second!r} were not measured on a common problem; run both on one suite.")
    a, b = (torch.tensor([values[name][key] for key in common], dtype=torch.float64) for name in (first, second))
    return Paired(float((a - b).mean()), _interval(a - b), float(b.mean()), len(common))


def calibration_table(title: str, found: Sequence[Calibration], refused: Mapping[str, str] | None = None) -> Table:
    """P-values of uniform ranks and of TARP, and the area between TARP curve and diagonal.

    Arguments:
        title: of the table.
        found: at least one row.
        refused: why other rows could not be calibrated, by their labels.
    """
    names = list(found[0].p_values)
    rows = tuple((c.row, *(f"{c.p_values[name]:.3f}" for name in names), f"{c.area:+.3f}") for c in found)
    return Table(
        title=f"{title}: calibration",
        header=("sampler", *(f"p({name})" for name in names), "TARP area"),
        rows=rows,
        notes=(
            f"{found[0].simulations} truths, {found[0].samples} samples of each.  A calibrated sampler has p below "
            "0.05 once in twenty.",
            "TARP area above level 1/2: negative is over-confident or biased, positive too wide.",
            *(f"{row}: {reason}" for row, reason in (refused or {}).items()),
        ),
    )


def curve(measured: Iterable[Measured], metric: str) -> dict[str, list[tuple[float, float, float]]]:
    """Per sampler (calls, mean, interval) of a metric over problems and settings, in the order of calls."""
    points: dict[str, list[tuple[float, float, float]]] = {}
    for (row, _), group in _groups(measured).items():
        values = torch.tensor([record.metrics[metric] for record in group], dtype=torch.float64)
        calls = sum(record.calls for record in group) / len(group)
        points.setdefault(row, []).append((calls, float(values.mean()), _interval(values)))
    return {row: sorted(found) for row, found in points.items()}


def curve_figure(measured: Iterable[Measured], metric: str, title: str) -> Figure:
    """The metric against network calls per sample, both on logarithmic axes; floor and prior as lines.

    The band is the mean times and over one plus its relative uncertainty; the legend begins with the worst.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axis = figure.subplots()
    points = curve(measured, metric)
    palette = colormaps["tab20"].colors  # type: ignore[attr-defined]
    samplers = [(row, found) for row, found in points.items() if row not in (EXACT, PRIOR)]
    for k, (row, found) in enumerate(sorted(samplers, key=lambda entry: -entry[1][-1][1])):
        calls, mean, interval = (torch.tensor(column) for column in zip(*found, strict=True))
        color = palette[k % 20]
        axis.plot(calls, mean, ("o-", "s--")[k // 20 % 2], ms=3, color=color, label=row)
        factor = 1 + interval / mean
        axis.fill_between(calls, mean / factor, mean * factor, color=color, alpha=0.08)
    for row, style in ((EXACT, "k--"), (PRIOR, "k:")):
        if row in points:
            axis.axhline(points[row][0][1], ls=style[1:], color=style[0], lw=1, label=row)
    axis.set(xscale="log", yscale="log", xlabel="network calls per sample", ylabel=HEADINGS[metric], title=title)
    axis.grid(alpha=0.3, which="both", lw=0.4)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _groups(measured: Iterable[Measured]) -> dict[tuple[str, int], list[Measured]]:
    """Records of the same sampler with the same number of steps; a run that was asked for twice counts once."""
    groups: dict[tuple[str, int], dict[tuple[str, str, int, int, int], Measured]] = {}
    for record in measured:
        run = (record.suite, record.setting, record.problem, record.samples, record.seed)
        groups.setdefault((record.row, record.steps), {}).setdefault(run, record)
    return {key: list(runs.values()) for key, runs in groups.items()}


def _row(suite: Suite, group: list[Measured], floor: list[Measured] | None, intervals: bool) -> tuple[str, ...]:
    cells = []
    for name in suite.columns:
        values = torch.tensor([record.metrics.get(name, math.nan) for record in group], dtype=torch.float64)
        cells.append(_number(float(values.mean()), _interval(values) if intervals else None))
    ratio = ""
    if floor is not None:
        times = _mean(group, "sw1") / _mean(floor, "sw1")
        ratio = "-" if math.isnan(times) else f"{times:.1f}"
    calls = sum(record.calls for record in group) / len(group)
    seconds = sum(record.seconds for record in group) / len(group)
    failed = sum(record.failed for record in group)
    return (group[0].row, *cells, ratio, f"{calls:.0f}", f"{seconds:.2f}", str(failed) if failed else "")


def _mean(group: list[Measured], metric: str) -> float:
    return sum(record.metrics.get(metric, math.nan) for record in group) / len(group)


def _interval(values: torch.Tensor) -> float:
    """1.96 standard errors of the mean; 0 for a single value."""
    return 1.96 * float(values.std()) / len(values) ** 0.5 if len(values) > 1 else 0.0


def _number(mean: float, interval: float | None = None) -> str:
    """Three digits, with the uncertainty to the same place."""
    if not math.isfinite(mean):
        return "-"
    if abs(mean) < 5e-5:
        return "0"
    digits = min(max(2 - math.floor(math.log10(abs(mean))), 0), 4)
    return f"{mean:.{digits}f}" + (f" ± {interval:.{digits}f}" if interval else "")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
