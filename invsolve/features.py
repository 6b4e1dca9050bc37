"""Feature spaces in which pictures are compared: (B, C, H, W) in [-1, 1] -> (B, n), differentiable, by name."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .metrics import lpips_network
from .priors.encoders import load_transformer
from .priors.files import read_json, refuse_code

__all__ = ["FEATURES", "Features", "check_features", "load_features"]

Features = Callable[[Tensor], Tensor]

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of pictures in [0, 1]; what the DINO networks were trained with
IMAGENET_STD = (0.229, 0.224, 0.225)
LPIPS_SIDE = 31  # pixels: below, the last layers of AlexNet have nothing left to see
INDEX = "model.safetensors.index.json"  # of weights in several files
DINO_CLASSES = {  # model_type of config.json -> class in transformers: a closed list, no code is taken from a model
    "vit": "ViTModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
}


@functools.cache
def load_features(name: str, network: str | None = None) -> Features:
    """The feature map of that name; loaded once.

    Arguments:
        name: `pixels`; `lpips`, whose squared distance is LPIPS; or `dino`, the class token of a vision transformer.
        network: for `dino`: a folder written by transformers' save_pretrained, or the id of a model on its hub.

    Raises:
        ValueError: an unknown name, or a network that is missing, superfluous or not a vision transformer.
        FileNotFoundError: the weights are not at hand.
    """
    check_features(name, network)
    return FEATURES[name](network)


def check_features(name: str, network: str | None, *others: str) -> None:
    """Refuse an unknown name, or a network that is missing or superfluous, with one sentence.

    Arguments:
        name: of the features.
        network: of `dino`.
        others: names that the caller knows besides.
    """
    if name not in (*others, *FEATURES):
        raise ValueError(f"Unknown features {name!r}; choose one of {', '.join((*others, *FEATURES))}.")
    if (name == "dino") != (network is not None):
        raise ValueError(
            "The features 'dino', and they alone, need a network: a folder or an id such as 'facebook/dino-vits16'; "
            f"got features {name!r} with network {network!r}."
        )


def _pixels(_network: str | None) -> Features:
    return lambda x: x.flatten(1)


def _lpips(_network: str | None) -> Features:
    """The activations whose squared distances, weighted and averaged over the places, LPIPS sums."""
    network = copy.deepcopy(lpips_network())  # this one moves to the device of the pictures

    def features(x: Tensor) -> Tensor:
        if min(x.shape[-2:]) < LPIPS_SIDE:
            raise ValueError(
                f"features='lpips' needs pictures of at least {LPIPS_SIDE} x {LPIPS_SIDE} pixels, got "
                f"{x.shape[-1]} x {x.shape[-2]}; choose other features, for example 'latent'."
            )
        trunk: Any = network.to(x.device)
        parts = []
        for layer, head in zip(trunk.net(trunk.scaling_layer(_colour(x))), trunk.lins, strict=True):
            unit = layer / (layer.square().sum(dim=1, keepdim=True) + 1e-10).sqrt()
            weight = head.model[-1].weight.clamp_min(0)  # (1, C, 1, 1)
            parts.append((weight / (layer.shape[2] * layer.shape[3])).sqrt() * unit)
        return torch.cat([part.flatten(1) for part in parts], dim=1).to(x.dtype)

    return features


def _dino(source: str | None) -> Features:
    """The class token of the last layer, of the picture brought to the network's size."""
    network = _vision_transformer(str(source))
    size = network.config.image_size

    def features(x: Tensor) -> Tensor:
        mean, std = (
            x.new_tensor(values, dtype=torch.float32)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD)
        )
        resized = F.interpolate(_colour(x), (size, size), mode="bicubic", antialias=True)
        hidden = network.to(x.device)(((resized + 1) / 2 - mean) / std).last_hidden_state  # (B, tokens, n)
        return hidden[:, 0].to(x.dtype)

    return features


def _vision_transformer(source: str) -> Any:
    """The network of a folder or hub id: of its numbers and its safetensors; code and names of classes are not read."""
    folder = Path(source)
    try:
        if not folder.is_dir():
            folder = _downloaded(source)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError("config.json is missing")
    except OSError as error:
        raise FileNotFoundError(
            f"The network {source!r} is neither a folder with config.json and weights nor a model that could be "
            "downloaded; give a folder written by save_pretrained, or choose other features, for example 'latent'."
        ) from error
    kind = read_json(folder / "config.json", folder).get("model_type")
    if not isinstance(kind, str) or kind not in DINO_CLASSES:
        raise ValueError(
            f"{source} holds a {kind!r}; features='dino' takes the vision transformers {', '.join(DINO_CLASSES)}."
        )
    refuse_code(folder)
    network: nn.Module = load_transformer(DINO_CLASSES[kind], folder, torch.float32)
    return network.eval().requires_grad_(False)


def _downloaded(source: str) -> Path:
    """The folder of a model of the hub: its config and its safetensors.

    Raises:
        OSError: it cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(source, allow_patterns=["config.json", "model*.safetensors", INDEX]))
    except HFValidationError as error:  # no name of a model
        raise FileNotFoundError(str(error)) from error


def _colour(x: Tensor) -> Tensor:
    """In float32 and with three channels: what the networks take."""
    return x.float().expand(-1, 3, -1, -1)


FEATURES: dict[str, Callable[[str | None], Features]] = {"pixels": _pixels, "lpips": _lpips, "dino": _dino}
