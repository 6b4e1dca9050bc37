"""`invsolve calibrate`: how well a prior knows the flow, measured on pictures and kept beside its card."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from torch import Tensor

from . import __version__
from .calibrate import CALIBRATION_SUFFIXES, calibrate, save_calibration
from .choices import DTYPES
from .devices import find_device
from .images import load_image
from .priors import BUNDLED, PRIORS, Prior, load_prior
from .record import Source, check_writable, expand_inputs

__all__ = ["calibrate_prior"]


def calibrate_prior(
    inputs: Sequence[str],
    out: Path | None,
    *,
    prior: str,
    size: int,
    seed: int,
    device: str,
    dtype: str,
    batch_size: int,
    max_pixels: int,
    console: Console,
    errors: Console,
) -> None:
    """Measure a prior on the middles of pictures and write what was found.

    Raises:
        ValueError, TypeError, OSError: an option, a path or a picture that cannot be used; nothing was written.
    """
    for option, count in {"size": size, "batch-size": batch_size}.items():
        if count < 1:
            raise ValueError(f"--{option} must be at least 1, got {count}.")
    if dtype not in DTYPES:
        raise ValueError(f"Unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}.")
    place = find_device(device)
    path = _default_path(prior) if out is None else out
    if path.suffix not in CALIBRATION_SUFFIXES:
        raise ValueError(
            f"-o {path} is not a calibration file; name one ending in {' or '.join(CALIBRATION_SUFFIXES)}."
        )
    if path.exists() and not _is_calibration(path):
        raise FileExistsError(f"{path} exists and is not a calibration; choose another file with -o, or remove it.")
    sources = expand_inputs(inputs, path)
    check_writable(path.parent)
    model = load_prior(prior, DTYPES[dtype]).to(place)
    pictures = _middles(sources, model, size, max_pixels, place, torch.float64 if dtype == "float64" else torch.float32)
    shown = track(pictures, "", total=len(sources), console=errors, transient=True, disable=not errors.is_terminal)
    error = calibrate(model, shown, seed=seed, batch_size=batch_size)
    about = {
        "prior": Path(prior).name,
        "pictures": str(len(sources)),
        "size": str(size),
        "seed": str(seed),
        "software": f"invsolve {__version__}, torch {torch.__version__}",
    }
    save_calibration(path, error, about)
    least = int(error.argmin())
    console.print(
        f"calibrated {Path(prior).name} on {len(sources)} pictures -> {path} (velocity error {error[0]:.3f} at t = 1, "
        f"least {error[least]:.3f} at t = {1 - least / (len(error) - 1):.2f}, {error[-1]:.3f} at t = 0)"
    )


def _is_calibration(path: Path) -> bool:
    """Whether a file was written by this command, and may be replaced by it."""
    try:
        if path.suffix == ".json":
            return "velocity_error" in json.loads(path.read_text())
        with safe_open(path, framework="pt") as file:
            return "velocity_error" in file.keys()  # noqa: SIM118 it is no dictionary
    except (OSError, ValueError, TypeError, SafetensorError):
        return False


def _default_path(prior: str) -> Path:
    """In the folder of the prior, where `load_prior` looks for it."""
    folder = BUNDLED / prior if prior in PRIORS else Path(prior)
    if not folder.is_dir():
        raise ValueError(f"The prior {prior!r} has no folder that could keep a calibration; name a file with -o.")
    return folder / "calibration.safetensors"


def _middles(
    sources: Sequence[Source], prior: Prior, size: int, max_pixels: int, device: torch.device, dtype: torch.dtype
) -> Iterator[Tensor]:
    """The middle of every picture, at most size x size, (C, H, W) with the prior's channels."""
    for source in sources:
        x = load_image(source.path, max_pixels).tensor
        if prior.channels not in (None, len(x)):
            if len(x) != 1:
                raise ValueError(f"{source.path} has {len(x)} channels and the prior {prior.channels}; convert it.")
            x = x.expand(prior.channels, -1, -1)
        top, left = (max(length - size, 0) // 2 for length in x.shape[1:])
        yield x[:, top : top + size, left : left + size].to(device, dtype)
