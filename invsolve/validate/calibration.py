"""Is a sampler right on average?  Truths drawn from the prior must look like one more sample of their posterior.

SBC (Talts et al., arXiv 1804.06788): the rank of f(x) among f of L samples is uniform on 0 .. L, for any f of a number.
TARP (Lemos et al., arXiv 2302.03026): the share of samples nearer to a reference point than the truth is uniform on
[0, 1], for any reference point that does not know the truth; one that depends on y can also find a sampler that ignores
y, if y is about much of the picture: else the ranks of the likelihood find it.

The tests check both against the sbi package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..problem import Problem, simulate
from ..rng import ImageRng, derive_seed
from .problems import EXACT, PRIOR, Case, Row, Suite
from .runner import sample_each

__all__ = ["Calibration", "calibrate", "coverage_curve", "ranks", "tarp_values", "uniformity"]

FUNCTIONALS: dict[str, Callable[[Tensor, Problem], Tensor]] = {  # of pictures (n, C, H, W) and their problems: (n,)
    "first entry": lambda x, _: x.flatten(1)[:, 0],
    "last entry": lambda x, _: x.flatten(1)[:, -1],
    "mean": lambda x, _: x.flatten(1).mean(dim=1),
    "norm": lambda x, _: x.flatten(1).norm(dim=1),
    "likelihood": lambda x, problem: -problem.nll(x),
}


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What calibration found.

    Arguments:
        row: the sampler.
        simulations: number of truths.
        samples: posterior samples per truth.
        ranks: of the truth among the samples, by name of the functional, (simulations,) in 0 .. samples.
        p_values: of uniform ranks and, as "TARP", of uniform coverage values.
        level, coverage: credibility levels and the share of truths in their regions, the TARP curve.
    """

    row: str
    simulations: int
    samples: int
    ranks: dict[str, Tensor]
    p_values: dict[str, float]
    level: Tensor
    coverage: Tensor

    @property
    def area(self) -> float:
        """The area between curve and diagonal at levels above 1/2; negative: over-confident, positive: too wide."""
        upper = self.level >= 0.5
        return float((self.coverage - self.level)[upper].sum() * (self.level[1] - self.level[0]))


def ranks(truth: Tensor, samples: Tensor) -> Tensor:
    """How many of the values (N, L) are below the true one (N,), as whole numbers 0 .. L."""
    return (samples < truth[:, None]).sum(dim=1)


def tarp_values(truth: Tensor, samples: Tensor, reference: Tensor) -> Tensor:
    """The share of samples (N, L, d) nearer to the reference (N, d) than the truth (N, d), (N,)."""
    distance = (samples - reference[:, None]).norm(dim=-1)
    return (distance < (truth - reference).norm(dim=-1, keepdim=True)).double().mean(dim=1)


def coverage_curve(values: Tensor, bins: int = 20) -> tuple[Tensor, Tensor]:
    """Levels 0, 1 / bins, ..., 1 and the share of TARP values below each: the diagonal for a calibrated sampler."""
    level = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    return level, (values[:, None] <= level).double().mean(dim=0)


def uniformity(values: Tensor) -> float:
    """The p-value of a Kolmogorov-Smirnov test that numbers in [0, 1] are uniform."""
    from scipy.stats import kstest

    return float(kstest(values.numpy(), "uniform").pvalue)


def calibrate(
    row: Row, suite: Suite, case: Case, *, simulations: int = 200, samples: int = 100, seed: int = 0
) -> Calibration:
    """Calibrate one row on fresh truths of the case's prior, seen through the case's operator.

    Arguments:
        row: a solver, or "exact samples" or "prior samples".
        suite: the suite of the case, for its grid.
        case: gives prior, operator and noise.
        simulations: number of truths and measurements.
        samples: posterior samples of each.
        seed: of truths, noise and samples.

    Raises:
        ValueError: fewer than 20 simulations or samples.
    """
    if simulations < 20 or samples < 20:
        raise ValueError(f"Calibration needs at least 20 simulations and samples, got {simulations} and {samples}.")
    operator, noise = case.problem.operator, case.problem.noise
    truth = case.ignorant(simulations, derive_seed(seed, "truth"))
    rng = ImageRng(derive_seed(seed, "noise", k) for k in range(simulations))
    problem = Problem(operator, noise, simulate(operator, noise, truth, rng))
    x = _draw(row, suite, case, problem, samples, seed)  # (N, L, C, H, W)
    index = torch.arange(simulations)
    each = problem.rows(index.repeat_interleave(samples))
    found = {
        name: ranks(fn(truth, problem), fn(x.flatten(0, 1), each).reshape(simulations, samples))
        for name, fn in FUNCTIONALS.items()
    }
    # Ranks become uniform on [0, 1] by a uniform number within each of the L + 1 equally likely cells.
    jitter = torch.rand(simulations, generator=torch.Generator().manual_seed(derive_seed(seed, "jitter"))).double()
    p_values = {name: uniformity((rank + jitter) / (samples + 1)) for name, rank in found.items()}
    shuffled = case.ignorant(simulations, derive_seed(seed, "reference"))
    reference = shuffled + _back(problem, shuffled)  # an arbitrary point, moved by what y says of it
    values = tarp_values(truth.flatten(1), x.flatten(2), reference.flatten(1))
    p_values["TARP"] = uniformity((values * samples + jitter) / (samples + 1))
    level, coverage = coverage_curve(values)
    return Calibration(
        row=row.label,
        simulations=simulations,
        samples=samples,
        ranks=found,
        p_values=p_values,
        level=level,
        coverage=coverage,
    )


def _back(problem: Problem, x: Tensor) -> Tensor:
    """A step from x towards the data."""
    return problem.linear.adjoint(problem.y - problem.operator(x))


def _draw(row: Row, suite: Suite, case: Case, problem: Problem, samples: int, seed: int) -> Tensor:
    """Samples (N, L, C, H, W) of every measurement."""
    if row.spec == PRIOR:
        x = case.ignorant(len(problem.y) * samples, derive_seed(seed, "row"))
        return x.reshape(len(problem.y), samples, *x.shape[1:])
    if row.spec == EXACT:
        generator = torch.Generator().manual_seed(derive_seed(seed, "row"))
        draws = [case.posterior_of(y[None]).sample(samples, generator) for y in problem.y]
        return torch.stack([case.prior.decode(z) for z in draws])
    return sample_each(row, suite, case, problem, samples, derive_seed(seed, "row"), seed)[0]
