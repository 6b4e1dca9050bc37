"""`invsolve prior pull`, and what `invsolve info` says of a prior of the model hub."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ..priors import PRIORS, Card, find_card, pull
from ..priors.adm import ADM_MODELS, convert_adm
from ..priors.convert import convert_folder
from ..priors.dit import DIT_MODELS, convert_dit

__all__ = ["about_card", "convert_prior", "describe_card", "pull_prior"]

KIND = {"velocity": "flow matching", "epsilon": "diffusion", "v_prediction": "diffusion, v-prediction"}


def pull_prior(name: str, cache_dir: Path | None, tiny: bool, console: Console) -> None:
    """Download a prior of the hub, or find it in the cache, and say where it is.

    Raises:
        ValueError: it is none of the hub's, or cannot be had.
    """
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


def convert_prior(
    checkpoint: Path, out: Path, model: str | None, sha256: str | None, autoencoder: Path | None, console: Console
) -> None:
    """Write an ADM, DiT or SiT checkpoint, or a diffusers folder with .bin files, as a folder that `--prior` takes.

    Raises:
        ValueError: the model is unknown, the folder not empty, the checkpoint not what it should be, or an autoencoder
            given to a model without, or not to one with.
    """
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
