"""The chi2 of a result, and the chi2 that its solver leaves on data of its own.

chi2 = |A x - y|^2 / (m sigma^2) is about 1 for a picture that explains its data, and its standard deviation is
sqrt(2 / m).  Solvers leave less or more than 1, each in its own way, even if operator and noise are right.  How much
was measured once for every solver, kind of operator and noise level (scripts/expected_chi2.py), and is stored in
expected_chi2.json.  A chi2 outside of that, with a margin, is a doubt.

Data are clipped and rounded when they become a picture file.  Both change chi2 and are taken into account.  The noise
of noiseless data is their rounding to 8 bits, the closest that solvers hold any data.

Where nothing was measured (a solver without an entry, fields that are not its defaults, less than half or more than
twice its steps, another time grid, another prior than `natural`, an operator of no kind below) the band is GENERAL,
widened to what the solver leaves with its defaults if that is known.  A prior with a decoder may leave up to TOLERATED,
or TOLERATED_DECODED of noiseless data: its own error is in chi2 too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..noise import GaussianNoise
from ..operators.base import LinearOperator, Operator
from ..priors import Prior
from ..problem import Problem
from ..solver import Solver
from ..solvers import SOLVERS

__all__ = [
    "EIGHT_BITS",
    "TABLE",
    "Band",
    "chi2_of",
    "expected_band",
    "kind_of",
    "misfit_ratio",
    "name_of",
    "rounding_of",
]

TABLE = Path(__file__).with_name("expected_chi2.json")
EIGHT_BITS = 2 / 255 / math.sqrt(12)  # standard deviation of rounding to 8 bits, in [-1, 1] units

GENERAL = 0.25, 4.0  # chi2 where nothing was measured: 58 of the 66 in docs/samplers.md are inside
TOLERATED = 10.0  # chi2 above it is a doubt, whatever the solver leaves by itself
TOLERATED_NOISELESS = 100.0  # the same for noiseless data: three levels of 255
TOLERATED_DECODED = 3000.0  # the same for priors with a decoder, whose own error it is: 16 levels
MARGIN = 1.25, 1.15  # below and above the measured band
DEVIATIONS = 3.0  # of chi2, sqrt(2 / m) each
MOST_STEPS = 2.0  # times the measured number of steps, or its inverse
HALVED = 0.6  # data with a smaller part of the picture's sides are of low resolution


class Band(NamedTuple):
    """The chi2 that is no doubt."""

    low: float
    high: float
    own: bool  # whether it was measured for this solver
    left: float  # the most that the solver leaves by itself; above `high` where that is the doubt


def kind_of(operator: Operator) -> str:
    """The kind of operator that chi2 is measured for, as the table names it; empty for others."""
    if operator.picture_error is not None:
        return "denoising" if operator.picture_error == 0 else "JPEG"
    shape, data = operator.shown_shape, operator.data_shape
    if not isinstance(operator, LinearOperator) or len(data) != 3 or data[0] != shape[0]:
        return ""
    if max(data[1] / shape[1], data[2] / shape[2]) < HALVED:
        return "super-resolution"
    hides = operator.data_mask is not None and not bool(operator.data_mask.all())
    return "inpainting" if hides else "deblurring"


def chi2_of(problem: Problem, x: Tensor) -> Tensor:
    """chi2 of pictures x (B, *image_shape), (B,); against the rounding to 8 bits where the data have no noise."""
    return _misfit(problem, x) / _variance(problem, 0.0)


def misfit_ratio(problem: Problem, x: Tensor, rounding: float) -> Tensor:
    """The misfit of x (B, *image_shape) over what noise, rounding and clipping of the data leave, (B,).

    Arguments:
        problem: whose data may have been clipped to [-1, 1].
        x: pictures.
        rounding: standard deviation of the rounding of the data; 0 for none.
    """
    return _misfit(problem, x) / _expected_misfit(problem, x, rounding)


def rounding_of(y: Tensor) -> float:
    """The standard deviation of the rounding of data in [-1, 1]: to 8 or 16 bits if all lie on that grid, else 0."""
    for bits, slack in ((8, 0.01), (16, 0.05)):  # float32 holds 16 bits no better
        top = 2**bits - 1
        levels = (y.double() + 1) / 2 * top
        if bool(((levels - levels.round()).abs() < slack).all()):
            return 2 / top / math.sqrt(12)
    return 0.0


def expected_band(
    problem: Problem, x: Tensor, solver: Solver[Any], steps: int, times: str | None, prior: Prior, rounding: float
) -> Band | None:
    """The chi2 of one picture x (1, *image_shape) that is no doubt; None where there is nothing to compare with.

    Arguments:
        problem: one measurement.
        x: a picture that was restored from it.
        solver: the solver that did it.
        steps: the number of steps it took.
        times: the name of its time grid; None for its own.
        prior: the prior it used.
        rounding: see `rounding_of`.
    """
    sigma, kind, linear = float(problem.std[0]), kind_of(problem.operator), isinstance(problem.operator, LinearOperator)
    stored = _stored(solver, steps, kind, sigma)
    own = stored is not None and _is_as_measured(solver, steps, times, kind, prior)
    if sigma == 0 and not own and not linear:
        return None
    noiseless = TOLERATED_DECODED if prior.has_decoder else TOLERATED_NOISELESS
    most = TOLERATED if sigma > 0 else noiseless if linear else math.inf  # JPEG's own error is no noise
    low, high = (stored[0] / MARGIN[0], stored[1] * MARGIN[1]) if stored else GENERAL
    if not own:
        low = min(low, GENERAL[0]) if linear else 0.0
        high = max(high, GENERAL[1]) if linear and not prior.has_decoder and sigma > 0 else most
    if sigma == 0:
        low, high = 0.0, max(high, 1.0)
    scale = float((_expected_misfit(problem, x, rounding) / _variance(problem, 0.0))[0])
    deviation = DEVIATIONS * math.sqrt(2 / problem.n_data)
    low, high = scale * low * max(1 - deviation, 0.0), scale * high * (1 + deviation)
    return Band(low, min(high, most), own, high)


def name_of(solver: Solver[Any]) -> str:
    """Its name in SOLVERS, or the name of its class if it is somebody else's."""
    return next((name for name, entry in SOLVERS.items() if entry is type(solver)), type(solver).__name__)


def _misfit(problem: Problem, x: Tensor) -> Tensor:
    """|A x - y|^2 / m per picture (B,)."""
    return problem.residual(x).square().flatten(1).sum(dim=1) / problem.n_data


def _variance(problem: Problem, rounding: float) -> Tensor:
    """The variance of what was added to A x, per picture (B,): at least that of 8 bits for noiseless data."""
    noise = problem.std.double().square()
    return torch.where(noise > 0, noise + rounding**2, noise + EIGHT_BITS**2).to(problem.y)


def _expected_misfit(problem: Problem, x: Tensor, rounding: float) -> Tensor:
    """E |clip(A x + n) - A x|^2 / m per picture (B,), n ~ N(0, sigma^2 + rounding^2), clipped if the data were.

    With a = (-1 - p) / s, b = (1 - p) / s and p = A x, an entry has
    s^2 (P(a < n < b) + a phi(a) - b phi(b) + a^2 P(n < a) + b^2 P(n > b)).
    """
    variance = _variance(problem, rounding)
    size = problem.y.abs()
    if not isinstance(problem.noise, GaussianNoise) or not bool(1 - 1e-6 < size.max() < 1 + 1e-6):
        return variance
    s = variance.double().sqrt().reshape(-1, *[1] * (problem.y.ndim - 1))
    p = problem.operator(x).double()
    a, b = (-1 - p) / s, (1 - p) / s
    inside = _normal(b) - _normal(a) + a * _density(a) - b * _density(b)
    each = s**2 * (inside + a**2 * _normal(a) + b**2 * _normal(-b))
    mask = problem.operator.data_mask
    each = each if mask is None else each * mask.to(each)
    return (each.flatten(1).sum(dim=1) / problem.n_data).to(problem.y)


def _normal(z: Tensor) -> Tensor:
    return torch.special.ndtr(z)


def _density(z: Tensor) -> Tensor:
    return torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


# --- what was measured ------------------------------------------------------------------------------------------------


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(TABLE.read_text())
    return table


def _rows(solver: Solver[Any], kind: str) -> dict[int, dict[float, list[float]]]:
    """What was measured for a solver and a kind: numbers of steps, noise levels and bands."""
    rows = _table()["solvers"].get(name_of(solver), {}).get(kind, {})
    return {int(steps): {float(level): band for level, band in bands.items()} for steps, bands in rows.items()}


def _nearest(rows: Iterable[int], steps: int) -> int:
    return min(rows, key=lambda count: abs(math.log(steps / count)))


def _stored(solver: Solver[Any], steps: int, kind: str, sigma: float) -> tuple[float, float] | None:
    """The lowest and the highest ratio of the nearest number of steps, or None.

    Other steps leave more or less; how much was not measured, so that the band is widened by their ratio, at most by
    MOST_STEPS.
    """
    rows = _rows(solver, kind)
    nearest = _nearest(rows, steps) if rows else steps
    found = _between(rows[nearest], sigma) if rows else None
    wider = min(max(steps / nearest, nearest / steps), MOST_STEPS)
    return None if found is None else (found[0] / wider, found[1] * wider)


def _is_as_measured(solver: Solver[Any], steps: int, times: str | None, kind: str, prior: Prior) -> bool:
    """Whether fields, steps, time grid and prior are as they were when the chi2 of the solver was measured."""
    off = steps / _nearest(_rows(solver, kind), steps)
    plain = solver == SOLVERS[name_of(solver)]() and times in (None, solver.times)
    return plain and prior.name == _table()["about"]["prior"] and 1 / MOST_STEPS <= off <= MOST_STEPS


def _between(bands: Mapping[float, list[float]], sigma: float) -> tuple[float, float] | None:
    """The band at a noise level: between two levels on straight lines in logarithms, beyond them the last one.

    Between no noise and half of the lowest level a solver may do as it does at either: the band holds both.
    """
    levels = sorted(level for level in bands if level > 0)
    if sigma == 0 or not levels:
        return (bands[0.0][0], bands[0.0][1]) if sigma == 0 and 0.0 in bands else None
    if sigma < levels[0] / 2 and 0.0 in bands:
        none, least = bands[0.0], bands[levels[0]]
        return min(none[0], least[0]), max(none[1], least[1])
    above = next((k for k, level in enumerate(levels) if level >= sigma), len(levels) - 1)
    below = max(above - 1, 0)
    gap = math.log(levels[above] / levels[below])
    weight = min(max(math.log(sigma / levels[below]) / gap, 0.0), 1.0) if gap else 0.0
    ends = zip(bands[levels[below]], bands[levels[above]], strict=True)
    low, high = (math.exp((1 - weight) * math.log(max(p, 1e-6)) + weight * math.log(max(q, 1e-6))) for p, q in ends)
    return low, high
