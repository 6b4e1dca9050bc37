"""How each network class of diffusers is called.

The classes are a closed list: nothing is imported by a name in a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .backbone import Backbone, Nothing
from .base import pad_to_multiple

__all__ = [
    "BACKBONES",
    "FREQUENCY_SHIFT",
    "OURS",
    "SIT",
    "Plain",
    "find_backbone",
    "trained_size",
]

CLIP_TOKENS = 77
FREQUENCY_SHIFT = "_downscale_freq_shift"  # in a DiT's config.json; diffusers passes over names with an underscore
SIT = "SiTTransformer2DModel"  # our name for a DiTTransformer2DModel that is called as SiT; diffusers has none
OURS = "ResidualUNet"  # of network.py, which takes x_t in float32 also in half precision
TRAINED_TEXT_TOKENS = {"sd3": 77 + 256, "flux": 512, "sana": 300}  # of the encoders' outputs, as the pipelines pad them


class Plain(Backbone):
    """UNet2DModel: pixels or latents, without a condition."""

    @property
    def channels(self) -> int:
        return int(self.network.config["in_channels"])

    @property
    def size_multiple(self) -> int:
        return int(2 ** (len(self.network.config["down_block_types"]) - 1))

    def call(self, x: Tensor, timestep: Tensor, condition: dict[str, Tensor]) -> Tensor:
        return self.network(x, timestep, **condition).sample


class StableDiffusion(Backbone):
    """The U-Nets of Stable Diffusion 1 and 2, and of SDXL, which also takes pooled text and sizes in pixels."""

    latent = True
    text_keys: ClassVar[tuple[str, ...]] = ("encoder_hidden_states",)
    nothing: ClassVar[Nothing] = "empty prompt"
    pipeline = "StableDiffusionPipeline"

    @property
    def size_multiple(self) -> int:
        return int(2 ** (len(self.network.config.down_block_types) - 1))

    def zeros(self) -> dict[str, Tensor]:
        return {"encoder_hidden_states": torch.zeros(1, CLIP_TOKENS, self.network.config.cross_attention_dim)}

    def call(self, x: Tensor, timestep: Tensor, condition: dict[str, Tensor]) -> Tensor:
        return self.network(x, timestep, **condition).sample


class SDXL(StableDiffusion):
    """SDXL: told the size of the picture, (H, W, 0, 0, H, W), as if it had been trained on whole pictures of it."""

    text_keys = ("encoder_hidden_states", "text_embeds")
    nothing = "zeros"
    pipeline = "StableDiffusionXLPipeline"

    def zeros(self) -> dict[str, Tensor]:
        config = self.network.config
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        return super().zeros() | {"text_embeds": torch.zeros(1, pooled)}

    def call(self, x: Tensor, timestep: Tensor, condition: dict[str, Tensor]) -> Tensor:
        height, width = (n * self.pixels_per_latent for n in x.shape[-2:])
        time_ids = x.new_tensor([[height, width, 0, 0, height, width]]).expand(len(x), -1)
        added = {"text_embeds": condition["text_embeds"], "time_ids": time_ids}
        text = condition["encoder_hidden_states"]
        return self.network(x, timestep, encoder_hidden_states=text, added_cond_kwargs=added).sample


class SD3(Backbone):
    """The transformers of Stable Diffusion 3 and 3.5; each text encoder was left out in training, as zeros."""

    latent = True
    text_keys = ("encoder_hidden_states", "pooled_projections")
    nothing = "zeros"
    encodes_no_negative = True
    pipeline = "StableDiffusion3Pipeline"

    def zeros(self) -> dict[str, Tensor]:
        config = self.network.config
        text = torch.zeros(1, TRAINED_TEXT_TOKENS["sd3"], config.joint_attention_dim)
        return {"encoder_hidden_states": text, "pooled_projections": torch.zeros(1, config.pooled_projection_dim)}

    def call(self, x: Tensor, timestep: Tensor, condition: dict[str, Tensor]) -> Tensor:
        return self.network(hidden_states=x, timestep=timestep, **condition).sample


class Flux(Backbone):
    """FLUX.1: latents in patches of 2 x 2 as tokens; `dev` takes the guidance scale as an input."""

    latent = True
    text_keys = ("encoder_hidden_states", "pooled_projections")
    nothing = "empty prompt"
    pipeline = "FluxPipeline"
    trained_side = 128  # 1024 pixels

    @property
    def channels(self) -> int:
        return int(self.network.config.in_channels) // 4

    @property
    def size_multiple(self) -> int:
        return 2

    @property
    def embeds_guidance(self) -> bool:
        return bool(self.network.config.guidance_embeds)

    def zeros(self) -> dict[str, Tensor]:
        config = self.network.config
        text = torch.zeros(1, TRAINED_TEXT_TOKENS["flux"], config.joint_attention_dim)
        return {"encoder_hidden_states": text, "pooled_projections": torch.zeros(1, config.pooled_projection_dim)}

    def call(self, x: Tensor, timestep: Tensor, condition: dict[str, Tensor]) -> Tensor:
        rows, columns = (n // 2 for n in x.shape[-2:])
        tokens = nn.functional.pixel_unshuffle(x, 2).flatten(2).mT  # (B, rows * columns, 4 C)
        place = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).to(x)
        out = self.network(
            hidden_states=tokens,
            timestep=timestep / 1000,
            img_ids=nn.functional.pad(place, (1, 0)),  # (0, row, column)
            txt_ids=x.new_zeros(condition["encoder_hidden_states"].shape[1], 3),
            **condition,
        ).sample
        return nn.functional.pixel_shuffle(out.mT.unflatten(2, (rows, columns)), 2)


class DiT(Backbone):
    """DiT on ImageNet: the condition is a class, or the one after the last for none; it takes squares only.

    The authors embed the time with the frequencies 10000^(-i / 128), diffusers' class with 10000^(-i / 127), which its
    config cannot change; networks that `dit.py` converted say that theirs are the authors'.
    """

    latent = True

    def __init__(self, network: nn.Module, pixels_per_latent: int = 1) -> None:
        super().__init__(network, pixels_per_latent)
        if self.network.config.get(FREQUENCY_SHIFT) == 0:
            for block in self.network.transformer_blocks:
                block.norm1.emb.time_proj.downscale_freq_shift = 0

    def zeros(self) -> dict[str, Tensor]:
        return {"class_labels": torch.tensor([int(self.network.config.num_embeds_ada_norm)])}

    def call(self, x: Tensor, timestep: Tensor, condition: dict[str, Tensor]) -> Tensor:
        square, (height, width) = pad_to_multiple(x, max(x.shape[-2:]))
        return self.network(square, timestep=timestep, **condition).sample[..., :height, :width]


class SiT(DiT):
    """SiT, a DiT with a time of its own: s = 1 at the data, and it predicts dx/ds = data - noise (arXiv 2401.08740)."""

    def call(self, x: Tensor, timestep: Tensor, condition: dict[str, Tensor]) -> Tensor:
        return -super().call(x, 1 - timestep / 1000, condition)


class Sana(Backbone):
    """Sana's linear transformer, under Gemma's embeddings of the prompt."""

    latent = True
    text_keys = ("encoder_hidden_states", "encoder_attention_mask")
    nothing = "empty prompt"
    pipeline = "SanaPipeline"
    autoencoder_recomputes = False  # AutoencoderDC

    def zeros(self) -> dict[str, Tensor]:
        tokens = TRAINED_TEXT_TOKENS["sana"]
        text = torch.zeros(1, tokens, self.network.config.caption_channels)
        return {"encoder_hidden_states": text, "encoder_attention_mask": torch.ones(1, tokens, dtype=torch.long)}

    def call(self, x: Tensor, timestep: Tensor, condition: dict[str, Tensor]) -> Tensor:
        return self.network(x, timestep=timestep * self.network.config.timestep_scale, **condition).sample


BACKBONES: dict[str, type[Backbone]] = {
    "UNet2DModel": Plain,
    "UNet2DConditionModel": StableDiffusion,
    "SD3Transformer2DModel": SD3,
    "FluxTransformer2DModel": Flux,
    "DiTTransformer2DModel": DiT,
    SIT: SiT,
    "SanaTransformer2DModel": Sana,
}


def trained_size(config: Mapping[str, Any]) -> int | None:
    """Side of x_t in training, where a network's config says it; of FLUX, whose does not, that of 1024 pixels.

    Raises:
        ValueError: it is not a size.
    """
    kind = BACKBONES.get(str(config.get("_class_name")))
    size = config.get("sample_size", None if kind is None else kind.trained_side)
    sides = size if isinstance(size, list | tuple) else [size]
    if size is None:
        return None
    if not sides or not all(type(side) is int and side >= 1 for side in sides):
        raise ValueError(f"The network's config has sample_size {size!r}; expected is a whole number of at least 1.")
    return max(sides)


def find_backbone(config: Mapping[str, Any]) -> tuple[Any, type[Backbone]]:
    """The network class that a config.json names, and how it is called.

    Raises:
        ValueError: it is neither ours nor one of `BACKBONES`, or one that knows classes of its own.
    """
    import diffusers

    name = str(config.get("_class_name"))
    if name == "Transformer2DModel" and config.get("norm_type") == "ada_norm_zero":
        name = "DiTTransformer2DModel"  # as it was called when DiT was published
    if name == OURS:
        from .network import Residual, ResidualUNet

        return ResidualUNet, Residual
    if name not in BACKBONES:
        raise ValueError(f"The prior's network is a {name!r}; known networks are {', '.join([OURS, *BACKBONES])}.")
    if name == "UNet2DModel" and not (
        config.get("class_embed_type") is None and config.get("num_class_embeds") is None
    ):
        raise ValueError("The prior is a UNet2DModel that needs a class, not supported; DiT takes one as its prompt.")
    if name == SIT:
        return diffusers.DiTTransformer2DModel, SiT
    is_xl = config.get("addition_embed_type") == "text_time"
    return getattr(diffusers, name), SDXL if is_xl else BACKBONES[name]
