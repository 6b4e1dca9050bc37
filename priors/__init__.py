"""Priors: pretrained models of images behind one interface, and exact ones with closed forms."""

from __future__ import annotations

if __name__ == "priors":  # found from the root of the repository, where it would be a second copy of every class
    raise ImportError("priors is a part of invsolve: import invsolve.priors instead.")

import os
from collections.abc import Callable
from pathlib import Path

import torch

from .base import Endpoints, Guided, Metered, Prior, Rescheduled
from .covariance import Covariance, Diagonal, Full, PowerLaw, Stationary
from .decoder import LinearDecoder
from .gaussian import GaussianPrior
from .latent import LatentPrior, load_latent_prior
from .mixture import GaussianMixture
from .pixel import GreyPrior, PixelPrior, load_pixel_prior
from .schedule import VE, DiscreteVP, LinearFlow, Schedule

__all__ = [
    "PRIORS",
    "VE",
    "Covariance",
    "Diagonal",
    "DiscreteVP",
    "Endpoints",
    "Full",
    "GaussianMixture",
    "GaussianPrior",
    "GreyPrior",
    "Guided",
    "LatentPrior",
    "LinearDecoder",
    "LinearFlow",
    "Metered",
    "PixelPrior",
    "PowerLaw",
    "Prior",
    "Rescheduled",
    "Schedule",
    "Stationary",
    "load_latent_prior",
    "load_pixel_prior",
    "load_prior",
]

BUNDLED = Path(__file__).parent


def natural(dtype: torch.dtype = torch.float32) -> Prior:
    """The bundled pixel-space flow-matching prior for photographs; see the model card beside its weights."""
    return load_pixel_prior(BUNDLED / "natural", dtype)


def natural_latent(dtype: torch.dtype = torch.float32) -> Prior:
    """The bundled latent flow-matching prior for photographs, with its autoencoder; see its model card."""
    return load_latent_prior(BUNDLED / "natural-latent", dtype)


def gaussian(_dtype: torch.dtype = torch.float32) -> Prior:
    """A stationary Gaussian prior with the 1/f^2 spectrum of photographs: exact, instant, a Wiener filter's model."""
    return GaussianPrior(PowerLaw())


PRIORS: dict[str, Callable[[torch.dtype], Prior]] = {
    "natural": natural,
    "natural-latent": natural_latent,
    "gaussian": gaussian,
}


def load_prior(name: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> Prior:
    """A prior by its name in PRIORS, or from the folder of a diffusers pipeline.

    Arguments:
        name: a name of PRIORS, or a folder (str or Path) with unet/ and scheduler/, and vae/ if it is a latent prior.
        dtype: of the network.

    Raises:
        ValueError: neither a known name nor such a folder.
    """
    name = os.fspath(name)
    if name in PRIORS:
        return PRIORS[name](dtype)
    if Path(name).is_dir():
        return (load_latent_prior if (Path(name) / "vae").is_dir() else load_pixel_prior)(name, dtype)
    raise ValueError(
        f"Unknown prior {name!r}; choose one of {', '.join(PRIORS)}, or give the folder of a diffusers model."
    )
