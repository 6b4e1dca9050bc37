"""Latent priors: a prior of the latents of a diffusers autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from .base import Endpoints, Prior, Shape, Wrapper, pad_to_multiple
from .precision import finite_or_wider
from .tiles import tiled

__all__ = ["AUTOENCODERS", "LatentPrior"]

AUTOENCODERS: dict[str, Callable[[Any], Tensor]] = {  # what `encode` returns to the latent, without noise
    "AutoencoderKL": lambda encoded: encoded.latent_dist.mode(),
    "AutoencoderTiny": lambda encoded: encoded.latents,
    "AutoencoderDC": lambda encoded: encoded.latent,
}


class LatentPrior(Wrapper):
    """Pictures seen through an autoencoder: z = (E(x) - shift) * scale, x = D(z / scale + shift).

    Pictures of any size: padded by reflection to the autoencoder's multiple before E, cropped after D.  `sized`, which
    `solve` calls, tells it the size to crop to.

    Arguments:
        autoencoder: of a class in `AUTOENCODERS`, or one with the encode, decode and config of AutoencoderKL.
        prior: of the latents.
        image_shape: (C, H, W) of the pictures that `decode` gives; None for whole multiples of the latents' size.
        tile: side in pixels of the overlapping tiles in which larger pictures are encoded and decoded; None for whole
            pictures.
    """

    def __init__(
        self, autoencoder: nn.Module, prior: Prior, image_shape: Shape | None = None, tile: int | None = None
    ) -> None:
        super().__init__(prior)
        self.image_shape, self.tile = image_shape, tile
        self.autoencoder: Any = autoencoder
        config: Any = autoencoder.config
        self.channels, self.latent_channels = int(config.in_channels), int(config.latent_channels)
        self.factor = self.factor_of(autoencoder)
        self.scale, self.shift = float(config.scaling_factor), float(getattr(config, "shift_factor", None) or 0.0)
        self._latent_of = AUTOENCODERS.get(type(autoencoder).__name__, AUTOENCODERS["AutoencoderKL"])
        autoencoder.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    @staticmethod
    def factor_of(autoencoder: Any) -> int:
        """Pixels per element of the latent, in height and in width."""
        name = "encoder_block_out_channels" if type(autoencoder).__name__ == "AutoencoderDC" else "block_out_channels"
        return int(2 ** (len(autoencoder.config[name]) - 1))

    def around(self, prior: Prior) -> LatentPrior:
        return LatentPrior(self.autoencoder, prior, self.image_shape, self.tile)

    def sized(self, image_shape: Shape) -> LatentPrior:
        inner = self.prior.sized(self.latent_shape(image_shape))
        return LatentPrior(self.autoencoder, inner, image_shape, self.tile).known_as(self)

    def predict(self, z: Tensor, t: Tensor) -> Endpoints:
        return self.prior.predict(z, t)

    def encode(self, x: Tensor) -> Tensor:
        padded, _ = pad_to_multiple(x, self.factor)
        mean = finite_or_wider("encoder", self.autoencoder, padded, self._encode)
        return (mean.to(x.dtype) - self.shift) * self.scale

    def _encode(self, x: Tensor) -> Tensor:
        def part(x: Tensor) -> Tensor:
            return self._latent_of(self.autoencoder.encode(x))

        return self._tiled(part, x.to(self._dtype), 1, Fraction(1, self.factor))

    def decode(self, z: Tensor) -> Tensor:
        x = finite_or_wider("decoder", self.autoencoder, z / self.scale + self.shift, self._decode)
        if self.image_shape is not None:
            x = x[..., : self.image_shape[1], : self.image_shape[2]]
        return x.to(z.dtype)

    def _decode(self, z: Tensor) -> Tensor:
        def part(z: Tensor) -> Tensor:
            x: Tensor = self.autoencoder.decode(z).sample
            return x

        return self._tiled(part, z.to(self._dtype), self.factor, Fraction(self.factor))

    def _tiled(self, fn: Callable[[Tensor], Tensor], x: Tensor, unit: int, scale: Fraction) -> Tensor:
        """Fn on x, or on its tiles, where `unit` pixels are one element of x."""
        if self.tile is None or max(x.shape[-2:]) * unit <= self.tile:
            return fn(x)
        size = self.tile // unit
        return tiled(fn, x, size=size, overlap=size // 4, scale=scale, checkpoint=True)

    def latent_shape(self, image_shape: Shape) -> Shape:
        _, height, width = image_shape
        return self.latent_channels, -(-height // self.factor), -(-width // self.factor)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.autoencoder.parameters()).dtype
