"""Posterior problems whose answer is known: prior, measurement, and exact samples of what a sampler should return."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..counts import is_whole
from ..noise import GaussianNoise
from ..operators import Matrix, Shape
from ..priors import GaussianMixture, LinearDecoder, LinearFlow, Prior
from ..problem import Problem
from ..rng import derive_seed
from ..times import TIMES, karras

__all__ = ["EXACT", "PRIOR", "Case", "Row", "Suite", "case_of", "random_operator", "wide_grid"]

EXACT, PRIOR = "exact samples", "prior samples"  # the floor, and what ignoring the data gives
IMAGE_STD = 0.5  # standard deviation per entry for which the samplers' default hyperparameters are made


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement, what a sampler is given, and the exact posterior.

    Arguments:
        suite: name of the suite.
        setting: what is varied inside the suite, such as "dy=4".
        index: number of the problem in its setting.
        problem: linear operator, Gaussian noise and y (1, *data_shape), as a sampler sees them.
        prior: the exact prior, as a sampler sees it.
        mixture: the prior of its latents, which are the pictures unless the prior has a decoder.
        truth: the picture behind the measurement (1, C, H, W).
        unit: one unit of the sampler's pictures in the units of the literature.
    """

    suite: str
    setting: str
    index: int
    problem: Problem
    prior: Prior
    mixture: GaussianMixture
    truth: Tensor
    unit: float = 1.0

    @cached_property
    def posterior(self) -> GaussianMixture:
        """p(z | y) of the latents."""
        return self.posterior_of(self.problem.y)

    def posterior_of(self, y: Tensor) -> GaussianMixture:
        """p(z | y) of the latents for another measurement (1, *data_shape) of the same kind."""
        matrix, offset = self._seen
        shape = self.mixture.means.shape[1:]
        operator = Matrix((shape[0], shape[1], shape[2]), matrix=matrix)
        return self.mixture.posterior(operator, float(self.problem.std[0]), (y - offset).reshape(1, -1))

    @cached_property
    def _seen(self) -> tuple[Tensor, Tensor]:
        """A D as a matrix on latents, and A D(0)."""
        zero = torch.zeros_like(self.mixture.means[:1])
        basis = torch.eye(zero.numel(), dtype=zero.dtype).reshape(-1, *zero.shape[1:])
        offset = self.problem.operator(self.prior.decode(zero))
        return (self.problem.operator(self.prior.decode(basis)) - offset).flatten(1).T, offset

    def exact(self, n: int, seed: int) -> Tensor:
        """Exact posterior samples (n, C, H, W): what no sampler can be better than."""
        return self._draw(self.posterior, n, derive_seed(seed, self.key, "exact"))

    def ignorant(self, n: int, seed: int) -> Tensor:
        """Prior samples (n, C, H, W): what is left when the data are ignored."""
        return self._draw(self.mixture, n, derive_seed(seed, self.key, "prior"))

    def _draw(self, mixture: GaussianMixture, n: int, seed: int) -> Tensor:
        return self.prior.decode(mixture.sample(n, torch.Generator().manual_seed(seed)))

    @property
    def key(self) -> str:
        """Names the problem."""
        return f"{self.suite}/{self.setting}/{self.index}"

    @cached_property
    def mean(self) -> Tensor:
        """E[x | y], flat (d,)."""
        return self.prior.decode(self.posterior.mean[None]).flatten()

    @cached_property
    def covariance(self) -> Tensor:
        """Cov[x | y] (d, d)."""
        covariance = self.posterior.covariance
        if isinstance(self.prior, LinearDecoder):
            return self.prior.matrix @ covariance @ self.prior.matrix.T
        return covariance

    def components(self, x: Tensor) -> Tensor:
        """How likely a picture (n, C, H, W) comes from each component of the prior (n, K), given the picture."""
        return self.mixture.log_components(self.prior.encode(x)).softmax(dim=1)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table: exact samples, prior samples, or a solver with its settings.

    Arguments:
        spec: "exact samples", "prior samples" or a solver spec such as "dps(step_size=1)".
        calls: network calls per sample at most; the number of steps follows.
        steps: number of steps, instead of `calls`.
        times: "suite" for the grid of the suite, "own" for that of the solver, or a name of TIMES.
        particles: samples that see each other in one run of an interacting solver; all of them if None.
        one_each: keep one random particle of every such run instead of all.

    Raises:
        ValueError: a number is out of range, or there is no such grid.
    """

    spec: str
    calls: int = 100
    steps: int | None = None
    times: str = "suite"
    particles: int | None = None
    one_each: bool = False

    def __post_init__(self) -> None:
        for name, value in (("calls", self.calls), ("steps", self.steps), ("particles", self.particles)):
            if value is not None and (not is_whole(value) or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
        if self.times not in ("suite", "own", *TIMES):
            raise ValueError(f"Unknown time grid {self.times!r}; choose suite, own, {', '.join(TIMES)}.")

    @property
    def label(self) -> str:
        """What the table calls it."""
        extra = [] if self.times == "suite" else [f"{self.times} times"]
        extra += [f"{self.particles} particles"] if self.particles else []
        extra += ["one of each run"] if self.one_each else []
        return f"{self.spec}, {', '.join(extra)}" if extra else self.spec


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A family of problems with the numbers to be printed for it.

    Arguments:
        name: of the suite.
        about: one sentence.
        settings: what is varied.
        make: the problem with a given setting and index.
        grid: ratios sigma/alpha of n steps in the units of the literature, decreasing to 0.
        problems: number of problems per setting in a full run.
        samples: samples per problem.
        reference: exact samples that they are compared with.
        columns: metrics to print.
        rows: what to run by default; None for every solver.
        settings_of: the line behind the bare name of a solver whose defaults are for pictures, chosen on problems
            1000 and up, which no table shows; asymptotically exact ones get the calls that they need.
        calls: network calls per sample by default.
    """

    name: str
    about: str
    settings: tuple[str, ...]
    make: Callable[[str, int], Case]
    grid: Callable[[int], Tensor]
    problems: int = 50
    samples: int = 1000
    reference: int = 1000
    columns: tuple[str, ...]
    rows: tuple[Row, ...] | None = None
    settings_of: Mapping[str, Row] = field(default_factory=dict)
    calls: int = 100

    def case(self, setting: str, index: int) -> Case:
        """A problem.

        Raises:
            ValueError: there is no such setting.
        """
        if setting not in self.settings:
            raise ValueError(f"{self.name} has no setting {setting!r}; choose of {', '.join(self.settings)}.")
        return self.make(setting, index)

    def times(self, case: Case, steps: int) -> Tensor:
        """The grid as times of the case's prior."""
        return case.prior.schedule.time(self.grid(steps) / case.unit).clamp(0, 1)


def case_of(
    *,
    suite: str,
    setting: str,
    index: int,
    mixture: GaussianMixture,
    matrix: Tensor,
    sigma: float,
    y: Tensor,
    truth: Tensor,
    rescale: bool = True,
) -> Case:
    """The case y = A x + sigma n with a mixture prior of x.

    Arguments:
        suite: name of the suite.
        setting: of the suite.
        index: number of the problem.
        mixture: prior of x (1, 1, d), in the units of the literature.
        matrix: A (m, d).
        sigma: standard deviation of the noise.
        y: measurement (m,).
        truth: x (d,).
        rescale: give the samplers x in units in which its entries have a standard deviation of 0.5, as those of
            photographs, and A divided by its norm.  The posterior is the same, and the hyperparameters that the
            samplers have for pictures make sense.
    """
    shape = mixture.means.shape[1:]
    image_shape: Shape = (shape[0], shape[1], shape[2])
    unit, norm = 1.0, 1.0
    if rescale:
        unit = float(mixture.covariance.diagonal().mean().sqrt() / IMAGE_STD)
        norm = float(torch.linalg.matrix_norm(matrix, 2))
    prior = GaussianMixture(mixture.weights, mixture.means / unit, mixture.covariances / unit**2, mixture.schedule)
    operator = Matrix(image_shape, matrix=matrix / norm)
    return Case(
        suite=suite,
        setting=setting,
        index=index,
        problem=Problem(operator, GaussianNoise(sigma / (norm * unit)), y.reshape(1, -1) / (norm * unit)),
        prior=prior,
        mixture=prior,
        truth=truth.reshape(1, *image_shape) / unit,
        unit=unit,
    )


def random_operator(m: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A (m, d) with Gaussian singular vectors and sorted uniform singular values, and those (m,), in float32."""
    u, _, v = torch.linalg.svd(torch.randn(m, d, generator=generator), full_matrices=False)
    values = torch.rand(m, generator=generator).sort(descending=True).values
    return u @ torch.diag(values) @ v, values


def wide_grid(n: int, scale: float = 1.0, end: float = 0.05) -> Tensor:
    """Ratios of n steps from 157 (the end of MCG-diff's path) to `end`, in units of `scale`, on EDM's grid, then 0.

    With the default end and the exact posterior score in place of a sampler, 20 ancestral steps on it are within 1.6
    times of what exact samples give on gmm25-8 with one measured number, and 100 steps cannot be told from them.

    Arguments:
        n: number of steps.
        scale: standard deviation of one mode of the prior.
        end: the last ratio before 0.
    """
    return scale * LinearFlow().ratio(karras(n, ratio_max=157.0, ratio_min=end))
