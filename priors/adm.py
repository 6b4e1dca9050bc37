"""Checkpoints of OpenAI's guided-diffusion ("ADM") as the folder of a diffusers pipeline, which `load_prior` reads.

The networks are those of Dhariwal & Nichol, arXiv 2105.05233: the authors' unconditional one of ImageNet
(`256x256_diffusion_uncond.pt`), and the one of faces that the authors of DPS (Chung et al., arXiv 2209.14687) published
(`ffhq_10m.pt`).  DPS, RED-diff and DAPS report their results with both.  A `UNet2DModel` computes the same function
from the same weights; only the learned variance, the second half of the output channels, is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoints import check_tensors, new_folder, read_checkpoint, require_empty
from .files import quiet_diffusers

__all__ = ["ADM_MODELS", "AdmConfig", "convert_adm", "unet_weights"]

GROUPS = 32  # of every normalisation
PICTURE = 3  # channels of it
RESIDUAL = {  # layers of a residual block, here and in diffusers
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",  # where the number of channels changes
}


@dataclass(frozen=True)
class AdmConfig:
    """The shape of an ADM network with residual up- and downsampling and scale-shift normalisation.

    Arguments:
        image_size: side of the pictures in pixels.
        channels: width of the first level.
        channel_multiples: width of each level over `channels`.
        blocks: residual blocks of a level on the way down; there is one more on the way up.
        attention_resolutions: sides in pixels of the feature maps that have attention; the middle always has it.
        head_channels: width of an attention head.

    Raises:
        ValueError: if there is no such network, or no `UNet2DModel` like it.
    """

    image_size: int
    channels: int
    channel_multiples: tuple[int, ...]
    blocks: int
    attention_resolutions: tuple[int, ...]
    head_channels: int = 64

    def __post_init__(self) -> None:
        attending = {w for w, attends in zip(self.widths, self.attends, strict=True) if attends} | {self.widths[-1]}
        # UNet2DModel embeds the time in as many channels as its first level has, ADM in `channels`
        checks = {
            "channel_multiples that begin with 1": self.channel_multiples[0] == 1,
            f"channels that {GROUPS} divides": self.channels % GROUPS == 0,
            "an image_size that halves once per level": self.image_size % 2 ** (len(self.widths) - 1) == 0,
            "attention on widths that head_channels divides": all(w % self.head_channels == 0 for w in attending),
        }
        if missing := [words for words, holds in checks.items() if not holds]:
            raise ValueError(f"{self} is no network that can be converted; give it {' and '.join(missing)}.")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * multiple for multiple in self.channel_multiples)

    @property
    def attends(self) -> tuple[bool, ...]:
        """Whether each level has attention after its residual blocks."""
        return tuple(self.image_size >> level in self.attention_resolutions for level in range(len(self.widths)))

    def unet(self) -> Any:
        """The `UNet2DModel` that computes the same function, on the meta device: shapes without weights."""
        from diffusers import UNet2DModel

        with torch.device("meta"):
            return UNet2DModel(
                sample_size=self.image_size,
                in_channels=PICTURE,
                out_channels=PICTURE,
                block_out_channels=self.widths,
                layers_per_block=self.blocks,
                down_block_types=tuple("AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in self.attends),
                up_block_types=tuple("AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in self.attends[::-1]),
                downsample_type="resnet",
                upsample_type="resnet",
                resnet_time_scale_shift="scale_shift",
                attention_head_dim=self.head_channels,
                norm_num_groups=GROUPS,
                attn_norm_num_groups=GROUPS,  # else the attention in the middle has no normalisation
                norm_eps=1e-5,
                act_fn="silu",
                flip_sin_to_cos=True,
                freq_shift=0,
            )


ADM_MODELS: dict[str, AdmConfig] = {
    "ffhq-256": AdmConfig(256, 128, (1, 1, 2, 2, 4, 4), blocks=1, attention_resolutions=(16,)),
    "imagenet-256": AdmConfig(256, 256, (1, 1, 2, 2, 4, 4), blocks=2, attention_resolutions=(32, 16, 8)),
}


def convert_adm(checkpoint: str | Path, folder: str | Path, config: AdmConfig, *, sha256: str | None = None) -> Path:
    """Write an ADM checkpoint as the folder of a diffusers pipeline, with the linear betas that it was trained on.

    Arguments:
        checkpoint: the published .pt file; code in it is never run.
        folder: where to write; it must not exist, or be empty.
        config: the shape of the network, such as one of `ADM_MODELS`.
        sha256: what the checksum of the checkpoint has to be; None does not check it.

    Returns:
        The folder, for `load_prior`.

    Raises:
        ValueError: the folder holds something, or the checkpoint is missing, damaged or of another network; nothing is
            written then.
    """
    from diffusers import DDPMPipeline, DDPMScheduler

    checkpoint, folder = Path(checkpoint), Path(folder)
    require_empty(folder)
    weights = unet_weights(read_checkpoint(checkpoint, "an ADM network", sha256), config)
    unet = config.unet()
    unet.load_state_dict(weights, assign=True)
    scheduler = DDPMScheduler(1000, 1e-4, 0.02, "linear", variance_type="fixed_large", prediction_type="epsilon")
    pipeline: Any = DDPMPipeline(unet, scheduler)
    with new_folder(folder) as written, quiet_diffusers():
        pipeline.save_pretrained(written, safe_serialization=True)
    return folder


def unet_weights(weights: Mapping[str, Tensor], config: AdmConfig) -> dict[str, Tensor]:
    """The weights of the `UNet2DModel` from those of an ADM network, in float32.

    Arguments:
        weights: of ADM, by its names.
        config: the shape of the network.

    Raises:
        ValueError: if tensors are missing, too many or of another shape.
    """
    shapes = {name: value.shape for name, value in config.unet().state_dict().items()}
    expected, sources = {}, {}
    for old, new in _layers(config).items():
        for kind in ("weight", "bias"):
            if (shape := shapes.get(f"{new[0]}.{kind}")) is None:
                continue  # a block without a skip connection
            sources[f"{old}.{kind}"] = [f"{name}.{kind}" for name in new]
            rows = (2 if old == "out.2" else len(new)) * shape[0]  # mean and variance; query, key and value
            convolution = (1,) if kind == "weight" and old.endswith(("qkv", "proj_out")) else ()
            expected[f"{old}.{kind}"] = (rows, *shape[1:], *convolution)
    check_tensors(weights, expected, "ADM network")
    converted = {}
    for old, names in sources.items():
        value = weights[old].float()
        if len(names) == 3:  # rows are (head, one of query key value, channel of the head)
            parts = [part.flatten(0, 1) for part in value.unflatten(0, (-1, 3, config.head_channels)).unbind(1)]
        else:
            parts = [value[: len(value) // 2] if old.startswith("out.2.") else value]
        for name, part in zip(names, parts, strict=True):
            converted[name] = part.reshape(shapes[name]).clone()  # safetensors refuses tensors that share memory
    return converted


def _layers(config: AdmConfig) -> dict[str, tuple[str, ...]]:
    """For each layer of ADM the one of diffusers with its weights, or the three among which they are divided."""
    layers: dict[str, tuple[str, ...]] = {
        "time_embed.0": ("time_embedding.linear_1",),
        "time_embed.2": ("time_embedding.linear_2",),
        "input_blocks.0.0": ("conv_in",),
        "out.0": ("conv_norm_out",),
        "out.2": ("conv_out",),
    }

    def residual(old: str, new: str) -> None:
        layers.update({f"{old}.{a}": (f"{new}.{b}",) for a, b in RESIDUAL.items()})

    def attention(old: str, new: str) -> None:
        layers[f"{old}.norm"] = (f"{new}.group_norm",)
        layers[f"{old}.qkv"] = (f"{new}.to_q", f"{new}.to_k", f"{new}.to_v")
        layers[f"{old}.proj_out"] = (f"{new}.to_out.0",)

    def level(side: str, place: int, new: str, blocks: int, attends: bool) -> int:
        for block in range(blocks):
            residual(f"{side}.{place + block}.0", f"{new}.resnets.{block}")
            if attends:
                attention(f"{side}.{place + block}.1", f"{new}.attentions.{block}")
        return place + blocks

    last, place = len(config.widths) - 1, 1
    for k, attends in enumerate(config.attends):
        place = level("input_blocks", place, f"down_blocks.{k}", config.blocks, attends)
        if k < last:  # downsampling is a block of its own
            residual(f"input_blocks.{place}.0", f"down_blocks.{k}.downsamplers.0")
            place += 1
    residual("middle_block.0", "mid_block.resnets.0")
    attention("middle_block.1", "mid_block.attentions.0")
    residual("middle_block.2", "mid_block.resnets.1")
    place = 0
    for k, attends in enumerate(config.attends[::-1]):
        place = level("output_blocks", place, f"up_blocks.{k}", config.blocks + 1, attends)
        if k < last:  # upsampling is at the end of the level's last block
            residual(f"output_blocks.{place - 1}.{1 + attends}", f"up_blocks.{k}.upsamplers.0")
    return layers
