"""Priors: pretrained models of images behind one interface, and exact ones with closed forms."""

from __future__ import annotations

if __name__ == "priors":  # found from the root of the repository, where it would be a second copy of every class
    raise ImportError("priors is a part of invsolve: import invsolve.priors instead.")

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ..devices import has_fast_bfloat16, parse_dtype
from ..tables import Table
from .backbones import BACKBONES
from .base import Endpoints, Guided, Metered, Prior, Rescheduled
from .covariance import Covariance, Diagonal, Full, PowerLaw, Stationary
from .decoder import LinearDecoder
from .denoiser import DenoiserPrior
from .folder import default_dtype as folder_dtype
from .folder import load_folder
from .gaussian import GaussianPrior
from .grey import GreyPrior, as_grey
from .hub import Card, find_card, load_cards, pull
from .latent import LatentPrior
from .memory import Mode, plan_memory
from .mixture import GaussianMixture
from .predictor import Guidance, NetworkPrior
from .prompts import Prompts
from .schedule import VE, DiscreteVP, LinearFlow, Schedule
from .tiles import TiledPrior

__all__ = [
    "PRIORS",
    "VE",
    "Card",
    "Covariance",
    "DenoiserPrior",
    "Diagonal",
    "DiscreteVP",
    "Endpoints",
    "Full",
    "GaussianMixture",
    "GaussianPrior",
    "GreyPrior",
    "Guidance",
    "Guided",
    "LatentPrior",
    "LinearDecoder",
    "LinearFlow",
    "Metered",
    "Mode",
    "NetworkPrior",
    "PowerLaw",
    "Prior",
    "Prompts",
    "Rescheduled",
    "Schedule",
    "Stationary",
    "TiledPrior",
    "as_grey",
    "default_dtype",
    "find_card",
    "load_cards",
    "load_folder",
    "load_prior",
    "pull",
]

BUNDLED = Path(__file__).parent


def natural(dtype: torch.dtype = torch.float32) -> Prior:
    """The bundled pixel-space flow-matching prior for photographs; see the model card beside its weights."""
    return load_folder(BUNDLED / "natural", dtype)


def natural_latent(dtype: torch.dtype = torch.float32) -> Prior:
    """The bundled latent flow-matching prior for photographs, with its autoencoder; see its model card."""
    return load_folder(BUNDLED / "natural-latent", dtype)


def gaussian(_dtype: torch.dtype = torch.float32) -> Prior:
    """A stationary Gaussian prior with the 1/f^2 spectrum of photographs: exact, instant, a Wiener filter's model."""
    return GaussianPrior(PowerLaw())


_ROWS: dict[str, Callable[[torch.dtype], Prior]] = {
    "natural": natural,
    "natural-latent": natural_latent,
    "gaussian": gaussian,
}
PRIORS: Table[Callable[[torch.dtype], Prior]] = Table("prior", _ROWS)


def default_dtype(name: str | os.PathLike[str], device: torch.device) -> torch.dtype:
    """The dtype of a prior's network where none is asked for.

    bfloat16 for hub priors wherever it is fast (see `has_fast_bfloat16`), and for the bundled networks on a CPU where
    it is; else float32.

    Arguments:
        name: as in `load_prior`.
        device: where to compute.
    """
    name = os.fspath(name)
    if name in load_cards():
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    return folder_dtype(BUNDLED / name if name in PRIORS else Path(name), device)


def load_prior(
    name: str | os.PathLike[str],
    dtype: torch.dtype | str = "auto",
    *,
    prompts: Prompts | None = None,
    memory: str = "fast",
    device: torch.device | None = None,
    offline: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Prior:
    """A prior by its name in PRIORS, from the folder of a diffusers pipeline or model, or from the model hub.

    Arguments:
        name: a name of PRIORS, a folder (see `load_folder`), or the name of a card (see `invsolve list priors`).
        dtype: of the network, or its name; "auto" is that of `default_dtype`.
        prompts: what a conditional network is asked with; by default what its card says, or nothing.
        memory: fast, balanced, low, or auto (see `priors/memory.py`); of folders and hub priors.
        device: where to compute; the CPU if not given.
        offline: take a hub prior from the cache only.
        cache_dir: where hub priors are kept; by default where huggingface_hub keeps them.

    Raises:
        ValueError: neither a known name nor such a folder, a prior that cannot be had, or a prompt it does not take.
    """
    name, device = os.fspath(name), device or torch.device("cpu")
    dtype = parse_dtype(dtype) or default_dtype(name, device)
    if name in PRIORS:
        if prompts is not None and prompts != Prompts(device=prompts.device, cache=prompts.cache):
            raise ValueError(f"The prior {name} takes no prompt and no guidance; leave them out.")
        prior = PRIORS[name](dtype).to(device)
        prior.name = name
        return prior
    if name and Path(name).is_dir():
        return load_folder(name, dtype, prompts=prompts, memory=memory, device=device)
    if name not in load_cards():
        raise ValueError(
            f"Unknown prior {name!r}; choose one of {', '.join([*PRIORS, *load_cards()])}, or give the folder of a "
            "diffusers model."
        )
    card = load_cards()[name]
    memory = plan_memory(
        memory,
        network=card.parameters.network,
        autoencoder=card.parameters.autoencoder,
        itemsize=dtype.itemsize,
        pixels=card.size**2,
        recomputes=BACKBONES[card.network].autoencoder_recomputes,
        device=device,
    ).mode  # here, since it decides which autoencoder is needed
    folder = pull(name, offline=offline, cache_dir=cache_dir)
    wants_tiny = memory == "low" and card.tiny_autoencoder is not None
    tiny = pull(name, offline=offline, cache_dir=cache_dir, tiny=True) if wants_tiny else None
    prompts = prompts or Prompts(texts=(card.prompt,), device=device)
    if prompts.scale is None and any(prompts.texts):
        prompts = replace(prompts, scale=card.guidance)
    return load_folder(folder, dtype, prompts=prompts, autoencoder=tiny, memory=memory, device=device)
