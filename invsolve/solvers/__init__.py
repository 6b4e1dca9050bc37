"""The solvers, one paper a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..solver import Solver
from ..spec import parse_spec
from ..tables import Table
from .daps import DAPS
from .ddnm import DDNM
from .ddrm import DDRM
from .dflow import DFlow
from .diffpir import DiffPIR
from .dps import DPS
from .flair import FLAIR
from .flowchef import FlowChef
from .flowdps import FlowDPS
from .flower import FLOWER
from .flowpriors import FlowPriors
from .mcgdiff import MCGDiff
from .mmdflow import MMDFlow
from .mmps import MMPS
from .otode import OTODE
from .pigdm import PiGDM
from .pnpflow import PnPFlow
from .psld import PSLD
from .reddiff import REDDiff
from .resample import ReSample
from .rsd import RSD
from .sgfm import SGFM
from .tds import TDS

__all__ = [
    "DAPS",
    "DDNM",
    "DDRM",
    "DPS",
    "FLAIR",
    "FLOWER",
    "MMPS",
    "OTODE",
    "PSLD",
    "RSD",
    "SGFM",
    "SOLVERS",
    "TDS",
    "DFlow",
    "DiffPIR",
    "FlowChef",
    "FlowDPS",
    "FlowPriors",
    "MCGDiff",
    "MMDFlow",
    "PiGDM",
    "PnPFlow",
    "REDDiff",
    "ReSample",
    "build_solver",
]

_ROWS: dict[str, type[Solver[Any]]] = {
    "flowdps": FlowDPS,
    "flair": FLAIR,
    "reddiff": REDDiff,
    "rsd": RSD,
    "dps": DPS,
    "pigdm": PiGDM,
    "mmps": MMPS,
    "ddrm": DDRM,
    "ddnm": DDNM,
    "diffpir": DiffPIR,
    "daps": DAPS,
    "psld": PSLD,
    "resample": ReSample,
    "flowchef": FlowChef,
    "pnpflow": PnPFlow,
    "dflow": DFlow,
    "otode": OTODE,
    "flowpriors": FlowPriors,
    "flower": FLOWER,
    "sgfm": SGFM,
    "mcgdiff": MCGDiff,
    "tds": TDS,
    "mmdflow": MMDFlow,
}
SOLVERS: Table[type[Solver[Any]]] = Table("solver", _ROWS)


def build_solver(spec: str | Mapping[str, Any]) -> Solver[Any]:
    """A solver from its name and fields, such as "flowdps(step_size=10)" or {"name": "flowdps", "step_size": 10}."""
    name, fields = parse_spec(spec, SOLVERS, "solver")
    return SOLVERS[name](**fields)
