"""Denoisers as priors: any D(x, sigma) that maps a noisy picture to its clean mean, such as DRUNet or an EDM network.

A denoiser that was trained with the squared error gives the mean of the clean picture given x + sigma n, which is all
that `Prior.predict` asks for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..linalg import expand_to
from .base import Endpoints, Prior, pad_to_multiple
from .schedule import VE

__all__ = ["DenoiserPrior"]


class DenoiserPrior(Prior):
    """The prior that a denoiser stands for, on the path x_t = clean + sigma_t noise.

    Arguments:
        denoiser: called as denoiser(x, sigma) with x (B, C, H, W) in `image_range` and sigma (B,) in the same units;
            a module moves with the prior.
        sigma_max: the highest noise level it knows, in units of the [-1, 1] picture; paths start there.
        sigma_min: the lowest one; below it the denoiser is asked at this level.
        image_range: of the pictures that it takes and gives, for example (0, 1) for those of deepinv.
        channels: image channels; None for any.
        size_multiple: height and width it takes are multiples of this; other pictures are padded by reflection.

    Raises:
        ValueError: the levels are not 0 < sigma_min < sigma_max, or the range is empty.
    """

    def __init__(
        self,
        denoiser: Callable[[Tensor, Tensor], Tensor],
        *,
        sigma_max: float,
        sigma_min: float = 0.002,
        image_range: tuple[float, float] = (-1.0, 1.0),
        channels: int | None = 3,
        size_multiple: int = 1,
    ) -> None:
        super().__init__()
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"DenoiserPrior needs 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}.")
        if not image_range[0] < image_range[1]:
            raise ValueError(f"image_range must be (lowest, highest), got {image_range}.")
        self.denoiser, self.schedule, self.channels = denoiser, VE(sigma_max), channels
        self.sigma_min, self.low, self.size_multiple = sigma_min, image_range[0], size_multiple
        self.unit = (image_range[1] - image_range[0]) / 2  # their units in one of ours
        if isinstance(denoiser, nn.Module):
            denoiser.requires_grad_(False).eval()

    def predict(self, z: Tensor, t: Tensor) -> Endpoints:
        _, sigma = self.schedule(t)
        sigma = sigma.to(z).expand(len(z))
        level = self.unit * sigma.clamp_min(self.sigma_min)
        padded, (height, width) = pad_to_multiple(z, self.size_multiple)
        denoised = self.denoiser(self.unit * (padded + 1) + self.low, level)[..., :height, :width]
        clean = (denoised - self.low) / self.unit - 1
        sigma = expand_to(sigma, z)
        noise = (z - clean) / sigma.clamp_min(torch.finfo(z.dtype).tiny)
        return Endpoints(clean, torch.where(sigma > 0, noise, 0))
