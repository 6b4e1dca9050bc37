"""Time grids: decreasing tensors of n + 1 times that end at 0.  A grid is data; solvers never make their own."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .counts import is_whole
from .priors.schedule import DiscreteVP, LinearFlow, Schedule, linear_betas

__all__ = [
    "TIMES",
    "check_grid",
    "flair_times",
    "flowdps_times",
    "karras",
    "make_times",
    "restoration",
    "shifted",
    "uniform",
    "vp_steps",
]


def uniform(n: int, start: float = 1.0) -> Tensor:
    """N equal steps from `start` to 0."""
    return torch.linspace(start, 0, n + 1, dtype=torch.float64)


def shifted(n: int, shift: float = 3.0, start: float = 1.0) -> Tensor:
    """The SD3 grid t = k u / (1 + (k - 1) u) over uniform u: more steps at high noise (Esser et al., 2403.03206)."""
    u = uniform(n, start)
    return shift * u / (1 + (shift - 1) * u)


def flowdps_times(n: int, shift: float = 4.0, sigma_min: float = 0.002994) -> Tensor:
    """The grid behind FlowDPS's published results: u = linspace(1, 0.002994, n) shifted by 4, then 0.

    0.002994 is what diffusers' SD3 scheduler makes of its last training step with its own shift of 3; the
    script then shifts a second time.  With a current diffusers the same script silently runs a shift of 3.
    """
    u = torch.linspace(1, sigma_min, n, dtype=torch.float64)
    return torch.cat([shift * u / (1 + (shift - 1) * u), u.new_zeros(1)])


def flair_times(n: int, start: float = 1.0, end: float = 0.18) -> Tensor:
    """FLAIR's times: n of n + 2 equal steps from 1 to 0.18, without the two ends, then 0."""
    return torch.cat([torch.linspace(start, end, n + 2, dtype=torch.float64)[1:-1], torch.zeros(1).double()])


def karras(n: int, ratio_max: float = 40.0, ratio_min: float = 0.01, rho: float = 7.0) -> Tensor:
    """Flow times whose ratio sigma/alpha follows the EDM grid, then 0 (Karras et al., arXiv 2206.00364, eq. 5)."""
    k = torch.linspace(0, 1, n, dtype=torch.float64)
    ratio = (ratio_max ** (1 / rho) + k * (ratio_min ** (1 / rho) - ratio_max ** (1 / rho))) ** rho
    return torch.cat([ratio / (1 + ratio), ratio.new_zeros(1)])


RESTORATION_START = 2.0  # sigma/alpha


def restoration(n: int, ratio_max: float = RESTORATION_START, ratio_min: float = 0.02) -> Tensor:
    """EDM's grid from sigma/alpha = 2 to 0.02: the data already say what happens at higher noise."""
    return karras(n, ratio_max, min(ratio_min, ratio_max / 2))


def vp_steps(n: int, total: int = 1000) -> Tensor:
    """DDIM's even steps of a table of `total`: the indices 0, k, …, (n - 1) k with k = total / n, descending, then 0.

    Given as flow times of equal sigma/alpha; the betas are the linear ones of DDPM.
    """
    schedule = DiscreteVP(linear_betas(total))
    index = (torch.arange(n) * total // n).flip(0) if n > 1 else torch.tensor([total - 1])  # one step is from noise
    return torch.cat([LinearFlow().time(schedule.ratio((index + 1).double() / total)), torch.zeros(1).double()])


END = 0.999  # of the largest ratio, for the second time of a grid whose first is pure noise

TIMES: dict[str, Callable[..., Tensor]] = {
    "uniform": uniform,
    "shifted": shifted,
    "flowdps": flowdps_times,
    "flair": flair_times,
    "karras": karras,
    "restoration": restoration,
    "from_data": restoration,
    "vp": vp_steps,
}


def check_grid(name: str) -> None:
    """Refuse what is no name of TIMES.

    Raises:
        ValueError: it is none.
    """
    if name not in TIMES:
        raise ValueError(f"Unknown time grid {name!r}; choose one of {', '.join(TIMES)}.")


def make_times(name: str, n: int, schedule: Schedule, own_ratio: float = math.inf) -> Tensor:
    """The named grid with n steps, in the times of the given schedule (equal sigma/alpha).

    Arguments:
        name: a name of TIMES.
        n: number of steps, 1 to 1000.
        schedule: whose times are wanted.
        own_ratio: `Problem.own_ratio`: `from_data` is `restoration`, started there if lower.  For solvers that take the
            noise of y for that of the path; others count y twice, which may still serve where the noise is high.
    """
    check_grid(name)
    if not is_whole(n) or not 1 <= n <= 1000:
        raise ValueError(f"steps must be an integer from 1 to 1000, got {n!r}.")
    from_data = name == "from_data" and own_ratio < RESTORATION_START
    ratio = LinearFlow().ratio(restoration(n, own_ratio) if from_data else TIMES[name](n))
    largest, first = schedule.ratio(torch.ones((), dtype=torch.float64)), ratio[ratio.isfinite()].max()
    if first >= largest:  # a path that ends at a lower noise level is walked from its end
        ratio = ratio * (largest / first) * (1.0 if ratio[0].isfinite() else END)
    return schedule.time(ratio).clamp(0, 1)
