"""What speaks against a result, as sentences: its chi2, its mask, values that no picture has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..files.holes import mask_notes
from ..operators.base import Operator
from ..priors import Prior
from ..problem import Problem
from ..result import Result, json_number
from ..solver import Solver
from .expected import Band, expected_band, kind_of, name_of

__all__ = ["DoubtWarning", "doubts_of", "judge"]

FAR = 0.5  # share of the values far outside [-1, 1]

NOTHING = "Nothing was undone: the operator is the identity and the noise 0; name the blur, the mask or the noise."
LOOK_AT = {
    "denoising": "the noise (its level, and whether it is white)",
    "inpainting": "the mask and the noise",
    "deblurring": "the border (boundary=...), the kernel and the noise",
    "super-resolution": "how the picture was made smaller, its border and the noise",
    "JPEG": "the quality",
    "": "the operator, its border and the noise",
}


class DoubtWarning(UserWarning):
    """A result of `restore` that its data speak against; the sentences are in `Result.doubts`."""


def judge(
    result: Result,
    problems: Sequence[Problem],
    solver: Solver[Any],
    prior: Prior,
    times: str | None,
    rounding: Sequence[float],
    outside: Tensor,
) -> Result:
    """The result with its doubts, and with the chi2 that is none in its record: low and high for each measurement.

    Arguments:
        result: with the chi2 of `chi2_of`.
        problems: with one measurement each, or one problem with all.
        solver: the solver that did it.
        prior: the prior it used.
        times: the name of its time grid; None for its own.
        rounding: of each measurement, see `rounding_of`.
        outside: of each measurement, the share of the values that were far outside [-1, 1] (B,).
    """
    bands, doubts = [], []
    steps = int(result.stats["steps"])
    for b, (samples, chi2) in enumerate(zip(result.samples, result.chi2, strict=True)):
        problem = problems[b] if len(problems) > 1 else problems[0].rows(torch.tensor([b], device=result.chi2.device))
        finite = samples[samples.flatten(1).isfinite().all(dim=1)][:1]
        band = expected_band(problem, finite, solver, steps, times, prior, rounding[b]) if len(finite) else None
        bands.append(None if band is None else [json_number(band.low), json_number(band.high)])
        told = doubts_of(chi2, band, float(outside[b]), problem.operator, name_of(solver))
        if problem.operator.picture_error == 0 and not bool(problem.std.any()):
            told.append(NOTHING)
        doubts.append(tuple(told))
    return replace(result, doubts=tuple(doubts), record=result.record | {"expected_chi2": bands})


def doubts_of(chi2: Tensor, band: Band | None, outside: float, operator: Operator, name: str) -> list[str]:
    """What speaks against the samples of one measurement, as sentences.

    Arguments:
        chi2: of every sample (S,); they are judged by their median, since the mean of samples has a lower chi2.
        band: the chi2 that is no doubt, if known.
        outside: share of the values that were far outside [-1, 1].
        operator: what was undone.
        name: of the solver.
    """
    doubts = mask_notes(operator.data_mask)
    value = float(chi2.nanmedian())
    look = f"look at {LOOK_AT[kind_of(operator)]}"
    if band is not None and math.isfinite(value) and not band.low <= value <= band.high:
        leaves = f"{band.low:.2g} to {band.high:.3g}" if band.low > 0 else f"up to {band.high:.3g}"
        usual = f"{name} leaves {leaves} on data of its own" if band.own else f"{leaves} is usual"
        if value > band.high and band.own and value <= band.left:
            doubts.append(
                f"chi2 is {value:.3g}: {name} explains such data no better by itself; choose another solver, or give "
                "the noise of the data if they have any."
            )
        elif value > band.high:
            doubts.append(f"chi2 is {value:.3g}, and {usual}: the result does not explain the data; {look}.")
        else:
            doubts.append(f"chi2 is {value:.3g}, and {usual}: less noise is in the data than was given; {look}.")
    if outside > FAR:
        doubts.append(
            f"{100 * outside:.0f} % of the values lay far outside [-1, 1] and were cut; {look}, or change the solver's "
            "fields or steps."
        )
    return doubts
