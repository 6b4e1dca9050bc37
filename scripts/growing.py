"""A larger `ResidualUNet` from the weights of a smaller one: what is new begins as the identity."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from invsolve.priors.network import ResidualUNet

__all__ = ["grow"]


@torch.no_grad()
def grow(network: ResidualUNet, weights: Mapping[str, Tensor]) -> None:
    """Give a network the weights of one with fewer levels, blocks or attention, without a change of its output.

    The bottom of the smaller network becomes the encoder's blocks of the same width; nothing comes up from the levels
    below it yet.  New blocks and attention add zero.

    Arguments:
        network: with fresh weights.
        weights: of the smaller network, or of one of the same size, in any precision.

    Raises:
        ValueError: the smaller network has something that this one lacks.
    """
    levels = 1 + sum(bool(re.fullmatch(r"down\.\d+\.weight", name)) for name in weights)
    is_deeper = levels <= len(network.down)
    renamed = {
        re.sub(r"^middle\.", f"encoder.{levels - 1}.", name) if is_deeper else name: weight.float()
        for name, weight in weights.items()
    }
    own = network.state_dict()
    for name, weight in renamed.items():
        if name not in own or own[name].shape != weight.shape:
            has = tuple(own[name].shape) if name in own else "nothing"
            raise ValueError(
                f"The weights to start from have {name} of shape {tuple(weight.shape)}, this network {has}; "
                "give --widths, --blocks and --heads at least those of the smaller network."
            )
    network.load_state_dict(renamed, strict=False)
    for up in network.up[levels - 1 :]:
        for parameter in up.parameters():
            parameter.zero_()
