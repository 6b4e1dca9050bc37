"""What a restoration takes where nothing is said: the solver, its steps, the noise of the data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from itertools import groupby
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .noise import GaussianNoise, Noise, NoNoise
from .operators import LinearOperator, Operator, operator_fields
from .problem import Problem
from .spec import parse_level

__all__ = ["default_solver", "default_steps", "estimate_sigma", "problems_of", "sigma_of", "with_file_tables"]

LEAST_NOISE = 1e-5  # the rounding of 16 bits


def default_solver(operator: Operator) -> str:
    """The solver where none is named: DDRM for denoising, DiffPIR for other linear operators, else DDNM."""
    if operator.picture_error == 0:
        return "ddrm"
    return "diffpir" if isinstance(operator, LinearOperator) else "ddnm"


def default_steps(operator: Operator, samples: int, times: str | None = None) -> int | None:
    """Its steps where none are named: one for one denoised picture, which then is the posterior mean; else its own.

    One step is that from the noise of y only, so not on a grid that starts elsewhere.
    """
    from_data = times in (None, "from_data")
    return 1 if operator.picture_error == 0 and samples == 1 and from_data else None


def with_file_tables(name: str, fields: dict[str, Any], path: Path, file_format: str) -> dict[str, Any]:
    """The fields of an operator; one that can read how a JPEG file was made reads it, if nothing else says so."""
    known = operator_fields(name)
    if "tables_from" in known and file_format == "JPEG" and not fields.keys() & {"quality", "tables_from"}:
        return fields | {"tables_from": str(path)}
    return fields


def problems_of(sigma: object, operator: Operator, y: Tensor) -> tuple[Problem, ...]:
    """The problems that a `sigma` argument makes of the data (B, *data_shape).

    One problem holds all of them, unless some have noise and others none: those are held in another way, so that
    consecutive measurements of a kind make a problem.

    Arguments:
        sigma: a number in [-1, 1] units, a text such as "5/255", "auto" to estimate it for each measurement, one number
            for each measurement, or a noise model.
        operator: what made the data.
        y: the data.

    Raises:
        ValueError: no noise level, or "auto" where the operator hides a part of the picture.
    """
    if isinstance(sigma, Noise):
        return (Problem(operator, sigma, y),)
    if isinstance(sigma, str) and sigma.strip() == "auto":
        if operator.data_mask is not None and not operator.data_mask.all():
            raise ValueError("The noise of a picture with hidden pixels cannot be estimated; give sigma as a number.")
        return _pieces([estimate_sigma(row) for row in y.split(1)], operator, y)
    if isinstance(sigma, Tensor | np.ndarray | Sequence) and not isinstance(sigma, str):
        values = sigma if isinstance(sigma, Sequence) else sigma.tolist()
        values = values if isinstance(values, Sequence) else [values]
        if len(values) not in (1, len(y)):
            raise ValueError(f"sigma has {len(values)} numbers for {len(y)} measurements; give one for each, or one.")
        return _pieces([_level(value) for value in values] * (len(y) // len(values)), operator, y)
    return _pieces([_level(sigma)] * len(y), operator, y)


def sigma_of(problems: Sequence[Problem]) -> float | str | list[float]:
    """The noise level for a record: a number, one for each measurement, or the text of another noise model."""
    levels: list[float] = []
    for problem in problems:
        noise = problem.noise
        if not isinstance(noise, GaussianNoise | NoNoise):
            return str(noise)
        sigma = noise.sigma if isinstance(noise, GaussianNoise) else 0.0
        levels += sigma if isinstance(sigma, tuple) else [sigma] * len(problem.y)
    return levels[0] if len(set(levels)) == 1 else levels


def estimate_sigma(y: Tensor) -> float:
    """Standard deviation of white Gaussian noise in pictures (B, C, H, W), in their own units (scikit-image).

    It is the mean over channels and pictures; those without any detail count as free of noise.  A mean below what 16
    bits can hold is 0: so little comes from pictures that are flat for the most part.
    """
    from skimage.restoration import estimate_sigma as estimate

    planes = y.detach().cpu().double().flatten(0, 1).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, of the median of no detail at all
        sigmas = [float(estimate(plane)) for plane in planes]
    mean = sum(0.0 if math.isnan(sigma) else sigma for sigma in sigmas) / len(sigmas)
    return mean if mean > LEAST_NOISE else 0.0


def _level(sigma: object) -> float:
    if not isinstance(sigma, Real | str) or isinstance(sigma, bool):
        raise ValueError(
            f'sigma must be a number in [-1, 1] units, a text such as "5/255", "auto" or a Noise object, got {sigma!r}.'
        )
    return parse_level(sigma if isinstance(sigma, str) else str(float(sigma)), "sigma", ", or auto")


def _pieces(levels: Sequence[float], operator: Operator, y: Tensor) -> tuple[Problem, ...]:
    """Consecutive measurements with noise, or without, as one problem."""
    problems: list[Problem] = []
    done = 0
    for noisy, group in groupby(levels, key=lambda level: level > 0):
        sigmas = tuple(group)
        rows = y[done : done + len(sigmas)]
        sigma = sigmas[0] if len(set(sigmas)) == 1 else sigmas
        problems.append(Problem(operator, GaussianNoise(sigma) if noisy else NoNoise(), rows))
        done += len(sigmas)
    return tuple(problems)
