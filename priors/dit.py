"""Checkpoints of DiT and SiT as folders that `load_prior` reads: latent transformers of ImageNet's classes.

DiT is the diffusion model of Peebles & Xie, arXiv 2212.09748 (`DiT-XL-2-256x256.pt`, `DiT-XL-2-512x512.pt`), SiT the
same network trained as a flow by Ma et al., arXiv 2401.08740 (`SiT-XL-2-256x256.pt`: linear path, velocity).  A
`DiTTransformer2DModel` computes the same function from the same weights, with two things that our backbones add, as
config.json tells them: the frequencies of the time that the authors trained with, and SiT's direction of time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .backbones import FREQUENCY_SHIFT, SIT
from .checkpoints import check_tensors, new_folder, read_checkpoint, require_empty
from .files import quiet_diffusers, read_json, refuse_code
from .folder import load_network
from .latent import LatentPrior

__all__ = ["DIT_MODELS", "DitConfig", "convert_dit", "transformer_weights"]

CHANNELS, FACTOR, SCALE = 4, 8, 0.18215  # of the latents of Stable Diffusion 1
# The authors' running average of the weights includes this constant and drifts from it by its rounding: by 2e-4 after
# 10 000 steps in float32, and no further.
DRIFT = 1e-3
EMBEDDERS = {  # here once, in diffusers in every block
    "t_embedder.mlp.0": "timestep_embedder.linear_1",
    "t_embedder.mlp.2": "timestep_embedder.linear_2",
    "y_embedder.embedding_table": "class_embedder.embedding_table",
}
BLOCK = {
    "adaLN_modulation.1": ("norm1.linear",),
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),  # its rows are theirs, one after the other
    "attn.proj": ("attn1.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
}


@dataclass(frozen=True)
class DitConfig:
    """The shape of a DiT.

    Arguments:
        image_size: side of the pictures in pixels, 8 per element of the latents.
        depth: blocks.
        width: of the tokens.
        heads: of the attention.
        patch: side of a token in elements of the latents.
        classes: that it knows; one more stands for none.
        flow: whether it is a SiT.

    Raises:
        ValueError: if there is no such network.
    """

    image_size: int
    depth: int
    width: int
    heads: int
    patch: int = 2
    classes: int = 1000
    flow: bool = False

    def __post_init__(self) -> None:
        checks = {
            f"an image_size that {FACTOR} * patch divides": self.image_size % (FACTOR * self.patch) == 0,
            "a width that heads divides": self.width % self.heads == 0,
            "a width that 4 divides": self.width % 4 == 0,  # sine and cosine of row and column
        }
        if missing := [words for words, holds in checks.items() if not holds]:
            raise ValueError(f"{self} is no network that can be converted; give it {' and '.join(missing)}.")

    @property
    def name(self) -> str:
        """Of the kind of network."""
        return "SiT" if self.flow else "DiT"

    def transformer(self) -> Any:
        """The `DiTTransformer2DModel` that computes the same function, on the meta device: shapes without weights."""
        from diffusers import DiTTransformer2DModel

        with torch.device("meta"):
            return DiTTransformer2DModel(
                num_attention_heads=self.heads,
                attention_head_dim=self.width // self.heads,
                in_channels=CHANNELS,
                out_channels=2 * CHANNELS,  # a learned variance, of no use in SiT; our backbones leave it out
                num_layers=self.depth,
                sample_size=self.image_size // FACTOR,
                patch_size=self.patch,
                num_embeds_ada_norm=self.classes,
                norm_eps=1e-6,
            )

    def positions(self) -> Tensor:
        """What `DiTTransformer2DModel` adds to the tokens (1, n, width), sines and cosines of row and column."""
        from diffusers.models.embeddings import PatchEmbed

        side = self.image_size // FACTOR
        embedding: Any = PatchEmbed(side, side, self.patch, CHANNELS, self.width)
        positions: Tensor = embedding.pos_embed
        return positions


DIT_MODELS: dict[str, DitConfig] = {
    "dit-xl-256": DitConfig(256, depth=28, width=1152, heads=16),
    "dit-xl-512": DitConfig(512, depth=28, width=1152, heads=16),
    "sit-xl-256": DitConfig(256, depth=28, width=1152, heads=16, flow=True),
}


def convert_dit(
    checkpoint: str | Path, folder: str | Path, config: DitConfig, *, autoencoder: str | Path, sha256: str | None = None
) -> Path:
    """Write a DiT or SiT checkpoint as a folder with transformer/, scheduler/ and vae/.

    Arguments:
        checkpoint: the published .pt file; code in it is never run.
        folder: where to write; it must not exist, or be empty.
        config: the shape of the network, such as one of `DIT_MODELS`.
        autoencoder: folder of the `AutoencoderKL` of the latents, such as stabilityai/sd-vae-ft-ema.
        sha256: what the checksum of the checkpoint has to be; None does not check it.

    Returns:
        The folder, for `load_prior`.

    Raises:
        ValueError: the folder holds something, the autoencoder is another, or the checkpoint is missing, damaged or of
            another network; nothing is written then.
    """
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    checkpoint, folder = Path(checkpoint), Path(folder)
    require_empty(folder)
    coder = _autoencoder(Path(autoencoder))
    given = read_checkpoint(checkpoint, f"a {config.name} network", sha256)
    weights = transformer_weights(given, config)
    _check_positions(given["pos_embed"], config)
    transformer = config.transformer()
    transformer.load_state_dict(weights, assign=True)
    scheduler: Any = (
        FlowMatchEulerDiscreteScheduler(shift=1.0)
        if config.flow
        else DDIMScheduler(1000, 1e-4, 0.02, "linear", clip_sample=False)
    )
    with new_folder(folder) as written, quiet_diffusers():
        transformer.save_pretrained(written / "transformer")
        scheduler.save_pretrained(written / "scheduler")
        coder.save_pretrained(written / "vae")
        path = written / "transformer" / "config.json"
        told = json.loads(path.read_text()) | {FREQUENCY_SHIFT: 0} | ({"_class_name": SIT} if config.flow else {})
        path.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n")
    return folder


def transformer_weights(weights: Mapping[str, Tensor], config: DitConfig) -> dict[str, Tensor]:
    """The weights of the `DiTTransformer2DModel` from those of a DiT, in float32.

    Arguments:
        weights: of DiT or SiT, by their names.
        config: the shape of the network.

    Raises:
        ValueError: if tensors are missing, too many or of another shape.
    """
    shapes = {name: tuple(value.shape) for name, value in config.transformer().state_dict().items()}
    expected: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, (config.image_size // FACTOR // config.patch) ** 2, config.width)
    }
    sources: dict[str, list[str]] = {}
    for old, new in _layers(config).items():
        for kind in ("weight", "bias"):
            if (shape := shapes.get(f"{new[0]}.{kind}")) is None:
                continue  # the table of classes has no bias
            sources[f"{old}.{kind}"] = [f"{name}.{kind}" for name in new]
            rows = 3 * shape[0] if old.endswith("qkv") else shape[0]
            expected[f"{old}.{kind}"] = (rows, *shape[1:])
    check_tensors(weights, expected, f"{config.name} network")
    converted = {}
    for old, names in sources.items():
        value = weights[old].float()
        parts = value.chunk(3) if ".qkv." in old else [value] * len(names)
        for name, part in zip(names, parts, strict=True):
            converted[name] = part.clone()  # safetensors refuses tensors that share memory
    return converted


def _layers(config: DitConfig) -> dict[str, tuple[str, ...]]:
    """For each layer of DiT those of diffusers that have its weights: copies, or parts of its rows."""
    blocks = [f"transformer_blocks.{k}" for k in range(config.depth)]
    layers: dict[str, tuple[str, ...]] = {
        "x_embedder.proj": ("pos_embed.proj",),
        "final_layer.adaLN_modulation.1": ("proj_out_1",),
        "final_layer.linear": ("proj_out_2",),
    }
    layers |= {old: tuple(f"{block}.norm1.emb.{new}" for block in blocks) for old, new in EMBEDDERS.items()}
    for k, block in enumerate(blocks):
        layers |= {f"blocks.{k}.{old}": tuple(f"{block}.{name}" for name in new) for old, new in BLOCK.items()}
    return layers


def _check_positions(positions: Tensor, config: DitConfig) -> None:
    """Whether the network was trained with the positions that diffusers gives it."""
    difference = float((positions.float() - config.positions()).abs().max())
    if not difference < DRIFT:  # nor NaN
        raise ValueError(
            f"The checkpoint's pos_embed is not the fixed one of {config.name}: it differs from sines and cosines by "
            f"{difference:.2g}, at most {DRIFT:g} is rounding; give a checkpoint of the authors' network."
        )


def _autoencoder(folder: Path) -> Any:
    """The autoencoder of the latents on which the networks were trained."""
    from diffusers import AutoencoderKL

    advice = "give the folder of an AutoencoderKL such as stabilityai/sd-vae-ft-ema."
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not the folder of an autoencoder: it has no config.json; {advice}")
    refuse_code(folder)
    name = read_json(folder / "config.json", folder).get("_class_name")
    if name != "AutoencoderKL":
        raise ValueError(f"{folder} holds a {name!r} where an autoencoder is expected; {advice}")
    coder = load_network(AutoencoderKL, folder)
    got = coder.config.latent_channels, LatentPrior.factor_of(coder), coder.config.scaling_factor
    if got != (CHANNELS, FACTOR, SCALE):
        raise ValueError(
            f"{folder} holds an autoencoder of other latents, with (channels, factor, scale) = {got} where "
            f"{(CHANNELS, FACTOR, SCALE)} is expected; {advice}"
        )
    return coder
