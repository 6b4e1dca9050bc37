"""Which combinations of several tables run in the fast suite: every pair of rows meets, the rest is slow."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import pytest

# Solvers whose defaults take long, with fewer evaluations of everything.
SHORT = {
    "mmdflow": "mmdflow(pairs=8, flow_steps=1, slices=4)",
    "dflow": "dflow(ode_steps=2, evaluations=2)",
    "sgfm": "sgfm(ode_steps=3, leapfrog_steps=1, global_moves=1)",
}


def pairs_of(*tables: Sequence[Any], every: int | None = None) -> list[Any]:
    """All combinations; those whose indices do not sum to a multiple of `every` are marked slow.

    With `every` the length of the shortest of three tables, each row of a table meets each row of the others.
    """
    every = every or min(len(table) for table in tables)
    found = []
    for places in product(*(range(len(table)) for table in tables)):
        values = [table[i] for table, i in zip(tables, places, strict=True)]
        marks = [] if sum(places) % every == 0 else [pytest.mark.slow]
        name = "-".join(" ".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in values)
        found.append(pytest.param(*values, marks=marks, id=name))
    return found


def further(name: str) -> dict[str, Any]:
    """What the package of tests/example adds to a table of cases, where it is installed."""
    try:
        import example_cases
    except ImportError:
        return {}
    return getattr(example_cases, name)


def check_cases(rows: Iterable[str], cases: Mapping[str, Any] | Iterable[str], table: str, file: str) -> None:
    """Every row has a case; the sentence says which to add, and where."""
    rows, cases = set(rows), set(cases)
    for name in sorted(rows - cases):
        pytest.fail(f"{name} has no case: add a row for it to {table} in tests/{file}.", pytrace=False)
    for name in sorted(cases - rows):
        pytest.fail(
            f"{table} in tests/{file} has a case for {name}, which is no row any more: remove it.", pytrace=False
        )
