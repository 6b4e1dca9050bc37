"""The one loop that every solver runs in."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from .allocator import memory_kept
from .counts import is_whole
from .priors.base import Metered, Prior
from .priors.precision import precise
from .problem import Problem
from .result import Result, Status
from .rng import ImageRng, derive_seed, image_seeds
from .solver import Solver
from .times import make_times

__all__ = ["Estimate", "Observer", "batch_rows", "default_times", "solve"]


class Observer(Protocol):
    """Called after every step with what a progress bar, a trajectory or a metric curve needs.

    `rows` names the pictures of this batch as (image, sample) pairs; `image()` decodes the current estimate,
    (B, C, H, W), and costs a decoder call only when it is used.
    """

    def __call__(self, step: int, steps: int, rows: Sequence[tuple[int, int]], estimate: Estimate) -> None:
        """Step `step` of `steps` of the batch with these rows is done."""


class Estimate:
    """The current estimate of a batch, decoded on demand."""

    def __init__(self, prior: Prior, z: Tensor) -> None:
        self.prior, self.z = prior, z

    def image(self) -> Tensor:
        """The picture it stands for (B, C, H, W)."""
        return self.prior.decode(self.z)


def default_times(
    problem: Problem, prior: Prior, solver: Solver[Any], steps: int | None = None, name: str | None = None
) -> Tensor:
    """A grid for this problem: by default the solver's own, with its own number of steps.

    Arguments:
        problem: whose noise may be where the grid starts (`Problem.own_ratio`).
        prior: in whose schedule the times are.
        solver: whose defaults are taken for what is not given.
        steps: number of steps.
        name: a name of TIMES.
    """
    n = solver.steps if steps is None else steps
    return make_times(solver.times if name is None else name, n, prior.schedule, problem.own_ratio)


def batch_rows(solver: Solver[Any], samples: int, batch_size: int) -> int:
    """How many (measurement, sample) rows go through the network at once: whole groups of what must stay together."""
    group = samples if solver.interacting else 1
    return max(batch_size // group, 1) * group


@memory_kept()
@torch.no_grad()
def solve(
    problem: Problem,
    prior: Prior,
    solver: Solver[Any],
    times: Tensor | str | None = None,
    *,
    steps: int | None = None,
    samples: int = 1,
    seed: int | Sequence[int] = 0,
    batch_size: int = 8,
    observers: Sequence[Observer] = (),
) -> Result:
    """Draw `samples` pictures for every measurement of the problem.

    Results do not depend on batching, up to rounding: every sample has its own random generator.

    Arguments:
        problem: operator, noise and measurements y (B, *data_shape).
        prior: the prior, on the device and in the dtype wanted; see `Solver.needs_float32`.
        solver: the algorithm with its hyperparameters.
        times: decreasing times in the prior's schedule, or a name of TIMES; the solver's own grid if not given.
        steps: number of steps of a grid that is not given as times; the solver's own if not given.
        samples: number of samples S per measurement.
        seed: of the run; or one per measurement, with which each gives the same pictures as it does alone.
        batch_size: most rows that go through the network at once; the particles of an interacting solver stay together.
        observers: called after every step.

    Returns:
        Result: samples (B, S, C, H, W).  A row that becomes non-finite is told of in `Result.status`; others go on.

    Raises:
        TypeError: the operator or the prior lacks what the solver needs, or times are of another type.
        ValueError: times are not decreasing or no known name, or samples or batch_size is below 1.
    """
    solver.check(problem, prior)
    seeds = image_seeds(seed, len(problem.y))
    for name, count in {"samples": samples, "batch_size": batch_size}.items():
        if not is_whole(count) or count < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {count!r}.")
    grids = _grids(problem, prior, solver, times, steps)
    start = time.perf_counter()
    metered = Metered(prior.sized(problem.operator.image_shape))
    rows = [(b, s) for b in range(len(problem.y)) for s in range(samples)]
    group = samples if solver.interacting else 1  # rows that must stay together
    size = batch_rows(solver, samples, batch_size)
    alike = [list(run) for _, run in groupby(rows, key=lambda row: grids[row[0]].tolist())]
    with precise(solver.needs_float32):
        parts = [
            _solve_batch(problem, metered, solver, grids[run[0][0]], seeds, run[k : k + size], group, observers)
            for run in alike
            for k in range(0, len(run), size)
        ]
    x, chi2, finite = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    chi2 = chi2.reshape(-1, samples)
    status = tuple(
        tuple(Status.ok if good else Status.nonfinite for good in row) for row in finite.reshape(-1, samples).tolist()
    )
    stats = {"steps": float(len(grids[0]) - 1), "seconds": time.perf_counter() - start}
    stats |= {name: count / len(rows) for name, count in metered.counts.items()}
    return Result(x.reshape(-1, samples, *x.shape[1:]), status, chi2, stats)


def _grids(
    problem: Problem, prior: Prior, solver: Solver[Any], times: Tensor | str | None, steps: int | None
) -> list[Tensor]:
    """The times of every measurement, whose noise may be where its grid starts."""
    if not isinstance(times, Tensor | str | None):
        raise TypeError(f"times must be a tensor or the name of a time grid, got {times!r}.")
    if times is None or isinstance(times, str):
        each = [problem.rows(torch.tensor([b], device=problem.y.device)) for b in range(len(problem.y))]
        return [default_times(one, prior, solver, steps, times) for one in each]
    if steps is not None:
        raise ValueError("Give solve() either times or steps, not both.")
    if times.ndim != 1 or len(times) < 2 or not (times.diff() < 0).all():
        raise ValueError("times must be a 1-D tensor of at least two strictly decreasing numbers from noise to data.")
    return [times] * len(problem.y)


def _solve_batch(
    problem: Problem,
    prior: Metered,
    solver: Solver[Any],
    times: Tensor,
    seeds: Sequence[int],
    rows: list[tuple[int, int]],
    particles: int,
    observers: Sequence[Observer],
) -> tuple[Tensor, Tensor, Tensor]:
    """The final pictures (B, C, H, W) of one batch of rows, their chi2 (B,) and whether they stayed finite (B,)."""
    y = problem.y
    problem = problem.rows(torch.tensor([b for b, _ in rows], device=y.device), particles)
    rng = ImageRng(derive_seed(seeds[b], 0, s) for b, s in rows)
    times = times.to(y.device, y.dtype)
    state = solver.init(times[0], problem, prior, rng)
    finite = torch.ones(len(rows), dtype=torch.bool, device=y.device)
    for k, (t, s) in enumerate(pairwise(times), start=1):
        state = solver.step(state, t, s, problem, prior, rng)
        z = solver.estimate(state)
        for observe in observers:
            observe(k, len(times) - 1, rows, Estimate(prior.prior, z))
        finite &= z.flatten(1).isfinite().all(dim=1)  # here, since a decoder may saturate and hide it
        if not finite.any():
            break  # nothing left to save in this batch
    x = prior.decode(solver.estimate(state))
    chi2 = problem.chi2(x)  # infinite where finite pictures are too far from the data for a number, NaN without noise
    return x, chi2, finite & x.square().flatten(1).sum(dim=1).isfinite() & ~chi2.isinf()
