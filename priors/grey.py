"""Grey pictures under a prior of colour ones."""

from __future__ import annotations

import torch
from torch import Tensor

from ..linalg import expand_to
from .base import Endpoints, Prior, Shape, Wrapper

__all__ = ["GreyLatents", "GreyPrior", "as_grey"]


def as_grey(prior: Prior) -> Prior:
    """A colour prior, of pixels or of latents, as one of grey pictures."""
    return GreyLatents(prior) if prior.has_decoder else GreyPrior(prior)


class GreyPrior(Wrapper):
    """A colour prior seen as a prior of grey pictures (B, 1, H, W).

    The grey picture fills all three channels.  Along the grey axis (1, 1, 1) / sqrt(3) its noise then is sqrt(3)
    times as large as in one channel, so the colour prior is asked at sqrt(3) times the ratio sigma/alpha.

    Arguments:
        prior: a pixel prior of colour pictures.
    """

    def __init__(self, prior: Prior) -> None:
        super().__init__(prior)
        self.channels = 1

    def around(self, prior: Prior) -> Wrapper:
        return GreyPrior(prior)

    def predict(self, z: Tensor, t: Tensor) -> Endpoints:
        alpha, sigma = self.schedule(t)
        inner_t = self.prior.schedule.time(3**0.5 * sigma / alpha)
        inner_alpha, inner_sigma = self.prior.schedule(inner_t)
        scale = torch.where(alpha > sigma, inner_alpha / alpha, inner_sigma / (3**0.5 * sigma))  # equal, one is finite
        clean, noise = self.prior.predict((expand_to(scale.to(z), z) * z).expand(-1, 3, -1, -1), inner_t)
        return Endpoints(clean.mean(dim=1, keepdim=True), 3**0.5 * noise.mean(dim=1, keepdim=True))

    def sized(self, image_shape: Shape) -> Wrapper:
        return super().sized((3, *image_shape[1:]))


class GreyLatents(Wrapper):
    """A latent colour prior seen as one of grey pictures: the same latents, decoded and averaged over the channels.

    Arguments:
        prior: a latent prior of colour pictures.
    """

    def __init__(self, prior: Prior) -> None:
        super().__init__(prior)
        self.channels = 1

    def around(self, prior: Prior) -> Wrapper:
        return GreyLatents(prior)

    def predict(self, z: Tensor, t: Tensor) -> Endpoints:
        return self.prior.predict(z, t)

    def encode(self, x: Tensor) -> Tensor:
        return self.prior.encode(x.expand(-1, 3, -1, -1))

    def decode(self, z: Tensor) -> Tensor:
        return self.prior.decode(z).mean(dim=1, keepdim=True)

    def latent_shape(self, image_shape: Shape) -> Shape:
        return self.prior.latent_shape((3, *image_shape[1:]))

    def sized(self, image_shape: Shape) -> Wrapper:
        return super().sized((3, *image_shape[1:]))
