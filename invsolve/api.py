"""`restore`: the whole toolbox in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .images import to_tensor
from .operators import OPERATORS, Operator, Shape, build_operator
from .operators.sizes import image_shape_of
from .priors import GreyPrior, Prior, load_prior
from .problem import GaussianNoise, Noise, NoNoise, Problem
from .result import Result
from .solve import Observer, solve
from .solver import Solver
from .solvers import build_solver
from .spec import parse_spec
from .times import make_times

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

__all__ = ["estimate_sigma", "restore"]


def restore(
    y: Tensor | np.ndarray | Image.Image | str | Path,
    *,
    operator: Operator | str | Mapping[str, Any],
    prior: Prior | str = "natural",
    solver: Solver[Any] | str | Mapping[str, Any] = "diffpir",
    sigma: float | str | Noise = 0.0,
    samples: int = 1,
    steps: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    batch_size: int = 8,
    observers: Sequence[Observer] = (),
) -> Result:
    """Restore a degraded picture: samples of p(x | y) under y = A(x) + noise and the prior.

    Arguments:
        y: the measurement: a path, a PIL image, an integer array (H, W[, C]), or a float tensor or array in [-1, 1]
            with shape (C, H, W) or (B, C, H, W).
        operator: A, or its name with fields such as "blur(sigma=2)"; see `invsolve list operators`.
        prior: a prior, the name of one, or the folder of a diffusers model.
        solver: a solver, or its name with fields such as "flowdps(step_size=10)".
        sigma: standard deviation of Gaussian noise in units of the [-1, 1] picture (0: none), "auto" to estimate it,
            or a Noise object.
        samples: posterior samples per measurement.
        steps: number of time steps; the solver's default if not given.
        seed: the same seed gives the same pictures.
        device: where to compute.
        dtype: of the network, for example torch.bfloat16; the solver's state is float32, or float64 if this is.
        batch_size: most pictures that go through the network at once.
        observers: called after every step.

    Returns:
        Result: samples (B, S, C, H, W) in [-1, 1], their mean and std, a status for each, statistics.

    Raises:
        ValueError: an unknown name or field, a shape or value that does not fit; the message says what to do.
        TypeError: the operator lacks what the solver needs.
    """
    data = to_tensor(y).to(device, torch.float64 if dtype == torch.float64 else torch.float32)
    if isinstance(operator, str | Mapping):
        name, fields = parse_spec(operator, OPERATORS, "operator")
        operator = build_operator(name, image_shape_of(name, _shape(data), **fields), **fields)
    operator = operator.to(device)
    if operator.data_mask is not None:
        data = data * operator.data_mask.to(data)  # what a picture holds inside a hole is not a measurement
    solver = build_solver(solver) if isinstance(solver, str | Mapping) else solver
    prior = (load_prior(prior, dtype) if isinstance(prior, str) else prior).to(device)
    if prior.channels == 3 and operator.image_shape[0] == 1:
        prior = GreyPrior(prior)
    noise = make_noise(sigma, data)
    grid = make_times(solver.times, solver.steps if steps is None else steps, prior.schedule)
    result = solve(
        Problem(operator, noise, data),
        prior,
        solver,
        grid,
        samples=samples,
        seed=seed,
        batch_size=batch_size,
        observers=observers,
    )
    return Result(result.samples.clamp(-1, 1), result.status, result.chi2, result.stats, result.record)


def _shape(y: Tensor) -> Shape:
    """(C, H, W) of a batch of pictures."""
    _, channels, height, width = y.shape
    return channels, height, width


def make_noise(sigma: float | str | Noise, y: Tensor) -> Noise:
    """The noise model that a `sigma` argument stands for."""
    if isinstance(sigma, Noise):
        return sigma
    if sigma == "auto":
        sigma = estimate_sigma(y)
    elif isinstance(sigma, str):
        raise ValueError(f'sigma must be a number in [-1, 1] units or "auto", got {sigma!r}.')
    if sigma < 0:
        raise ValueError(f"sigma must not be negative, got {sigma}; use 0 for a noiseless measurement.")
    return GaussianNoise(float(sigma)) if sigma > 0 else NoNoise()


def estimate_sigma(y: Tensor) -> float:
    """Standard deviation of white Gaussian noise in pictures (B, C, H, W), in their own units (scikit-image)."""
    import numpy as np
    from skimage.restoration import estimate_sigma as estimate

    pictures = y.detach().cpu().double().numpy()
    return float(np.mean([estimate(picture, channel_axis=0, average_sigmas=True) for picture in pictures]))
