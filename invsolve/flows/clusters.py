"""Gaussian clusters of pictures, at which the experts of a fitted flow start."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..rng import ImageRng

__all__ = ["clusters"]

ATTEMPTS = 3
ROUNDS = 20  # of each of the two algorithms
FLOOR, TINY = 1e-3, 1e-12  # of the whole variance, and on top: what clusters of equal rows vary at least
CHUNK = 2**14  # rows whose distances are looked at together


def clusters(x: Tensor, count: int, rng: ImageRng) -> Tensor:
    """The cluster (n,) from 0 to count - 1 of every row of x (n, d), n > 0; some may be empty.

    Means that Lloyd's algorithm finds from k-means++ (Arthur and Vassilvitskii, 2007) become Gaussians by
    classification EM (Celeux and Govaert, 1992), so that long clusters beside each other are not cut across.  Clusters
    that it leaves empty then halve the widest ones, which are two that were taken for one, and it goes on.  Of a few
    such attempts the one with the highest likelihood counts.
    """
    attempts = [_attempt(x, count, rng) for _ in range(ATTEMPTS)]
    return max(attempts, key=lambda attempt: attempt[1])[0]


def _attempt(x: Tensor, count: int, rng: ImageRng) -> tuple[Tensor, float]:
    """The clusters, and their mean log-likelihood."""
    centres = _spread_rows(x, count, rng)
    for _ in range(ROUNDS):
        own = torch.cat([torch.cdist(part, centres).argmin(dim=1) for part in x.split(CHUNK)])
        sizes = torch.bincount(own, minlength=count)[:, None]
        sums = sum(F.one_hot(a, count).to(x).T @ b for a, b in zip(own.split(CHUNK), x.split(CHUNK), strict=True))
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
    spread = float((x - centres[own]).square().mean() + FLOOR * (x - x.mean(dim=0)).square().mean()) + TINY
    own, _ = _gaussians(x, own, count, spread)
    return _gaussians(x, _halve(x, own, count), count, spread)


def _spread_rows(x: Tensor, count: int, rng: ImageRng) -> Tensor:
    """Rows of x, each drawn with the square of its distance to those before as the probability."""
    u = rng.rand((count,), dtype=torch.float64)[0].tolist()
    rows = [x[int(u[0] * len(x))]]
    nearest = torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device)
    for v in u[1:]:
        nearest = torch.minimum(nearest, (x - rows[-1]).square().sum(dim=1).double())
        total = nearest.cpu().cumsum(dim=0)  # whose order a GPU does not promise
        rows.append(x[min(int(torch.searchsorted(total, v * total[-1])), len(x) - 1)])
    return torch.stack(rows)


def _gaussians(x: Tensor, own: Tensor, count: int, spread: float) -> tuple[Tensor, float]:
    """Give every row to the cluster under whose Gaussian, with its share, it is most likely, again and again.

    With the mean of that log-likelihood.

    Arguments:
        x: rows (n, d).
        own: their clusters at first (n,).
        count: of clusters.
        spread: variance that d rows beside its own give every cluster, so that small ones stay well posed.
    """
    n, d = x.shape
    prior = d * spread * torch.eye(d, dtype=torch.float64, device=x.device)
    for _ in range(ROUNDS):
        fit = torch.full((n, count), -math.inf, dtype=x.dtype, device=x.device)
        for k, size in enumerate(torch.bincount(own, minlength=count).tolist()):
            if size:
                rows = x[own == k].double()
                mean = rows.mean(dim=0)
                root = torch.linalg.cholesky(((rows - mean).T @ (rows - mean) + prior) / (size + d)).to(x)
                z = torch.linalg.solve_triangular(root, (x - mean.to(x)).T, upper=False)
                fit[:, k] = math.log(size / n) - root.diagonal().log().sum() - z.square().sum(dim=0) / 2
        best, own = fit.max(dim=1)
    return own, float(best.mean())


def _halve(x: Tensor, own: Tensor, count: int) -> Tensor:
    """Empty clusters take one half each of those with the largest sum of squares along one axis."""
    sizes = torch.bincount(own, minlength=count)
    widest = []
    for k in (sizes > 2 * x.shape[1]).nonzero().flatten().tolist():
        rows = x[own == k].double()
        values, vectors = torch.linalg.eigh((rows - rows.mean(dim=0)).T @ (rows - rows.mean(dim=0)))
        widest.append((float(values[-1]), k, vectors[:, -1]))
    widest.sort(key=lambda entry: -entry[0])
    own = own.clone()
    for empty, (_, k, axis) in zip((sizes == 0).nonzero().flatten().tolist(), widest, strict=False):
        rows = (own == k).nonzero().flatten()
        place = x[rows].double() @ axis
        own[rows[place > place.mean()]] = empty
    return own
