"""The rows of `compare.py` as a table and as pictures."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from recipe import Recipe, Task
from torch import Tensor

from invsolve import Problem
from invsolve.files.encode import save_png, spread_picture
from invsolve.files.images import load_image

Row = dict[str, Any]  # a line of results.jsonl


def average(values: list[float | None]) -> float:
    """Mean over the pictures; NaN if one has no value."""
    return float("nan") if None in values else statistics.fmean(v for v in values if v is not None)


def best(rows: list[Row], metric: str) -> Row | None:
    sign = -1 if metric == "lpips" else 1
    return max(rows, key=lambda row: sign * average(row[metric]), default=None)


def title_of(row: Row) -> str:
    return f"{row['label']}, mean of {row['samples']}" if row["of"] == "mean" else str(row["label"])


def cells(row: Row) -> list[str]:
    """PSNR, SSIM, LPIPS, chi2, spread of the samples, 90 % coverage, calls, gradients, seconds, seconds per call."""
    chi2 = average(row["chi2"])
    per_call = f"{row['seconds'] / row['calls']:.3f}" if row["calls"] else "-"
    return [
        f"{average(row['psnr']):.2f}",
        f"{average(row['ssim']):.3f}",
        f"{average(row['lpips']):.3f}",
        "-" if chi2 != chi2 else f"{chi2:.2f}",
        *(f"{average(row[key]):.3f}" if key in row else "-" for key in ("spread", "coverage")),
        *(f"{row[key]:.0f}" if row[key] else "-" for key in ("calls", "gradients")),
        f"{row['seconds']:.1f}",
        per_call,
    ]


def table(recipe: Recipe, rows: list[Row]) -> str:
    """What the rows were made with, the rows of each task, then ours against deepinv."""
    head = ["PSNR", "SSIM", "LPIPS", "chi2", "spread", "within 90 %", "network calls", "gradients"]
    head += ["seconds", "s per call"]
    lines = [made_with(rows), ""]
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


def made_with(rows: list[Row]) -> str:
    """The versions of the packages behind the rows; of those that changed between rows, all."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        for name, number in row.get("versions", {}).items():
            if number not in found[name]:
                found[name].append(number)
    return "Made with " + ", ".join(f"{name} {' and '.join(numbers)}" for name, numbers in found.items()) + "."


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


def slug(text: str) -> str:
    """The text as a file name."""
    return re.sub(r"[^\w.=-]+", "-", text).strip("-")
