"""The inverse problem: y = A(x) + noise, and how likely a picture is given y."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .noise import Noise
from .operators.base import LinearOperator, Operator, PinvOperator, check_shape
from .rng import ImageRng

SIGNAL_STD = 0.5  # standard deviation of a photograph in [-1, 1] units

__all__ = ["Problem", "first_guess", "simulate"]


@dataclass(frozen=True)
class Problem:
    """A measurement with what made it.

    Arguments:
        operator: A.
        noise: what was added.
        y: measurements (B, *data_shape).
        particles: how many consecutive rows are samples of the same measurement that may see each other.
    """

    operator: Operator
    noise: Noise
    y: Tensor
    particles: int = 1

    def __post_init__(self) -> None:
        name = type(self.operator).__name__
        check_shape(name, "a measurement", self.y, self.operator.data_shape, "build the operator for that picture size")
        if not self.y.isfinite().all():
            count = int((~self.y.isfinite()).sum())
            raise ValueError(f"The measurement has {count} non-finite values (NaN or inf); replace or mask them first.")

    @property
    def linear(self) -> LinearOperator:
        """The operator of a solver that declared `requires = LinearOperator`."""
        assert isinstance(self.operator, LinearOperator)
        return self.operator

    @property
    def std(self) -> Tensor:
        """Standard deviation of the noise per image (B,); zero without noise."""
        return self.noise.std(self.y, self.operator.data_mask)

    @property
    def level(self) -> Tensor:
        """How closely the data are to be held per image (B,): the noise, or the tolerance of noiseless data."""
        return self.noise.level(self.y, self.operator.data_mask)

    @property
    def radius(self) -> Tensor:
        """The misfit |A(x) - y| that the noise, or the tolerance of noiseless data, leaves per image (B,)."""
        return self.level * self.n_data**0.5

    @property
    def own_ratio(self) -> float:
        """The sigma/alpha at which y itself is about a point of the path; infinite unless y is a picture.

        Exactly so for A = I, where it is the noise of y; for JPEG the error of the compression stands for it.
        """
        error = self.operator.picture_error
        ratio = math.inf if error is None else math.hypot(error, float(self.std.max()))
        return ratio if ratio > 0 else math.inf

    @property
    def n_data(self) -> float:
        """Number of measured values per image: hidden pixels do not count."""
        mask = self.operator.data_mask
        size = math.prod(self.y.shape[1:])
        return size if mask is None else float(mask.expand(self.y.shape[1:]).sum())

    def residual(self, x: Tensor) -> Tensor:
        """A(x) - y, (B, *data_shape)."""
        return self.operator(x) - self.y

    def nll(self, x: Tensor) -> Tensor:
        """-log p(y | x) up to a constant, (B,)."""
        terms = self.noise.nll(self.y, self.operator(x))
        mask = self.operator.data_mask
        return (terms if mask is None else terms * mask.to(terms)).flatten(1).sum(dim=1)

    def chi2(self, x: Tensor) -> Tensor:
        """|A(x) - y|^2 / (sigma^2 m) per image (B,): about 1 if the picture explains the data, NaN without noise."""
        std = self.std
        misfit = self.residual(x).square().flatten(1).sum(dim=1) / self.n_data
        return torch.where(std > 0, misfit / std.square().clamp_min(1e-30), torch.nan)

    def rows(self, index: Tensor, particles: int = 1) -> Problem:
        """The problem of the given rows, repeated as often as they are named."""
        return Problem(self.operator, self.noise.rows(index), self.y[index], particles)


def simulate(operator: Operator, noise: Noise, x: Tensor, rng: ImageRng) -> Tensor:
    """A noisy measurement of the pictures x (B, *image_shape); hidden entries stay zero."""
    y = noise.sample(operator(x), rng)
    return y if operator.data_mask is None else y * operator.data_mask.to(y)


def first_guess(problem: Problem) -> Tensor:
    """A picture made of the data alone (B, *image_shape): A^+ y, or zero where A has no pseudo-inverse.

    With noise, a linear operator's data are weighed against the spread of photographs, since A^+ would amplify the
    noise without bound where A keeps little: argmin_x |A x - y|^2 + (sigma / 0.5)^2 |x|^2.
    """
    operator, y, std = problem.operator, problem.y, problem.std
    zero = y.new_zeros(len(y), *operator.image_shape)
    if isinstance(operator, LinearOperator) and bool((std > 0).all()):
        return operator.prox(zero, y, (std / SIGNAL_STD).square())
    return operator.pinv(y) if isinstance(operator, PinvOperator) else zero
