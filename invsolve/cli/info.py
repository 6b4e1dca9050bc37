"""`invsolve list` and `invsolve info`: what there is, from docstrings, fields and cards."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from ..operators import OPERATORS, Operator
from ..priors import BUNDLED, PRIORS, find_card, load_cards
from ..solver import Solver
from ..solvers import SOLVERS
from ..spec import spec_fields
from .prior import about_card, describe_card

__all__ = ["describe_entry", "list_entries"]

TABLES: dict[str, dict[str, Callable[..., Any]]] = {
    "operators": {**OPERATORS},
    "priors": {**PRIORS},
    "solvers": {**SOLVERS},
}


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """The options of `list`."""

    what: Annotated[Literal["operators", "priors", "solvers"] | None, typer.Argument(help="By default all.")] = None


@dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """The options of `info`."""

    name: Annotated[str, typer.Argument(help="Of an operator, prior or solver.")]


def list_entries(options: ListOptions, console: Console, errors: Console) -> None:  # noqa: ARG001
    """Name the operators, priors and solvers."""
    what = options.what
    for kind in TABLES if what is None else [what]:
        if what is None:
            console.print(f"{kind}:")
        lines = {name: _paragraphs(entry)[0] for name, entry in TABLES[kind].items()}
        if kind == "priors":
            lines |= {name: about_card(card) for name, card in load_cards().items()}
        width = max(map(len, lines))
        for name, line in lines.items():
            console.print(f"  {name:{width}}  {line}")


def describe_entry(options: InfoOptions, console: Console, errors: Console) -> None:  # noqa: ARG001
    """Describe an operator, prior or solver and its fields."""
    name = options.name
    found = [(kind, table[name]) for kind, table in TABLES.items() if name in table]
    if name in load_cards():
        console.print(f"{name} (prior of the model hub)\n\n{describe_card(find_card(name))}")
        return
    if not found:
        known = "; ".join(f"{kind}: {', '.join(table)}" for kind, table in TABLES.items())
        known += f"; priors of the hub: {', '.join(load_cards())}"
        raise ValueError(f"Unknown name {name!r}; choose one of {known}.")
    for kind, entry in found:
        console.print(f"{name} ({kind[:-1]})\n")
        console.print("\n\n".join(_paragraphs(entry)))
        if kind == "priors":
            card = BUNDLED / name / "README.md"  # licence, training data, size and quality of the weights
            if card.is_file():
                console.print(f"\n{card.read_text()}")
            continue
        console.print("\nFields:" if spec_fields(entry) else "\nNo fields.")
        for field in spec_fields(entry):
            console.print(f"  {field}{' (required)' if field.required else ''}")
        if kind == "solvers":
            console.print(f"\n{_claims(SOLVERS[name])}")


def _claims(solver: type[Solver[Any]]) -> str:
    """What a solver needs, what its samples are, and what it does by default."""
    needs = "any operator" if solver.requires is Operator else f"a {solver.requires.__name__}"
    follows = (
        "follow the posterior, given enough steps and samples"
        if solver().samples_posterior
        else "need not follow the posterior"
    )
    together = "; the samples of one picture see each other" if solver.interacting else ""
    published = ", ".join(f"{key}={value!r}" for key, value in solver.published.items())
    official = f"  With (official) in place of fields: {published}." if published else ""
    grid = f"By default {solver.steps} steps of the grid {solver.times}."
    return f"Takes {needs}.  Its samples {follows}{together}.  {grid}{official}"


def _paragraphs(entry: Callable[..., Any]) -> list[str]:
    """The docstring, whose first paragraph is what a list shows in one line."""
    first, *rest = (inspect.getdoc(entry) or "").split("\n\n")
    return [" ".join(first.split()), *rest]
