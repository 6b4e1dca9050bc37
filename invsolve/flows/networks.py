"""The small networks Phi(x, c) that a fitted flow is a chain of.

A network of experts is a few linear maps with shares that depend on the input.  Where it learns from the score, it
draws one of them, with its share as the probability: then several answers to one y cost nothing to keep apart, and the
functional is a sum over all pairs of experts, whose gradient has no noise from the draw.  Where it learns from the
flow, which wants one displacement, it takes their mean.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..operators.base import Shape
from ..rng import ImageRng
from .experts import Experts

__all__ = ["NetworkKind", "StageNetwork"]

NetworkKind = Literal["experts", "unet"]


class UNet(nn.Module):
    """A small U-Net of diffusers without attention; zero at first.

    Arguments:
        channels_in: channels of the input.
        channels_out: channels of the output.
        size: (h, w); the resolution is halved while it is even and more than 4, twice at most.
        width: channels of the first level, a multiple of 8.
    """

    def __init__(self, channels_in: int, channels_out: int, size: tuple[int, int], width: int) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        halvings = next(k for k in (2, 1, 0) if all(n % 2**k == 0 and (n > 2 ** (k + 1) or k == 0) for n in size))
        widths = tuple(width * 2**k for k in range(halvings + 1))
        net: Any = UNet2DModel(
            in_channels=channels_in,
            out_channels=channels_out,
            block_out_channels=widths,
            down_block_types=("DownBlock2D",) * len(widths),
            up_block_types=("UpBlock2D",) * len(widths),
            layers_per_block=1,
            norm_num_groups=8,
            add_attention=False,
        )
        nn.init.zeros_(net.conv_out.weight)
        nn.init.zeros_(net.conv_out.bias)
        self.net = net

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """One answer (B, 1, *) with the whole share (B, 1)."""
        out: Tensor = self.net(h, 0).sample
        return out.flatten(1)[:, None], out.new_ones(len(out), 1)


class StageNetwork(nn.Module):
    """Phi(x, c) for latents x (B, *shape) and conditions c (B, *image_shape); as large as x.

    The condition is brought to the resolution of x without loss, several pixels becoming channels of one, where the one
    is a multiple of the other, and is averaged where it is not.

    Arguments:
        kind: "experts" or "unet".
        width: of the network.
        image_shape: of the condition.
        shape: of x.
        drawn: experts answer by one of them, which is drawn, instead of by their mean.
        blind: x is mere noise.
    """

    def __init__(
        self,
        kind: NetworkKind,
        width: int,
        image_shape: Shape,
        shape: Shape,
        *,
        drawn: bool = False,
        blind: bool = False,
    ) -> None:
        super().__init__()
        (channels, height, width_in), (_, rows, columns) = image_shape, shape
        divides = height % rows == 0 and width_in % columns == 0 and height // rows == width_in // columns
        self.fold, self.shape, self.drawn = height // rows if divides else 0, shape, drawn and kind == "experts"
        channels *= self.fold**2 if divides else 1
        size = rows * columns
        self.net: Experts | UNet = (
            Experts(shape[0] * size, channels * size, width, drawn=drawn, blind=blind)
            if kind == "experts"
            else UNet(channels + shape[0], shape[0], (rows, columns), width)
        )

    def prepare(self, x: Tensor, c: Tensor) -> None:
        """Adapt new experts to the scale of their input: examples of x (n, *shape) and c (n, *image_shape)."""
        if isinstance(self.net, Experts):
            self.net.prepare(self._joined(x, c).flatten(1))

    def start(self, x: Tensor, c: Tensor, target: Tensor, rng: ImageRng) -> None:
        """Start prepared experts that are drawn at the pictures that they have to make.

        Arguments:
            x: examples of x (n, *shape).
            c: their conditions (n, *image_shape).
            target: the pictures (n, *shape) whose conditions they are.
            rng: one row.
        """
        if isinstance(self.net, Experts):
            self.net.start_at_clusters(self._joined(x, c).flatten(1), target.flatten(1), rng)

    def answers(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """All displacements (B, K, *shape) with their shares (B, K)."""
        h = self._joined(x, c)
        moves, share = self.net(h.flatten(1) if isinstance(self.net, Experts) else h)
        return moves.unflatten(2, self.shape), share

    def forward(self, x: Tensor, c: Tensor, u: Tensor) -> Tensor:
        """The displacement (B, *shape): the mean answer, or the one that the numbers u (B,) from [0, 1] choose."""
        moves, share = self.answers(x, c)
        if self.drawn:
            chosen = (share.cumsum(dim=1) < u[:, None]).sum(dim=1).clamp(max=share.shape[1] - 1)
            return moves[torch.arange(len(moves), device=chosen.device), chosen]
        return (share[:, None] @ moves.flatten(2)).reshape(-1, *self.shape)

    def _joined(self, x: Tensor, c: Tensor) -> Tensor:
        c = F.pixel_unshuffle(c, self.fold) if self.fold else F.adaptive_avg_pool2d(c, self.shape[1:])
        return torch.cat([x, c], dim=1)
