"""Priors of the model hub: their cards, and their download as safetensors, JSON and tokenizer files."""

from __future__ import annotations

import errno
import functools
import os
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict

__all__ = ["Card", "Parameters", "find_card", "load_cards", "pull"]

OTHERWISE = "or use --prior natural, which is part of invsolve"
PARTS = (
    "unet",
    "transformer",
    "vae",
    "scheduler",
    *(f"{p}{n}" for p in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")),
)
VARIANTS = ("fp16", "bf16", "int4", "non_ema")  # second copies of weights have these in their names
TEXT_FILES = ("*.json", "*.txt", "*.model")  # configs, merges and SentencePiece models


class _Typed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Parameters(_Typed):
    """Numbers of parameters."""

    network: int
    autoencoder: int
    text: int


class Card(_Typed):
    """What is known of a prior of the hub before it is there; all of it but the licence is in its files, too.

    Arguments:
        repo: on the hub.
        revision: commit; None for the newest.
        variant: of the weights' files, such as fp16.
        licence, licence_url, gated: its terms, and whether they must be accepted on the hub first.
        pipeline, network: classes of diffusers.
        parameterisation, schedule, shift: what the network predicts on which path; shift of the time grid.
        latent_channels, latent_scale, latent_shift, factor: of the autoencoder; None and 1 without one.
        multiple: height and width of pictures are padded to multiples of it.
        size: side of the pictures in training; larger ones are predicted in windows.
        prompt, guidance: defaults.
        unconditional: what stands for no prompt.
        tiny_autoencoder: repository of a small autoencoder of the same latents.
        parameters: numbers of them.
    """

    repo: str
    revision: str | None
    variant: str | None
    licence: str
    licence_url: str
    gated: bool
    pipeline: str
    network: str
    parameterisation: Literal["velocity", "epsilon", "v_prediction"]
    schedule: Literal["flow", "vp"]
    shift: float | None
    latent_channels: int | None
    latent_scale: float | None
    latent_shift: float | None
    factor: int
    multiple: int
    size: int
    prompt: str
    guidance: float
    unconditional: Literal["zeros", "empty", "none"]
    tiny_autoencoder: str | None
    parameters: Parameters


@functools.cache
def load_cards() -> dict[str, Card]:
    """The cards of cards.yaml by the name of the prior."""
    text = (Path(__file__).parent / "cards.yaml").read_text(encoding="utf-8")
    return {name: Card(**fields) for name, fields in yaml.safe_load(text).items()}


def find_card(name: str) -> Card:
    """The card of that name.

    Raises:
        ValueError: there is none.
    """
    cards = load_cards()
    if name not in cards:
        raise ValueError(f"Unknown hub prior {name!r}; choose one of {', '.join(cards)}.")
    return cards[name]


def pull(
    name: str, *, offline: bool = False, cache_dir: str | os.PathLike[str] | None = None, tiny: bool = False
) -> Path:
    """The folder of a hub prior, downloaded if it is not in the cache: no code, and weights once.

    Arguments:
        name: of a card.
        offline: use the cache only.
        cache_dir: of huggingface_hub; by default its own ($HF_HOME).
        tiny: the small autoencoder of the card instead of the prior.

    Raises:
        ValueError: no such card, or the prior cannot be had; the sentence says what to do.
    """
    card = find_card(name)
    repo = card.tiny_autoencoder if tiny else card.repo
    if repo is None:
        raise ValueError(f"The prior {name} has no tiny autoencoder; leave it out.")
    patterns = ["config.json", "*.safetensors"] if tiny else allowed_files(card)
    return _download(name, repo, patterns, card, offline, cache_dir)


def allowed_files(card: Card) -> list[str]:
    """Patterns of the files of a prior; checkpoints in one file, which lie beside the parts, are not among them."""
    if card.factor == 1:  # a pixel model lies in the root
        return ["config.json", "model_index.json", "scheduler_config.json", "diffusion_pytorch_model.safetensors"]
    weights = "*.safetensors" if card.variant is None else f"*.{card.variant}*.safetensors"
    return ["model_index.json", *(f"{part}/{pattern}" for part in PARTS for pattern in (weights, *TEXT_FILES))]


def ignored_files(card: Card) -> list[str]:
    """Patterns of second copies in other precisions."""
    return [f"*.{variant}*" for variant in VARIANTS if variant != card.variant]


def _download(
    name: str, repo: str, patterns: list[str], card: Card, offline: bool, cache_dir: str | os.PathLike[str] | None
) -> Path:
    """huggingface_hub's snapshot, with one sentence for each way in which it can fail."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            repo,
            revision=card.revision if repo == card.repo else None,
            allow_patterns=patterns,
            ignore_patterns=ignored_files(card),
            local_files_only=offline,
            cache_dir=None if cache_dir is None else Path(cache_dir),
        )
    except Exception as error:  # of huggingface_hub, its HTTP client and the operating system
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise  # which says what is wrong with the disk
        raise ValueError(f"{_sentence(error, name, repo, card, offline)}, {OTHERWISE}.") from error
    if not any(Path(folder).rglob("*.safetensors")):
        raise ValueError(
            f"{repo} has its weights as code only, which invsolve does not run; download it "
            f"yourself (`huggingface-cli download {repo} --local-dir FOLDER`), make safetensors of its tensors with "
            f"`invsolve prior convert FOLDER -o OUT`, and use --prior OUT, {OTHERWISE}."
        )
    return Path(folder)


def _sentence(error: Exception, name: str, repo: str, card: Card, offline: bool) -> str:
    """What is wrong and what to do."""
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    if isinstance(error, hub.GatedRepoError):
        return (
            f"{repo} is gated: accept its licence ({card.licence}, {card.licence_url}) on its page of the hub, run "
            "`huggingface-cli login`, and try again"
        )
    if isinstance(error, hub.RevisionNotFoundError):
        return f"{repo} has no revision {card.revision}; it may have been withdrawn: take another prior"
    if isinstance(error, hub.RepositoryNotFoundError):
        return (
            f"{repo} is not on the hub, or only for those who are logged in: run `huggingface-cli login` if you have "
            "access"
        )
    why = f"its download failed ({type(error).__name__})"
    if offline or constants.HF_HUB_OFFLINE:
        why = "--offline or HF_HUB_OFFLINE forbids a download"
    elif isinstance(error, hub.LocalEntryNotFoundError):
        why = "the hub is out of reach"
    return f"The prior {name} is not in the cache and {why}; run `invsolve prior pull {name}` where there is a network"
