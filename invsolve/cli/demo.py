"""`invsolve demo`: the tasks of the demo, under a progress bar."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..bench.demo import BATCH_SIZE, HEADER, TASKS, DemoRow, run_demo
from .options import PriorOption, path_of
from .progress import StepBar

__all__ = ["DemoOptions", "show_demo"]


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """The options of `demo`."""

    out: Annotated[
        Path, typer.Option("-o", "--out", parser=path_of, metavar="PATH", help="Folder for the pictures.")
    ] = Path("invsolve-demo")
    prior: PriorOption = "natural"
    samples: Annotated[int, typer.Option(min=1, help="Posterior samples per task.")] = 4
    seed: Annotated[int, typer.Option(help="Of the measurements and the samples.")] = 0


def show_demo(options: DemoOptions, console: Console, errors: Console) -> None:
    """Degrade a photograph in several ways, restore it, and show how well."""
    bar = StepBar([math.ceil(options.samples / BATCH_SIZE)] * len(TASKS), console, errors)
    header = [HEADER]  # not before the first row: until then, a wrong option may end the run

    def report(row: DemoRow) -> None:
        bar.done(ran=True)
        if header:
            console.print(header.pop())
        console.print(str(row))

    with bar:
        run_demo(
            options.out,
            prior=options.prior,
            samples=options.samples,
            seed=options.seed,
            observers=[bar],
            report=report,
        )
    console.print(f"The pictures are in {options.out}.")
