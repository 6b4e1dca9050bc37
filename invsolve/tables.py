"""Tables of operators, priors and solvers by name: our own rows, and those of other installed packages."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, MutableMapping
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

__all__ = ["Table"]

LOG = logging.getLogger("invsolve")
Entry = TypeVar("Entry")


class Table(MutableMapping[str, Entry], Generic[Entry]):
    """Names and what is behind them.

    Another package adds a row by an entry point of the group `invsolve.solvers`, `invsolve.operators` or
    `invsolve.priors`.  It is imported when it is asked for by its name, or when the table is gone through.

    Arguments:
        kind: what the table holds: "solver", "operator" or "prior".
        rows: our own rows, which come first.
    """

    def __init__(self, kind: str, rows: Mapping[str, Entry]) -> None:
        self.kind, self.rows = kind, dict(rows)
        self._points: dict[str, EntryPoint] | None = None
        self._told: set[str] = set()

    def __getitem__(self, name: str) -> Entry:
        if name not in self.rows:
            point = self._further().get(name)
            if point is None:
                raise KeyError(name)
            try:
                self.rows[name] = point.load()
            except Exception as error:
                raise ValueError(
                    f"The {self.kind} {name} of the package {_package(point)} cannot be loaded "
                    f"({type(error).__name__}: {error}); mend or remove that package."
                ) from error
        return self.rows[name]

    def __contains__(self, name: object) -> bool:
        return name in self.rows or name in self._further()

    def __setitem__(self, name: str, entry: Entry) -> None:
        self.rows[name] = entry

    def __delitem__(self, name: str) -> None:
        del self.rows[name]

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __iter__(self) -> Iterator[str]:
        yield from list(self.rows)
        for name in self._further():
            if name in self.rows:
                continue
            try:
                self[name]
            except ValueError as error:
                if name not in self._told:
                    LOG.warning("%s", error)
                self._told.add(name)
            else:
                yield name

    def _further(self) -> dict[str, EntryPoint]:
        """The rows of other packages, not loaded yet."""
        if self._points is None:
            self._points = {}
            for point in entry_points(group=f"invsolve.{self.kind}s"):
                if point.name in self.rows or point.name in self._points:
                    LOG.warning(
                        "The package %s has a %s %s, whose name is taken; it is left out.",
                        _package(point), self.kind, point.name,
                    )  # fmt: skip
                else:
                    self._points[point.name] = point
        return self._points


def _package(point: EntryPoint) -> str:
    return point.value if point.dist is None else point.dist.name
