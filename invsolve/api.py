"""`restore`: the whole toolbox in one call."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .doubts import DoubtWarning
from .noise import Noise
from .operators import Operator
from .plan import plan
from .priors import Prior
from .result import Result
from .solve import Observer
from .solver import Solver

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

__all__ = ["restore"]


def restore(
    y: Tensor | np.ndarray | Image.Image | str | Path,
    *,
    operator: Operator | str | Mapping[str, Any],
    prior: Prior | str | os.PathLike[str] = "natural",
    solver: Solver[Any] | str | Mapping[str, Any] | None = None,
    sigma: float | str | Sequence[float] | Tensor | Noise = 0.0,
    samples: int = 1,
    steps: int | None = None,
    times: str | None = None,
    seed: int | Sequence[int] = 0,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = "auto",
    batch_size: int = 8,
    checkpointing: bool = False,
    observers: Sequence[Observer] = (),
) -> Result:
    """Restore a degraded picture: samples of p(x | y) under y = A(x) + noise and the prior.

    Arguments:
        y: the measurement: a path, a PIL image, an integer array (H, W[, C]), or a float tensor or array in [-1, 1]
            with shape (C, H, W) or (B, C, H, W).
        operator: A, or its name with fields such as "blur(sigma=2)"; see `invsolve list operators`.  "jpeg" without
            a quality reads it from y if that is the path of a JPEG file.
        prior: a prior, the name of one, or the folder of a diffusers model.
        solver: a solver, or its name with fields such as "flowdps(step_size=10)"; see `default_solver` for None.
        sigma: standard deviation of Gaussian noise in units of the [-1, 1] picture (0: none), a text such as "5/255"
            for grey levels of 8 bits, "auto" to estimate it for each picture, one number for each, or a
            Noise object.
        samples: posterior samples per measurement.
        steps: number of time steps; the solver's default if not given.
        times: name of the time grid, one of TIMES; the solver's own if not given.
        seed: the same seed gives the same pictures; with one seed per picture, each is restored as it is alone.
        device: where to compute; by default where the prior or the operator is, if one was given, else the CPU.
        dtype: of the network, or its name; "auto" is bfloat16 where the processor has it, else float32 (see
            `default_dtype`).  A prior that is no name keeps its own.  The solver's state is float32, or float64.
        batch_size: most pictures that go through the network at once.
        checkpointing: gradients recompute what they need instead of storing it: less memory, more time.
        observers: called after every step.

    Returns:
        Result: samples (B, S, C, H, W) in [-1, 1], without the operator's `border`, their mean and std, a status for
            each, statistics, and the record of what was asked.  What speaks against them is in `doubts`, and is a
            DoubtWarning too.

    Raises:
        ValueError: an unknown name or field, a shape or value that does not fit; the message says what to do.
        TypeError: the operator lacks what the solver needs, or an argument is of another type.
    """
    run = plan(
        y, operator=operator, prior=prior, solver=solver, sigma=sigma, samples=samples, steps=steps, times=times,
        seed=seed, device=device, dtype=dtype, batch_size=batch_size, checkpointing=checkpointing,
    )  # fmt: skip
    result = run(observers)
    if told := list(dict.fromkeys(itertools.chain.from_iterable(result.doubts))):
        warnings.warn(" ".join(told), DoubtWarning, stacklevel=2)
    return result
