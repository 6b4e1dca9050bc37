"""`invsolve calibrate`: how well a prior knows the flow, measured on pictures and kept beside its card."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import __version__
from ..calibrate import CALIBRATION_SUFFIXES, calibrate, save_calibration
from ..devices import find_device
from ..errors import one_line
from ..files.images import MAX_PIXELS, load_image
from ..files.inputs import Source, check_writable, expand_inputs
from ..priors import BUNDLED, PRIORS, Prior, load_cards, pull
from .choices import check_at_least, choose_dtype, choose_prompts, open_prior
from .options import (
    CacheOption,
    DeviceOption,
    DtypeOption,
    GuidanceOption,
    Inputs,
    MemoryOption,
    NegativeOption,
    OfflineOption,
    PixelsOption,
    PriorOption,
    PromptOption,
    path_of,
)
from .prompts import read_prompts

__all__ = ["CalibrateOptions", "calibrate_prior"]

SIZE = 256  # of the pictures that the bundled priors are for
FILE = "calibration.safetensors"  # in the folder of a prior, where it is looked for


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """The options of `calibrate`."""

    inputs: Inputs
    prior: PriorOption = "natural"
    prompt: PromptOption = None
    negative_prompt: NegativeOption = None
    guidance: GuidanceOption = None
    memory: MemoryOption = "auto"
    offline: OfflineOption = False
    cache_dir: CacheOption = None
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            parser=path_of,
            metavar="PATH",
            help="A file ending in .safetensors or .json.  Default: calibration.safetensors in the prior's folder, "
            "where the prior finds it.",
        ),
    ] = None
    size: Annotated[
        int | None,
        typer.Option(
            help="Side of the middle of each picture that is taken.  Default: that of a hub prior's training pictures, "
            "else 256."
        ),
    ] = None
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0
    device: DeviceOption = "auto"
    dtype: DtypeOption = "auto"
    batch_size: Annotated[int, typer.Option(help="Most times that go through the network at once.")] = 8
    max_pixels: PixelsOption = MAX_PIXELS


def calibrate_prior(options: CalibrateOptions, console: Console, errors: Console) -> None:
    """Measure how well a prior knows the flow at each time: what the solver flair weighs it with.

    Takes 100 network calls for every picture, twice as many with guidance.  The pictures should be clean, and not those
    the prior was trained on; prompt, guidance and size those of the restorations to come.
    """
    check_at_least(1, size=options.size, batch_size=options.batch_size)
    cards = load_cards()
    trained = cards[options.prior].size if options.prior in cards else SIZE
    size = trained if options.size is None else options.size
    device = find_device(options.device)
    dtype = choose_dtype(options, device)
    sources, notes = expand_inputs(options.inputs, [])
    for note in notes:
        console.print(one_line(note))
    texts = read_prompts(sources, options.prompt, None)
    prompts = choose_prompts(options, None if texts is None else texts.values(), device)
    path = _default_path(options) if options.out is None else options.out
    if path.suffix not in CALIBRATION_SUFFIXES:
        raise ValueError(
            f"-o {path} is not a calibration file; name one ending in {' or '.join(CALIBRATION_SUFFIXES)}."
        )
    if path.exists() and not _is_calibration(path):
        raise FileExistsError(f"{path} exists and is not a calibration; choose another file with -o, or remove it.")
    check_writable(path.parent)
    model = open_prior(options, dtype, prompts, device)
    wide = torch.float64 if dtype == "float64" else torch.float32
    pictures = (x.to(device, wide) for x in _middles(sources, model, size, options.max_pixels))
    shown = track(pictures, "", total=len(sources), console=errors, transient=True, disable=not errors.is_terminal)
    error = calibrate(model, shown, seed=options.seed, batch_size=options.batch_size)
    name = Path(options.prior).name
    about = {
        "prior": name,
        "pictures": str(len(sources)),
        "size": str(size),
        "seed": str(options.seed),
        "dtype": dtype,
        "software": f"invsolve {__version__}, torch {torch.__version__}",
    }
    about |= {
        key: str(value)
        for key in ("prompt", "negative_prompt", "guidance")
        if (value := getattr(options, key)) is not None
    }
    save_calibration(path, error, about)
    least = int(error.argmin())
    console.print(
        f"calibrated {name} on {len(sources)} pictures -> {path} (velocity error {error[0]:.3f} at t = 1, "
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


def _default_path(options: CalibrateOptions) -> Path:
    """In the folder of the prior, where `load_prior` looks for it; of a hub prior, that of its commit in the cache."""
    if options.prior in load_cards():
        return pull(options.prior, offline=options.offline, cache_dir=options.cache_dir) / FILE
    folder = BUNDLED / options.prior if options.prior in PRIORS else Path(options.prior)
    if not folder.is_dir():
        raise ValueError(
            f"The prior {options.prior!r} has no folder that could keep a calibration; name a file with -o."
        )
    return folder / FILE


def _middles(sources: Sequence[Source], prior: Prior, size: int, max_pixels: int) -> Iterator[Tensor]:
    """The middle of every picture, at most size x size, (C, H, W) with the prior's channels."""
    for source in sources:
        x = load_image(source.path, max_pixels).tensor
        if prior.channels not in (None, len(x)):
            if len(x) != 1:
                raise ValueError(f"{source.path} has {len(x)} channels and the prior {prior.channels}; convert it.")
            x = x.expand(prior.channels, -1, -1)
        top, left = (max(length - size, 0) // 2 for length in x.shape[1:])
        yield x[:, top : top + size, left : left + size]
