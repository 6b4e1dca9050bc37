"""Noise models: what is added to A(x), and how likely it makes the data."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .rng import ImageRng

__all__ = ["NOISES", "GaussianNoise", "NoNoise", "Noise", "PoissonNoise"]

LOWEST = 1e-8  # of a noise level: below the rounding of pictures in float32
HIGHEST = 1e6  # of a noise level or photon count: far beyond sense, and its square still is a float32
MIN_RATE = 0.1  # photons; the likelihood is continued as a straight line below


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

    def rows(self, index: Tensor) -> Noise:  # noqa: ARG002
        """The noise of the measurements with these numbers; the same for all, unless it has a level for each."""
        return self


@dataclass(frozen=True)
class GaussianNoise(Noise):
    """y = A(x) + sigma * n, n ~ N(0, I).

    Arguments:
        sigma: standard deviation in units of the [-1, 1] image: twice the value in [0, 1] units, and
            2/255 times the value in grey levels; or one for each measurement.
    """

    sigma: float | tuple[float, ...]

    def __post_init__(self) -> None:
        levels = self.sigma if isinstance(self.sigma, tuple) else (self.sigma,)
        wrong = [level for level in levels if not LOWEST <= level <= HIGHEST]
        if wrong or not levels:
            raise ValueError(
                f"sigma must be a number from {LOWEST:g} to {HIGHEST:g} in units of the [-1, 1] image, got "
                f"{wrong[0] if wrong else levels!r}; use NoNoise() (or --sigma 0) for a noiseless measurement."
            )

    def sample(self, clean: Tensor, rng: ImageRng) -> Tensor:
        return clean + self._level(clean) * rng.randn_like(clean)

    def std(self, y: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        level = self._level(y)
        return level.flatten() if isinstance(level, Tensor) else y.new_full((len(y),), level)

    def nll(self, y: Tensor, prediction: Tensor) -> Tensor:
        return (y - prediction).square() / (2 * self._level(y) ** 2)

    def rows(self, index: Tensor) -> GaussianNoise:
        if not isinstance(self.sigma, tuple):
            return self
        levels = tuple(self.sigma[i] for i in index.tolist())
        return GaussianNoise(levels[0] if len(set(levels)) == 1 else levels)

    def _level(self, y: Tensor) -> float | Tensor:
        """The standard deviation, as it multiplies data (B, *data_shape)."""
        if not isinstance(self.sigma, tuple):
            return self.sigma
        if len(self.sigma) != len(y):
            raise ValueError(f"sigma has {len(self.sigma)} numbers for {len(y)} measurements; give one for each.")
        return y.new_tensor(self.sigma).reshape(-1, *[1] * (y.ndim - 1))


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


NOISES: dict[str, Callable[..., Noise]] = {"gaussian": GaussianNoise, "poisson": PoissonNoise, "none": NoNoise}
