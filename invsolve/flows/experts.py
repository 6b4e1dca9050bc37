"""A few linear maps with shares that depend on the input: the network of a fitted flow for small latents.

Where one map is drawn, with its share as the probability, the shares fall with the squared distance of the input from a
centre of each map, measured by a matrix of its own: those of a mixture of Gaussians.  Such maps start at clusters of
the pictures, one each; from random ones, training finds some of the modes only.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..rng import ImageRng
from .clusters import clusters

__all__ = ["Experts"]

MAX_EXPERTS = 48
MAX_WEIGHTS = 2**22  # of all linear maps of a network and the metrics of their shares together
TINY = 1e-12  # variance of what does not vary at all
FLOOR = 1e-3  # of the mean variance, added to all: where the input does not vary it is not blown up


class Distances(nn.Module):
    """Log-shares b_k - |U_k h - u_k|^2 / 2 of the inputs h (B, n), up to a constant: (B, count)."""

    def __init__(self, size: int, count: int) -> None:
        super().__init__()
        self.metric = nn.Parameter(torch.eye(size).repeat(count, 1, 1))  # U (count, n, n)
        self.centre = nn.Parameter(torch.zeros(count, size))  # u
        self.bias = nn.Parameter(torch.zeros(count))  # b

    def start(self, k: int, mean: Tensor, covariance: Tensor, share: float) -> None:
        """Take for expert k the log-density of a Gaussian with a share."""
        values, vectors = torch.linalg.eigh(covariance)
        root = (vectors * values.rsqrt()) @ vectors.T
        self.metric[k], self.centre[k] = root.to(self.metric), (root @ mean).to(self.centre)
        self.bias[k] = math.log(share) - float(values.log().sum()) / 2

    def forward(self, h: Tensor) -> Tensor:
        """B rows at once."""
        difference = torch.einsum("bi,kij->bkj", h, self.metric) - self.centre
        return self.bias - difference.square().sum(dim=2) / 2


class Experts(nn.Module):
    """Linear maps of (x, c) and their shares; zero at first.

    The input is whitened, without which the directions in which pictures vary little are learned last.

    Arguments:
        size_x: entries of x.
        size_c: entries of c.
        width: of the hidden layers of the network that gives the shares where the maps are not drawn.
        drawn: one of the maps is drawn instead of their mean.
        blind: x is mere noise, which the shares do not see: the draw is all the chance that they need.
    """

    shift: Tensor
    whiten: Tensor

    def __init__(self, size_x: int, size_c: int, width: int, *, drawn: bool = False, blind: bool = False) -> None:
        super().__init__()
        size = size_x + size_c
        self.size_x, self.seen = size_x, slice(size_x if blind else 0, size)
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("whiten", torch.eye(size))
        inputs = size - self.seen.start
        self.count = min(max(MAX_WEIGHTS // (size * size_x + drawn * inputs**2), 1), MAX_EXPERTS)
        self.gates: nn.Module | None = None
        if drawn and self.count > 1:
            self.gates = Distances(inputs, self.count)
        elif self.count > 1:
            self.gates = nn.Sequential(
                nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, self.count)
            )
        self.experts = nn.Linear(size, self.count * size_x)
        nn.init.zeros_(self.experts.weight)
        nn.init.zeros_(self.experts.bias)

    def prepare(self, h: Tensor) -> None:
        """Take mean and covariance of the input from examples (n, size)."""
        h = h.double()
        covariance = h.T.cov()
        if self.seen.start:  # the noise stays out of the rest
            covariance[: self.size_x, self.size_x :] = covariance[self.size_x :, : self.size_x] = 0
        values, vectors = torch.linalg.eigh(covariance)
        self.shift.copy_(h.mean(dim=0))
        self.whiten.copy_((vectors * (values + FLOOR * values.mean()).clamp_min(TINY).rsqrt()) @ vectors.T)

    @torch.no_grad()
    def start_at_clusters(self, h: Tensor, target: Tensor, rng: ImageRng) -> None:
        """Every expert takes the part of the targets that is near one of their cluster means.

        It starts as the linear regression of those targets on the input and, where x is noise, adds from it what the
        regression leaves.

        Arguments:
            h: inputs (n, size), not whitened.
            target: x after the step (n, size_x).
            rng: of the first cluster means.
        """
        flat, cluster = self._whitened(h).double(), clusters(target, self.count, rng)
        unwhitened = torch.linalg.inv(self.whiten.double())[:, : self.size_x]  # x - its mean is h @ unwhitened
        spread = h[:, : self.size_x].double().var(dim=0).mean().clamp_min(TINY).sqrt()
        for k in range(self.count):
            own = cluster == k
            share = max(int(own.sum()), 1) / len(own)
            own |= ~own.any()  # an expert without a cluster starts in the middle of all
            a, goal = flat[own], target[own].double()
            n, middle, mean = len(a), a.mean(dim=0), goal.mean(dim=0)
            covariance = (a - middle).T @ (a - middle)
            covariance.diagonal().add_(a.shape[1])  # as many examples of the whole cloud as there are inputs
            slope = torch.linalg.solve(covariance, (a - middle).T @ (goal - mean))
            moved = unwhitened - slope
            if self.seen.start:
                rest = goal - mean - (a - middle) @ slope
                values, vectors = torch.linalg.eigh(rest.T @ rest / n)
                moved = moved - unwhitened / spread @ (vectors * values.clamp_min(0).sqrt()) @ vectors.T
            rows = slice(k * self.size_x, (k + 1) * self.size_x)
            self.experts.weight[rows] = moved.T.to(self.experts.weight)
            self.experts.bias[rows] = (self.shift[: self.size_x] - mean + middle @ slope).to(self.experts.bias)
            if isinstance(self.gates, Distances):
                self.gates.start(k, middle[self.seen], covariance[self.seen, self.seen] / (n + a.shape[1]), share)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """What every map says (B, count, size_x), and the shares (B, count)."""
        flat = self._whitened(h)
        moves = self.experts(flat).reshape(len(flat), self.count, -1)
        if self.gates is None:
            return moves, flat.new_ones(len(flat), 1)
        return moves, self.gates(flat[:, self.seen]).softmax(dim=1)

    def _whitened(self, h: Tensor) -> Tensor:
        return (h - self.shift) @ self.whiten
