"""Noise schedules: the path z_t = alpha_t * clean + sigma_t * noise, t = 0 data, t = 1 noise."""

from __future__ import annotations

import abc

import torch
from torch import Tensor

__all__ = ["VE", "DiscreteVP", "LinearFlow", "Schedule", "cosine_betas", "linear_betas", "scaled_linear_betas"]


class Schedule(abc.ABC):
    """alpha_t and sigma_t over t in [0, 1], with the inverse of their ratio.

    Two schedules describe the same posterior means at equal ratio sigma/alpha, which is what lets any prior be
    viewed under any schedule (`Rescheduled`).
    """

    @abc.abstractmethod
    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha_t, sigma_t) with the shape of `t`."""

    @abc.abstractmethod
    def time(self, ratio: Tensor) -> Tensor:
        """The t in [0, 1] whose sigma_t / alpha_t is `ratio`; ratios beyond the schedule's end give t = 1."""

    def ratio(self, t: Tensor) -> Tensor:
        """sigma_t / alpha_t, the standard deviation of the noise on the unscaled image; may be infinite at t = 1."""
        alpha, sigma = self(t)
        return sigma / alpha


class LinearFlow(Schedule):
    """Rectified flow: alpha_t = 1 - t, sigma_t = t (Liu et al., arXiv 2209.03003; Lipman et al., 2210.02747)."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t

    def time(self, ratio: Tensor) -> Tensor:
        return torch.where(ratio.isinf(), 1.0, ratio / (1 + ratio))


class VE(Schedule):
    """Variance exploding: alpha_t = 1, sigma_t = sigma_max * t (Karras et al., arXiv 2206.00364, time = sigma).

    Arguments:
        sigma_max: standard deviation at t = 1, in units of the [-1, 1] image.
    """

    def __init__(self, sigma_max: float = 80.0) -> None:
        self.sigma_max = sigma_max

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), self.sigma_max * t

    def time(self, ratio: Tensor) -> Tensor:
        return (ratio / self.sigma_max).clamp(max=1)


class DiscreteVP(Schedule):
    """Variance preserving with a table of steps: alpha_t^2 = abar, sigma_t^2 = 1 - abar (Ho et al., 2006.11239).

    Step i of the table (0-based, as networks are trained) is t = (i + 1) / T; t = 0 is clean.  Between the steps
    log(abar) is linear in t.

    Arguments:
        betas: the T variances of the forward steps.
    """

    def __init__(self, betas: Tensor) -> None:
        abar = torch.cumprod(1 - betas.double(), dim=0)
        self.log_abar = torch.cat([abar.new_zeros(1), abar.log()])

    @property
    def n_steps(self) -> int:
        """Number of steps T of the table."""
        return len(self.log_abar) - 1

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_abar = _interpolate(t.double() * self.n_steps, self.log_abar.to(t.device))
        return (log_abar / 2).exp().to(t.dtype), (-torch.expm1(log_abar)).sqrt().to(t.dtype)

    def time(self, ratio: Tensor) -> Tensor:
        log_abar = -torch.log1p(ratio.double() ** 2)
        table = -self.log_abar.to(ratio.device)  # increasing
        upper = torch.searchsorted(table, -log_abar).clamp(1, self.n_steps)
        low, high = table[upper - 1], table[upper]
        position = (upper - 1) + ((-log_abar - low) / (high - low)).clamp(0, 1)
        return (position / self.n_steps).to(ratio.dtype)


def _interpolate(position: Tensor, table: Tensor) -> Tensor:
    """Linear interpolation of a 1-D table at fractional positions."""
    low = position.floor().clamp(0, len(table) - 2).long()
    return torch.lerp(table[low], table[low + 1], (position - low).clamp(0, 1))


def linear_betas(n: int = 1000, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """The betas of DDPM and of the ADM checkpoints (Ho et al., arXiv 2006.11239)."""
    return torch.linspace(start, end, n, dtype=torch.float64)


def scaled_linear_betas(n: int = 1000, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """The betas of Stable Diffusion: linear in the square root."""
    return torch.linspace(start**0.5, end**0.5, n, dtype=torch.float64) ** 2


def cosine_betas(n: int = 1000, start: float = 0.0, end: float = 0.999) -> Tensor:  # noqa: ARG001 - as the others
    """The betas of improved DDPM, of abar = cos^2 (Nichol & Dhariwal, arXiv 2102.09672, eq. 17), none above 0.999."""
    u = (torch.linspace(0, 1, n + 1, dtype=torch.float64) + 0.008) / 1.008
    abar = (u * torch.pi / 2).cos().square()
    return (1 - abar[1:] / abar[:-1]).clamp_max(0.999)
