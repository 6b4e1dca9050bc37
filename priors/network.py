"""The network of the bundled prior: a norm-free residual U-Net that predicts the velocity of a rectified flow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from .backbone import Backbone
from .precision import is_precise

__all__ = ["Residual", "ResidualUNet"]

N_FREQUENCIES = 16
FREQUENCY_RANGE = (0.1, 4.0)  # radians per unit of log(sigma), which spans about 10 units
SIGMA_RANGE = (0.002, 80.0)  # noise levels the embedding tells apart


class ResidualBlock(nn.Module):
    """x + W2 relu(g W1 x + e), gain g and shift e of the noise level; zero at initialisation."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(width, width, 3, padding=1)
        self.conv_out = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shift, self.gain = nn.Linear(embedding, width), nn.Linear(embedding, width)
        nn.init.zeros_(self.conv_out.weight)
        for layer in (self.shift, self.gain):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        shift, gain = (layer(embedding)[:, :, None, None] for layer in (self.shift, self.gain))
        return x + self.conv_out(F.relu(torch.addcmul(shift, self.conv_in(x), 1 + gain)))


class ResidualBlocks(nn.ModuleList):
    """Residual blocks, one after the other."""

    def __init__(self, n: int, width: int, embedding: int) -> None:
        super().__init__(ResidualBlock(width, embedding) for _ in range(n))

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        for block in self:
            h = block(h, embedding)
        return h


class SelfAttention(nn.Module):
    """x + W attention(x) over all positions, without norms but for queries and keys; zero at initialisation."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Conv2d(width, 3 * width, 1, bias=False)
        self.out = nn.Conv2d(width, width, 1, bias=False)
        self.sharpness = nn.Parameter(torch.full((heads, 1, 1), 4.0))  # of queries and keys of length 1
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        b, _, height, width = x.shape
        q, k, v = self.qkv(x).reshape(b, 3, self.heads, -1, height * width).transpose(-1, -2).unbind(1)
        q = F.normalize(q, dim=-1) * self.sharpness
        attended = F.scaled_dot_product_attention(q, F.normalize(k, dim=-1), v, scale=1.0)
        return x + self.out(attended.transpose(-1, -2).reshape(b, -1, height, width))


class ResidualUNet(ModelMixin, ConfigMixin):  # type: ignore[misc] # both name config_name, differently
    """v(x_t, t) of a rectified flow on pixels, x_t = (1 - t) x_0 + t eps, in the manner of DRUNet and EDM.

    With n^2 = t^2 + d^2 (1 - t)^2, d the standard deviation of the data, and F the U-Net on x_t / n, the clean
    endpoint is d^2 (1 - t) x_t / n^2 + d t F / n and the noise endpoint t x_t / n^2 - d (1 - t) F / n: the
    preconditioning of Karras et al. (arXiv 2206.00364, Table 1) written without a division that reaches zero.

    Arguments:
        widths: channels of each level; every level halves the resolution.
        blocks: residual blocks of each level (the last one is the bottom).
        channels: image channels.
        patch: side of the pixel patches that the first level sees as channels.
        data_std: d, in [-1, 1] units.
        embedding: width of the noise-level embedding.
        attention_heads: of the self-attention after every block of the bottom; 0 for none.

    Raises:
        ValueError: the width of the bottom is not a multiple of the heads.
    """

    _supports_gradient_checkpointing = True

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        widths: tuple[int, ...] = (64, 128, 192),
        blocks: tuple[int, ...] = (2, 3, 4),
        channels: int = 3,
        patch: int = 2,
        data_std: float = 0.5,  # noqa: ARG002 - kept in the config
        embedding: int = 64,
        attention_heads: int = 0,
    ) -> None:
        super().__init__()
        size = channels * patch**2
        self.gradient_checkpointing = False
        self.embed = nn.Sequential(
            nn.Linear(2 * N_FREQUENCIES, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )
        self.conv_in = nn.Conv2d(size, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        for width, wider, n in zip(widths, widths[1:], blocks, strict=False):
            self.encoder.append(ResidualBlocks(n, width, embedding))
            self.down.append(nn.Conv2d(width, wider, 2, stride=2))
            self.up.append(nn.ConvTranspose2d(wider, width, 2, stride=2))
            self.decoder.append(ResidualBlocks(n, width, embedding))
        self.middle = ResidualBlocks(blocks[-1], widths[-1], embedding)
        self.attention = nn.ModuleList()
        if attention_heads:
            if widths[-1] % attention_heads:
                raise ValueError(f"attention_heads must divide the last width, {widths[-1]}, got {attention_heads}.")
            self.attention.extend(SelfAttention(widths[-1], attention_heads) for _ in self.middle)
        self.conv_out = nn.Conv2d(widths[0], size, 3, padding=1)
        # F amplifies the noise of its input by up to d / sigma, which shifts and rectifiers alone do not do exactly.
        self.skip_gain = nn.Linear(embedding, widths[0])
        for parameter in (*self.conv_out.parameters(), *self.skip_gain.parameters()):
            nn.init.zeros_(parameter)

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of this."""
        return int(self.config["patch"] * 2 ** len(self.down))

    def residual(self, x: Tensor, log_sigma: Tensor) -> Tensor:
        """F: the U-Net itself on the normalised input (B, C, H, W) and log noise level (B,)."""
        low, high = (math.log(f) for f in FREQUENCY_RANGE)
        frequencies = torch.linspace(low, high, N_FREQUENCIES, device=x.device).exp()  # float32 in every dtype
        angle = log_sigma[:, None] * frequencies
        embedding = self.embed(torch.cat([angle.sin(), angle.cos()], dim=1).to(x.dtype))
        first = h = self.conv_in(F.pixel_unshuffle(x, self.config["patch"]))
        skips = []
        for blocks, down in zip(self.encoder, self.down, strict=True):
            h = self._run(blocks, h, embedding)
            skips.append(h)
            h = down(h)
        h = self._run(self._bottom, h, embedding)
        for blocks, up in zip(reversed(self.decoder), reversed(self.up), strict=True):
            h = self._run(blocks, up(h) + skips.pop(), embedding)
        h = torch.addcmul(h, first, 1 + self.skip_gain(embedding)[:, :, None, None])
        return F.pixel_shuffle(self.conv_out(h), self.config["patch"])

    def _bottom(self, h: Tensor, embedding: Tensor) -> Tensor:
        """The blocks of the last level, each followed by its self-attention where the network has it."""
        if not self.attention:
            return self.middle(h, embedding)
        for block, attention in zip(self.middle, self.attention, strict=True):
            h = attention(block(h, embedding))
        return h

    def _run(self, blocks: Callable[[Tensor, Tensor], Tensor], h: Tensor, embedding: Tensor) -> Tensor:
        """The blocks of one level; where gradients are checkpointed only h is stored."""
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            checkpoint: Any = self._gradient_checkpointing_func  # None, says diffusers, until it is switched on
            return checkpoint(blocks, h, embedding)
        return blocks(h, embedding)

    def forward(
        self, sample: Tensor, timestep: Tensor | float, return_dict: bool = True
    ) -> UNet2DOutput | tuple[Tensor]:
        """Velocity eps - x_0 at x_t.

        Arguments:
            sample: x_t (B, C, H, W), height and width multiples of `size_multiple`.
            timestep: 1000 t, a scalar or (B,), as in diffusers' flow-matching models.
            return_dict: whether to wrap the result as diffusers does.
        """
        t = torch.as_tensor(timestep, device=sample.device).float().expand(len(sample)) / 1000
        low, high = (math.log(sigma) for sigma in SIGMA_RANGE)
        log_sigma = (t / (1 - t)).log().clamp(low, high)
        t = t.to(sample.dtype)[:, None, None, None]
        d = self.config["data_std"]
        n = (t.square() + d**2 * (1 - t).square()).sqrt()
        dtype = self.conv_in.weight.dtype  # bfloat16 only inside the U-Net: the rest would lose bits of the picture
        inner = (sample / n).to(dtype).contiguous(memory_format=torch.channels_last)
        f = self.residual(inner, log_sigma).to(sample.dtype)
        velocity = (t - d**2 * (1 - t)) / n.square() * sample - d / n * f
        return UNet2DOutput(sample=velocity) if return_dict else (velocity,)


class Residual(Backbone):
    """A `ResidualUNet`, which takes pictures in float32 also where it computes in half precision.

    Arguments:
        network: the network.
        pixels_per_latent: as in `Backbone`.
        exact: the same network in float32, for what runs inside `precise`; None where `network` is not in half
            precision.
    """

    input_wider = True

    def __init__(self, network: nn.Module, pixels_per_latent: int = 1, exact: nn.Module | None = None) -> None:
        super().__init__(network, pixels_per_latent)
        self.exact: Any = None if exact is None else exact.requires_grad_(False).eval()

    @property
    def channels(self) -> int:
        return int(self.network.config["channels"])

    @property
    def size_multiple(self) -> int:
        return int(self.network.size_multiple)

    def call(self, x: Tensor, timestep: Tensor, condition: dict[str, Tensor]) -> Tensor:
        network = self.exact if is_precise() and self.exact is not None else self.network
        out: Tensor = network(x, timestep, **condition).sample
        return out
