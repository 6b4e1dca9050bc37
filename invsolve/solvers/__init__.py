"""The solvers, one paper a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..solver import Solver
from ..spec import parse_spec
from .ddnm import DDNM
from .diffpir import DiffPIR
from .dps import DPS
from .flowdps import FlowDPS
from .reddiff import REDDiff

__all__ = ["DDNM", "DPS", "SOLVERS", "DiffPIR", "FlowDPS", "REDDiff", "build_solver"]

SOLVERS: dict[str, type[Solver[Any]]] = {
    "flowdps": FlowDPS,
    "reddiff": REDDiff,
    "dps": DPS,
    "ddnm": DDNM,
    "diffpir": DiffPIR,
}


def build_solver(spec: str | Mapping[str, Any]) -> Solver[Any]:
    """A solver from its name and fields, such as "flowdps(step_size=10)" or {"name": "flowdps", "step_size": 10}."""
    name, fields = parse_spec(spec, SOLVERS, "solver")
    return SOLVERS[name](**fields)
