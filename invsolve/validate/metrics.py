"""How far samples are from an exact posterior.  Distances come from POT; x and y are samples (n, d) and (m, d).

Every number has a floor: what exact samples of the same size give.  No number means anything without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from .problems import Case

__all__ = [
    "METRICS",
    "bures",
    "coverage",
    "directions",
    "evaluate",
    "kl",
    "ksd",
    "max_sliced_wasserstein",
    "sliced_wasserstein",
]

SLICES = 100  # random directions of the sliced distances
LEVEL = 0.9  # of the central intervals whose coverage is measured


def _pot() -> ModuleType:
    try:
        import ot
    except ImportError as error:
        raise ImportError("Distances between samples need POT; pip install 'invsolve[validate]'.") from error
    return ot


def directions(d: int, slices: int = SLICES, seed: int = 0) -> Tensor:
    """Random unit vectors (d, slices): normalised normal draws in float32, the same for all samplers."""
    draws = torch.randn(slices, d, generator=torch.Generator().manual_seed(seed)).double()
    return (draws / draws.norm(dim=1, keepdim=True)).T


def sliced_wasserstein(x: Tensor, y: Tensor, p: int, slices: int = SLICES) -> float:
    """(mean over random directions of the p-th power of the one-dimensional W_p) ** (1 / p).

    For p = 1 this is the mean W1, for p = 2 the root of the mean squared W2.
    """
    return float(_pot().sliced_wasserstein_distance(x, y, p=p, projections=directions(x.shape[1], slices).to(x)))


def max_sliced_wasserstein(x: Tensor, y: Tensor, slices: int = SLICES) -> float:
    """The largest one-dimensional W2 over random directions."""
    return float(_pot().max_sliced_wasserstein_distance(x, y, projections=directions(x.shape[1], slices).to(x)))


def bures(x: Tensor, mean: Tensor, covariance: Tensor) -> float:
    """W2 between the Gaussian with the moments of the samples and the Gaussian with the exact ones."""
    return float(_pot().gaussian.bures_wasserstein_distance(x.mean(dim=0), mean, x.T.cov(), covariance))


def kl(x: Tensor, mean: Tensor, covariance: Tensor) -> float:
    """KL divergence of the Gaussian with the moments of the samples from the exact one; infinite for few samples."""
    gap, own = x.mean(dim=0) - mean, x.T.cov()
    precision = torch.linalg.inv(covariance)
    volume = torch.linalg.slogdet(covariance).logabsdet - torch.linalg.slogdet(own).logabsdet
    return float(((precision * own).sum() + gap @ precision @ gap - len(mean) + volume) / 2)


def coverage(x: Tensor, y: Tensor, level: float = LEVEL) -> float:
    """How much of the exact posterior y lies in the central intervals of the samples x, mean over entries.

    Each entry's interval leaves out (1 - level) / 2 of the samples on either side; less than `level` means
    over-confident, more means too wide.
    """
    tail = (1 - level) / 2
    low, high = x.quantile(tail, dim=0), x.quantile(1 - tail, dim=0)
    return float(((y >= low) & (y <= high)).double().mean())


def ksd(x: Tensor, score: Tensor) -> float:
    """The score-KSD of arXiv 2602.04189: (1 / n) sqrt(sum_ij u(x_i, x_j) / d) with an inverse multiquadric kernel.

    k(x, y) = (1 + c |x - y|^2)^(-1/2), c = 1 / (median |x - y|^2 + 1), and u the Stein kernel of the score.

    Arguments:
        x: samples (n, d).
        score: gradient of log p(x | y) at them (n, d).
    """
    n, d = x.shape
    difference = x[:, None] - x  # (n, n, d)
    squared = difference.square().sum(dim=-1)
    off_diagonal = squared[~torch.eye(n, dtype=torch.bool)]
    c = 1 / (off_diagonal.median() + 1)
    base = 1 + c * squared
    slope = -c * base**-1.5  # grad_x k = slope (x - y)
    curvature = 3 * c**2 * base**-2.5
    pull = ((score[:, None] - score) * difference).sum(dim=-1)
    u = score @ score.T * base**-0.5 - pull * slope - d * slope - curvature * squared
    return float((u.sum() / d).clamp_min(0).sqrt() / n)


def _mean_error(case: Case, x: Tensor, _: Tensor) -> float:
    """Distance of the mean to the exact one, in posterior standard deviations: |m - m*| / sqrt(trace C*)."""
    return float((x.flatten(1).mean(dim=0) - case.mean).norm() / case.covariance.trace().sqrt())


def _cov_error(case: Case, x: Tensor, _: Tensor) -> float:
    """|C - C*| / |C*| in the Frobenius norm."""
    return float((x.flatten(1).T.cov() - case.covariance).norm() / case.covariance.norm())


def _mode_tv(case: Case, x: Tensor, _: Tensor) -> float:
    """Total variation between the mixture components the samples come from and the exact posterior weights."""
    return float((case.components(x).mean(dim=0) - case.posterior.weights).abs().sum() / 2)


def _ksd(case: Case, x: Tensor, _: Tensor) -> float:
    return ksd(x.flatten(1) * case.unit, case.posterior.score(x).flatten(1) / case.unit)


METRICS: dict[str, Callable[[Case, Tensor, Tensor], float]] = {  # of the case, samples and exact samples (n, C, H, W)
    "mean_error": _mean_error,
    "cov_error": _cov_error,
    "bures": lambda case, x, _: case.unit * bures(x.flatten(1), case.mean, case.covariance),
    "kl": lambda case, x, _: kl(x.flatten(1), case.mean, case.covariance),
    "sw1": lambda case, x, y: case.unit * sliced_wasserstein(x.flatten(1), y.flatten(1), 1),
    "sw2": lambda case, x, y: case.unit * sliced_wasserstein(x.flatten(1), y.flatten(1), 2),
    "max_sw2": lambda case, x, y: case.unit * max_sliced_wasserstein(x.flatten(1), y.flatten(1)),
    "mode_tv": _mode_tv,
    "coverage": lambda _, x, y: coverage(x.flatten(1), y.flatten(1)),
    "chi2": lambda case, x, _: float(case.problem.rows(torch.zeros(len(x), dtype=torch.long)).chi2(x).mean()),
    "rmse": lambda case, x, _: case.unit * float((x - case.truth).square().mean().sqrt()),
    "ksd": _ksd,
}


def evaluate(case: Case, x: Tensor, exact: Tensor, columns: tuple[str, ...]) -> dict[str, float]:
    """The named metrics of samples (n, C, H, W) against the exact posterior and exact samples of it.

    Distances and the RMSE are in the units of the literature.  Samples that are not finite are left out; with fewer
    than two left every number is NaN.
    """
    x = x[x.flatten(1).isfinite().all(dim=1)].double()
    if len(x) < 2:
        return dict.fromkeys(columns, math.nan)
    return {name: METRICS[name](case, x, exact.double()) for name in columns}
