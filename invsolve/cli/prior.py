"""`invsolve prior pull`, and what `invsolve info` says of a prior of the model hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..priors import PRIORS, Card, find_card, pull
from ..priors.adm import ADM_MODELS, convert_adm
from ..priors.convert import convert_folder
from ..priors.dit import DIT_MODELS, convert_dit
from .options import CacheOption, path_of

__all__ = ["about_card", "convert_prior", "describe_card", "pull_prior"]

KIND = {"velocity": "flow matching", "epsilon": "diffusion", "v_prediction": "diffusion, v-prediction"}


@dataclass(frozen=True, kw_only=True)
class PullOptions:
    """The options of `prior pull`."""

    name: Annotated[str, typer.Argument(help="Of a prior; see `invsolve list priors`.")]
    cache_dir: CacheOption = None
    tiny: Annotated[bool, typer.Option("--tiny", help="Also its small autoencoder, for --memory low.")] = False


def pull_prior(options: PullOptions, console: Console, errors: Console) -> None:  # noqa: ARG001
    """Download a prior: weights as safetensors, configurations and tokenizers, and nothing else."""
    name, cache_dir, tiny = options.name, options.cache_dir, options.tiny
    if name in PRIORS:
        console.print(f"{name} is a part of invsolve; there is nothing to download.")
        return
    card = find_card(name)
    if card.gated:
        console.print(f"{card.repo} is gated: {card.licence}, {card.licence_url}")
    folders = [pull(name, cache_dir=cache_dir)]
    if tiny:
        folders.append(pull(name, cache_dir=cache_dir, tiny=True))
    for folder in folders:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        console.print(f"{name}: {size / 1e9:.2f} GB in {folder}")


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """The options of `prior convert`."""

    checkpoint: Annotated[
        Path,
        typer.Argument(
            parser=path_of,
            help="A .pt file of ADM (guided-diffusion), DiT or SiT, or a diffusers folder with .bin files.",
        ),
    ]
    out: Annotated[Path, typer.Option("-o", "--out", parser=path_of, metavar="PATH", help="Folder to write.")]
    model: Annotated[str | None, typer.Option(help=f"Of a .pt file: {', '.join([*ADM_MODELS, *DIT_MODELS])}.")] = None
    sha256: Annotated[str | None, typer.Option(help="What the checksum of a .pt file must be.")] = None
    autoencoder: Annotated[
        Path | None,
        typer.Option(parser=path_of, metavar="PATH", help="Of DiT and SiT: folder of their latents' AutoencoderKL."),
    ] = None


def convert_prior(options: ConvertOptions, console: Console, errors: Console) -> None:  # noqa: ARG001
    """Write weights that PyTorch saved as a folder of safetensors for --prior; code in them is never run."""
    checkpoint, out, model = options.checkpoint, options.out, options.model
    sha256, autoencoder = options.sha256, options.autoencoder
    if checkpoint.is_dir():
        if model is not None or sha256 is not None or autoencoder is not None:
            raise ValueError(
                f"--model, --sha256 and --autoencoder are for a .pt file, and {checkpoint} is a folder; leave them out."
            )
        folder = convert_folder(checkpoint, out)
    elif model in DIT_MODELS:
        if autoencoder is None:
            raise ValueError(
                f"The model {model} is one of latents; say with --autoencoder where the folder of their AutoencoderKL "
                "is, such as stabilityai/sd-vae-ft-ema."
            )
        folder = convert_dit(checkpoint, out, DIT_MODELS[model], autoencoder=autoencoder, sha256=sha256)
    elif model in ADM_MODELS:
        if autoencoder is not None:
            raise ValueError(f"The model {model} is one of pixels and has no autoencoder; leave --autoencoder out.")
        folder = convert_adm(checkpoint, out, ADM_MODELS[model], sha256=sha256)
    else:
        known = ", ".join([*ADM_MODELS, *DIT_MODELS])
        raise ValueError(f"Say which model {checkpoint} is with --model, one of {known}; got {model}.")
    console.print(f"converted {checkpoint.name} -> {folder}; use it with --prior {folder}")


def about_card(card: Card) -> str:
    """One line."""
    what = (
        "class or no prompt" if card.pipeline == "DiTPipeline" else "prompts" if card.parameters.text else "no prompt"
    )
    where = "latent" if card.factor > 1 else "pixel"
    return f"{card.repo} (hub): {where} {KIND[card.parameterisation]}, {card.size} x {card.size}, {what}"


def describe_card(card: Card) -> str:
    """Licence, size and memory, before anything is downloaded."""
    parameters = card.parameters
    held = 2 * parameters.network + 4 * parameters.autoencoder
    gated = ", accepted on the hub before the download" if card.gated else ""
    rows = {
        "repository": f"{card.repo}, revision {card.revision or 'newest'}",
        "licence": f"{card.licence}{gated}; {card.licence_url}",
        "model": f"{card.network}, {card.parameterisation} on a {card.schedule} path"
        + (f", time grid shifted by {card.shift:g}" if card.shift else ""),
        "pictures": f"{card.size} x {card.size} in training; padded to multiples of {card.multiple}",
        "latents": "none" if card.factor == 1 else f"{card.latent_channels} channels, 1/{card.factor} of the size",
        "parameters": f"network {_count(parameters.network)}, autoencoder {_count(parameters.autoencoder)}, "
        f"text encoders {_count(parameters.text)}",
        "memory": f"weights {held / 1e9:.1f} GB (network in bfloat16, autoencoder in float32)"
        + (f"; while the prompt is encoded {2 * parameters.text / 1e9:.1f} GB" if parameters.text else ""),
        "guidance": f"{card.guidance:g}" if card.parameters.text or card.guidance != 1 else "none",
        "tiny autoencoder": card.tiny_autoencoder or "none",
    }
    width = max(map(len, rows))
    return "\n".join(f"  {key:{width}}  {value}" for key, value in rows.items())


def _count(n: int) -> str:
    return "none" if n == 0 else f"{n / 1e9:.2f} billion" if n >= 1e9 else f"{n / 1e6:.1f} million"
