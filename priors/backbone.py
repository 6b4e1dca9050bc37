"""A network behind one call: (x_t, time step, condition) -> prediction.

A condition is a dictionary of tensors with one row, made from a prompt by `text.py`; networks that need none get {}.
"""

from __future__ import annotations

import abc
import textwrap
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..devices import is_out_of_memory
from .base import pad_to_multiple
from .files import CANNOT_HELP

__all__ = ["Backbone", "Condition", "Nothing"]

Condition = Mapping[str, Tensor]
Nothing = Literal["zeros", "empty prompt", "none"]


class Backbone(nn.Module, abc.ABC):
    """A diffusers network seen as one function of x_t.

    Arguments:
        network: of the class it is for.
        pixels_per_latent: side in pixels of one element of x_t; 1 without an autoencoder.
    """

    latent: ClassVar[bool] = False  # whether it needs an autoencoder
    text_keys: ClassVar[tuple[str, ...]] = ()  # of the conditions that its prompts become
    nothing: ClassVar[Nothing] = "none"  # what an absent prompt was in training
    encodes_no_negative: ClassVar[bool] = False  # whether its pipeline then moves away from the encoded empty prompt
    pipeline: ClassVar[str] = ""  # the diffusers pipeline that encodes its prompts
    input_wider: ClassVar[bool] = False  # whether x_t is given in float32 also to a half-precision network
    autoencoder_recomputes: ClassVar[bool] = True  # whether its autoencoder can, instead of storing for a gradient
    trained_side: ClassVar[int | None] = None  # of x_t in training, where the config does not say it

    def __init__(self, network: nn.Module, pixels_per_latent: int = 1) -> None:
        super().__init__()
        self.network: Any = network
        self.pixels_per_latent, self.has_gradient = pixels_per_latent, True
        self.works = False  # whether it was ever called without an error
        self.stays = False  # where it is: its weights are of few bits, or come block by block
        network.requires_grad_(False).eval()

    @property
    def channels(self) -> int:
        """Of x_t."""
        return int(self.network.config.in_channels)

    @property
    def size_multiple(self) -> int:
        """Height and width of x_t must be multiples of this."""
        return int(self.network.config.patch_size)

    @property
    def dtype(self) -> torch.dtype:
        """Of what the network takes."""
        own: torch.dtype = self.network.dtype
        return torch.promote_types(own, torch.float32) if self.input_wider else own

    @property
    def embeds_guidance(self) -> bool:
        """Whether the network takes the guidance scale as an input instead of being called twice."""
        return False

    def zeros(self) -> dict[str, Tensor]:
        """The condition of nothing at all, where the network was trained with zeros for it."""
        return {}

    @abc.abstractmethod
    def call(self, x: Tensor, timestep: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The network on x (B, C, h, w) of its dtype, timestep (B,) in 0 to 1000, rows of conditions (B, ...)."""

    def forward(self, x: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """The prediction (B, C, h, w) in the dtype of x.

        Arguments:
            x: x_t (B, C, h, w) of any size; padded by reflection to the network's multiple and cropped again.
            timestep: (B,), 1000 for pure noise.
            condition: tensors with one row for all, or B rows.

        Raises:
            ValueError: a gradient is wanted of a network that has none where it is.
        """
        if x.requires_grad and not self.has_gradient:
            raise ValueError(
                "The network comes block by block from the main memory (--memory low) and has no gradient there; take "
                "--memory balanced, or a solver without gradients through the network: flowdps, flair, diffpir, ddnm."
            )
        padded, (height, width) = pad_to_multiple(x.to(self.dtype), self.size_multiple)
        rows = {name: self._rows(value, padded) for name, value in condition.items()}
        out = self._call(padded, timestep.expand(len(x)), rows)
        return out[:, : self.channels, :height, :width].to(x.dtype)  # further channels are a learned variance

    def _call(self, x: Tensor, timestep: Tensor, rows: dict[str, Tensor]) -> Tensor:
        """The network; where its first call fails, its config does not fit."""
        if self.works:
            return self.call(x, timestep, rows)
        try:
            out = self.call(x, timestep, rows)
        except CANNOT_HELP:
            raise
        except Exception as error:  # of any kind: a config holds whatever was written into it
            if is_out_of_memory(error) or "device" in str(error) or "CUDA" in str(error):
                raise  # of the machine, or of where the tensors are
            reason = textwrap.shorten(str(error), 200, placeholder=" ...").rstrip(".")
            raise ValueError(
                f"The prior's network fails in its first call ({reason}): its config.json does not fit its weights; "
                "save or download the prior again."
            ) from error
        self.works = True
        return out

    def _rows(self, value: Tensor, x: Tensor) -> Tensor:
        value = value.to(x.device, x.dtype if value.is_floating_point() else value.dtype)
        return value.expand(len(x), *value.shape[1:])
