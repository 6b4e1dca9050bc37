"""Grey pictures under a prior of colour ones."""

from __future__ import annotations

import torch
from torch import Tensor

from ..linalg import expand_to
from .base import Endpoints, Prior

__all__ = ["GreyPrior"]


class GreyPrior(Prior):
    """A colour prior seen as a prior of grey pictures (B, 1, H, W).

    The grey picture fills all three channels.  Along the grey axis (1, 1, 1) / sqrt(3) its noise then is sqrt(3)
    times as large as in one channel, so the colour prior is asked at sqrt(3) times the ratio sigma/alpha.

    Arguments:
        prior: a pixel prior of colour pictures.
    """

    channels = 1

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior, self.schedule, self.calls_per_predict = prior, prior.schedule, prior.calls_per_predict
        self.calibration = prior.calibration

    def predict(self, z: Tensor, t: Tensor) -> Endpoints:
        alpha, sigma = self.schedule(t)
        inner_t = self.prior.schedule.time(3**0.5 * sigma / alpha)
        inner_alpha, inner_sigma = self.prior.schedule(inner_t)
        scale = torch.where(alpha > sigma, inner_alpha / alpha, inner_sigma / (3**0.5 * sigma))  # equal, one is finite
        clean, noise = self.prior.predict((expand_to(scale.to(z), z) * z).expand(-1, 3, -1, -1), inner_t)
        return Endpoints(clean.mean(dim=1, keepdim=True), 3**0.5 * noise.mean(dim=1, keepdim=True))
