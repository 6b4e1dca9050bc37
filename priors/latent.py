"""Latent priors: a prior of the latents of a diffusers autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .base import Endpoints, Prior, Shape, pad_to_multiple
from .pixel import load_network, load_pixel_prior, read_json

__all__ = ["LatentPrior", "load_latent_prior"]


class LatentPrior(Prior):
    """Pictures seen through an autoencoder: z = (E(x) - shift) * scale, x = D(z / scale + shift).

    Pictures of any size: padded by reflection to the autoencoder's multiple before E, cropped after D.  `sized`, which
    `solve` calls, tells it the size to crop to.

    Arguments:
        autoencoder: a diffusers AutoencoderKL or one with the same encode, decode and config.
        prior: of the latents.
        image_shape: (C, H, W) of the pictures that `decode` gives; None for whole multiples of the latents' size.
    """

    def __init__(self, autoencoder: nn.Module, prior: Prior, image_shape: Shape | None = None) -> None:
        super().__init__()
        self.prior, self.image_shape = prior, image_shape
        self.autoencoder: Any = autoencoder
        self.schedule, self.calls_per_predict = prior.schedule, prior.calls_per_predict
        self.calibration = prior.calibration
        config: Any = autoencoder.config
        self.channels, self.latent_channels = int(config.in_channels), int(config.latent_channels)
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        self.scale, self.shift = float(config.scaling_factor), float(getattr(config, "shift_factor", None) or 0.0)
        autoencoder.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def sized(self, image_shape: Shape) -> Prior:
        prior = LatentPrior(self.autoencoder, self.prior, image_shape)
        prior.calibration = self.calibration
        return prior

    def predict(self, z: Tensor, t: Tensor) -> Endpoints:
        return self.prior.predict(z, t)

    def encode(self, x: Tensor) -> Tensor:
        padded, _ = pad_to_multiple(x, self.factor)
        mean = self.autoencoder.encode(padded.to(self._dtype)).latent_dist.mode()
        return (mean.to(x.dtype) - self.shift) * self.scale

    def decode(self, z: Tensor) -> Tensor:
        x: Tensor = self.autoencoder.decode((z / self.scale + self.shift).to(self._dtype)).sample
        if self.image_shape is not None:
            x = x[..., : self.image_shape[1], : self.image_shape[2]]
        return x.to(z.dtype)

    def latent_shape(self, image_shape: Shape) -> Shape:
        _, height, width = image_shape
        return self.latent_channels, -(-height // self.factor), -(-width // self.factor)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.autoencoder.parameters()).dtype


def load_latent_prior(folder: str | Path, dtype: torch.dtype = torch.float32) -> LatentPrior:
    """Load a diffusers pipeline folder with an AutoencoderKL (vae/), a network of its latents (unet/) and scheduler/.

    Arguments:
        folder: the folder; weights as safetensors.
        dtype: of the network; the autoencoder stays in float32, since half precision overflows in decoders.

    Raises:
        ValueError: the folder lacks a part or a part is damaged, or network and autoencoder do not fit.
    """
    from diffusers import AutoencoderKL

    folder = Path(folder)
    prior = load_pixel_prior(folder, dtype)
    read_json(folder / "vae" / "config.json", folder)
    latent = LatentPrior(load_network(AutoencoderKL, folder / "vae"), prior)
    if prior.channels != latent.latent_channels:
        raise ValueError(
            f"{folder} holds a network of {prior.channels} channels and an autoencoder with {latent.latent_channels}; "
            "they belong to different models."
        )
    return latent
