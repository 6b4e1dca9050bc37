"""The inverse problem: y = A(x) + noise, and how likely a picture is given y."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .operators.base import LinearOperator, Operator, PinvOperator, check_shape
from .operators.identity import Identity
from .operators.jpeg import JPEG
from .rng import ImageRng

LOWEST = 1e-8  # of a noise level: below the rounding of pictures in float32
HIGHEST = 1e6  # of a noise level or photon count: far beyond sense, and its square still is a float32
SIGNAL_STD = 0.5  # standard deviation of a photograph in [-1, 1] units
MIN_RATE = 0.1  # photons; the likelihood is continued as a straight line below

__all__ = ["GaussianNoise", "NoNoise", "Noise", "PoissonNoise", "Problem", "first_guess", "simulate"]


class Noise(abc.ABC):
    """What is added to A(x)."""

    @abc.abstractmethod
    def sample(self, clean: Tensor, rng: ImageRng) -> Tensor:
        """A noisy measurement of the noiseless data (B, *data_shape)."""

    @abc.abstractmethod
    def std(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """Standard deviation per image (B,), in units of the [-1, 1] data; the root mean square where it varies.

        Arguments:
            y: measurements (B, *data_shape).
            mask: 1 where an entry was measured, broadcasting over y; None if all were.
        """

    def level(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """How closely the data are to be held, per image (B,): the standard deviation, where there is noise."""
        return self.std(y, mask)

    @abc.abstractmethod
    def nll(self, y: Tensor, prediction: Tensor) -> Tensor:
        """-log p(y | A(x)) per entry, up to a constant, (B, *data_shape)."""


@dataclass(frozen=True)
class GaussianNoise(Noise):
    """y = A(x) + sigma * n, n ~ N(0, I).

    Arguments:
        sigma: standard deviation in units of the [-1, 1] image: twice the value in [0, 1] units, and
            2/255 times the value in grey levels.
    """

    sigma: float

    def __post_init__(self) -> None:
        if not LOWEST <= self.sigma <= HIGHEST:
            raise ValueError(
                f"sigma must be a number from {LOWEST:g} to {HIGHEST:g} in units of the [-1, 1] image, got "
                f"{self.sigma!r}; use NoNoise() (or --sigma 0) for a noiseless measurement."
            )

    def sample(self, clean: Tensor, rng: ImageRng) -> Tensor:
        return clean + self.sigma * rng.randn_like(clean)

    def std(self, y: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return y.new_full((len(y),), self.sigma)

    def nll(self, y: Tensor, prediction: Tensor) -> Tensor:
        return (y - prediction).square() / (2 * self.sigma**2)


@dataclass(frozen=True)
class PoissonNoise(Noise):
    """y = 2 k / peak - 1 with k ~ Poisson(peak * (A(x) + 1) / 2): photon counts, scaled back to [-1, 1].

    Arguments:
        peak: expected count where the picture is white (+1).

    Solvers that need one noise level take its root mean square; FlowDPS with data_term="nll" uses the exact likelihood.
    """

    peak: float

    def __post_init__(self) -> None:
        if not 1 / HIGHEST <= self.peak <= HIGHEST:
            raise ValueError(
                f"peak must be a photon count from {1 / HIGHEST:g} to {HIGHEST:g}, got {self.peak!r}; typical values "
                "are 10 to 1000."
            )

    def sample(self, clean: Tensor, rng: ImageRng) -> Tensor:
        counts = rng.poisson(self.peak * ((clean.double() + 1) / 2).clamp_min(0))
        return (2 * counts / self.peak - 1).to(clean.dtype)

    def std(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        weight = torch.ones_like(y) if mask is None else mask.to(y).expand_as(y)
        counts = weight * (self.peak * (y + 1) / 2).clamp_min(0)
        mean_count = counts.flatten(1).sum(dim=1) / weight.flatten(1).sum(dim=1)
        return 2 * mean_count.clamp_min(0.25).sqrt() / self.peak

    def nll(self, y: Tensor, prediction: Tensor) -> Tensor:
        counts = self.peak * (y + 1) / 2
        rate = self.peak * (prediction + 1) / 2
        floor = rate.clamp_min(MIN_RATE)
        below = (1 - counts / MIN_RATE) * (rate - floor)  # the tangent at the floor goes on: a force back to light
        return floor - counts * floor.log() + below


@dataclass(frozen=True)
class NoNoise(Noise):
    """y = A(x).  Its `nll` is that of a Gaussian with the tolerance as standard deviation.

    Arguments:
        tolerance: how closely noiseless data is held, in units of the [-1, 1] image; the default is half the
            rounding step of an 8-bit picture.
    """

    tolerance: float = 1 / 255

    def __post_init__(self) -> None:
        if not 0 < self.tolerance <= HIGHEST:
            raise ValueError(
                f"tolerance must be a positive number up to {HIGHEST:g} in units of the [-1, 1] image, got "
                f"{self.tolerance!r}; the default is {1 / 255:.4f}."
            )

    def sample(self, clean: Tensor, rng: ImageRng) -> Tensor:  # noqa: ARG002
        return clean

    def std(self, y: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return y.new_zeros(len(y))

    def level(self, y: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return y.new_full((len(y),), self.tolerance)

    def nll(self, y: Tensor, prediction: Tensor) -> Tensor:
        return (y - prediction).square() / (2 * self.tolerance**2)


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
        if isinstance(self.operator, JPEG):
            return math.hypot(self.operator.typical_error, float(self.std.max()))
        std = float(self.std.max())
        return std if isinstance(self.operator, Identity) and std > 0 else math.inf

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
        return Problem(self.operator, self.noise, self.y[index], particles)


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
