"""Posterior validation: samplers on problems whose posterior is known in closed form."""

from __future__ import annotations

from .calibration import Calibration, calibrate
from .metrics import METRICS, evaluate
from .problems import EXACT, PRIOR, Case, Row, Suite
from .reference import PUBLISHED
from .report import (
    Paired,
    Table,
    calibration_table,
    curve,
    curve_figure,
    paired,
    save_markdown,
    suite_tables,
)
from .runner import CURVE, Measured, default_rows, load_records, measure, run_suite, steps_for
from .suites import SUITES, find_suite

__all__ = [
    "CURVE",
    "EXACT",
    "METRICS",
    "PRIOR",
    "PUBLISHED",
    "SUITES",
    "Calibration",
    "Case",
    "Measured",
    "Paired",
    "Row",
    "Suite",
    "Table",
    "calibrate",
    "calibration_table",
    "curve",
    "curve_figure",
    "default_rows",
    "evaluate",
    "find_suite",
    "load_records",
    "measure",
    "paired",
    "run_suite",
    "save_markdown",
    "steps_for",
    "suite_tables",
]
