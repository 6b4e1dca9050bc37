"""A latent prior with a linear decoder: what a sampler does through a decoder, with everything still in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Endpoints, Prior, Shape

__all__ = ["LinearDecoder"]


class LinearDecoder(Prior):
    """x = W z + b for latents z of another prior.

    Arguments:
        prior: of the latents z.
        matrix: W (d, k) of full column rank, d = C * H * W pixels, k latent entries.
        image_shape: (C, H, W) of x.
        latent: (c, h, w) of z.
        offset: b, (C, H, W) or a number.

    Raises:
        ValueError: if the matrix does not fit the two shapes.
    """

    matrix: Tensor
    inverse: Tensor
    offset: Tensor

    def __init__(
        self, prior: Prior, matrix: Tensor, image_shape: Shape, latent: Shape, offset: Tensor | float = 0.0
    ) -> None:
        super().__init__()
        sizes = [c * h * w for c, h, w in (image_shape, latent)]
        if tuple(matrix.shape) != tuple(sizes):
            raise ValueError(
                f"LinearDecoder expects a matrix {tuple(sizes)} for images {tuple(image_shape)} and latents "
                f"{tuple(latent)}, got {tuple(matrix.shape)}; give it a row per pixel and a column per latent entry."
            )
        self.prior, self.schedule = prior, prior.schedule
        self.image_shape, self.latent = image_shape, latent
        self.channels, self.calibration = image_shape[0], prior.calibration
        self.register_buffer("matrix", matrix)
        self.register_buffer("inverse", torch.linalg.pinv(matrix))
        self.register_buffer("offset", torch.as_tensor(offset))

    def predict(self, z: Tensor, t: Tensor) -> Endpoints:
        return self.prior.predict(z, t)

    def encode(self, x: Tensor) -> Tensor:
        """The latent whose picture is nearest to x."""
        return ((x - self.offset.to(x)).flatten(1) @ self.inverse.to(x).T).reshape(-1, *self.latent)

    def decode(self, z: Tensor) -> Tensor:
        return (z.flatten(1) @ self.matrix.to(z).T).reshape(-1, *self.image_shape) + self.offset.to(z)

    def latent_shape(self, image_shape: Shape) -> Shape:  # noqa: ARG002
        return self.latent
