"""`invsolve fit`: a conditional MMD flow for one operator and one noise level, from a prior or from pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

from ..devices import find_device
from ..errors import one_line
from ..files.atomic import changed_files, check_replaceable
from ..files.encode import check_folder_name
from ..files.images import MAX_PIXELS, load_image
from ..files.inputs import Source, check_writable, expand_inputs
from ..flows.fit import StageReport, fit, new_card
from ..flows.fitted import FlowCard, does_the_same, load_fitted
from ..flows.training import FitSettings
from ..noise import GaussianNoise, NoNoise
from ..operators import Operator, Shape
from ..operators.sizes import bordered_shape
from ..priors import Prior, as_grey, load_prior
from ..priors.identity import prior_sha256
from ..rng import ImageRng, derive_seed
from ..sample import STEPS as PRIOR_STEPS
from ..sample import measure, sample_pictures
from ..spec import format_spec
from ..times import make_times
from .choices import check_at_least, choose_operator, files_of, operator_for, parse_noise, public_fields
from .options import DeviceOption, KernelOption, MaskOption, NoiseOption, OperatorOption, PixelsOption, path_of

__all__ = ["FitOptions", "fit_flow"]


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """The options of `fit`."""

    out: Annotated[
        Path, typer.Option("-o", "--out", parser=path_of, metavar="PATH", help="Folder for the fitted flow.")
    ]
    inputs: Annotated[
        list[str] | None, typer.Argument(help="Pictures, folders of pictures, or globs; or give --prior.")
    ] = None
    operator: OperatorOption = None
    mask: MaskOption = None
    kernel: KernelOption = None
    sigma: Annotated[
        str | None, typer.Option(help="Noise level: 0.1 in [-1, 1] units, or 25/255 for 25 grey levels; default 0.")
    ] = None
    noise: NoiseOption = None
    prior: Annotated[str | None, typer.Option(help="A name or a folder: learn from samples of a prior.")] = None
    size: Annotated[int, typer.Option(help="Side of the square pictures the flow makes.")] = 16
    canvas: Annotated[int | None, typer.Option(help="Draw the prior at this size and cut the pictures out.")] = None
    prior_steps: Annotated[
        int, typer.Option(help="Network calls per draw of a prior that has no sampler of its own.")
    ] = PRIOR_STEPS
    grey: Annotated[bool, typer.Option("--grey", help="One channel instead of three.")] = False
    pairs: Annotated[int, typer.Option(help="Pictures with simulated measurements to learn from.")] = 20000
    device: DeviceOption = "auto"
    max_pixels: PixelsOption = MAX_PIXELS
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a flow that is there already.")] = False
    settings: FitSettings


def fit_flow(options: FitOptions, console: Console, errors: Console) -> None:  # noqa: ARG001
    """Fit a conditional MMD flow, the solver mmdflow, for one operator and one noise level.

    A fit that was stopped goes on where it was when the command is repeated.
    """
    inputs, out, settings = options.inputs or [], options.out, options.settings
    name, fields = choose_operator(options.operator, options.mask, options.kernel)
    noise = parse_noise(options.sigma, options.noise)
    if noise == "auto":
        raise ValueError("--sigma auto estimates the noise of a picture; a flow is fitted for one level, so give it.")
    if isinstance(noise, float):
        noise = GaussianNoise(noise) if noise > 0 else NoNoise()
    if bool(inputs) == (options.prior is not None):
        raise ValueError("Name pictures to learn from, or a prior to draw them from with --prior; one of the two.")
    check_at_least(1, size=options.size, prior_steps=options.prior_steps)
    check_at_least(2, pairs=options.pairs)
    shape = bordered_shape(name, (1 if options.grey else 3, options.size, options.size), **fields)
    canvas = max(shape[1:]) if options.canvas is None else options.canvas
    check_at_least(max(shape[1:]), canvas=canvas)
    device = find_device(options.device)
    operator = operator_for(name, fields, shape, options.max_pixels).to(device)
    text = format_spec(name, public_fields(fields))
    check_folder_name(out)
    check_writable(out)
    check_replaceable(out)
    rows = ImageRng(derive_seed(settings.seed, "pair", j) for j in range(options.pairs))
    if options.prior is None:
        sources = _pictures(inputs, [out, *files_of(fields)], console)
        source = f"{options.pairs} crops of {len(sources)} pictures ({_hash(sources)})"
        prior = None
    else:
        sources = []
        prior, source = _prior(options, shape, canvas, device)
    latents = prior if prior is not None and prior.has_decoder else None
    if out.exists() and not options.overwrite:
        _check_same(out, operator, new_card(operator, noise, settings, source=source, name=text, prior=latents))
        console.print(f"skipped {out}: fitted already")
        return

    def draw() -> tuple[Tensor, Tensor]:
        if prior is None:
            z = x = _crops(sources, shape, rows, options.max_pixels).to(device)
        else:
            times = make_times("karras", options.prior_steps, prior.schedule)
            z, x = sample_pictures(prior, shape, rows, times, canvas=canvas, device=device)
        return z, measure(x, operator, noise, rows)

    def report(stage: StageReport) -> None:
        learned = "learned from the score" if stage.missed is None else f"{stage.missed:.4f} from where the flow went"
        console.print(f"stage {stage.stage} of {stage.stages}: moved by {stage.moved:.4f}, {learned}")

    about = {"source": source, "name": text}
    fit(draw, operator, noise, out, settings, **about, prior=latents, device=device, report=report)
    console.print(f"fitted {text} -> {out}; use it with --solver \"mmdflow(folder='{out}')\"")


def _prior(options: FitOptions, shape: Shape, canvas: int, device: torch.device) -> tuple[Prior, str]:
    """The prior that pictures are drawn from, and what the card says of it."""
    assert options.prior is not None
    prior = load_prior(options.prior, "float32").to(device)
    prior = as_grey(prior) if options.grey and prior.channels == 3 else prior
    prior = prior.sized((shape[0], canvas, canvas))
    weights = prior_sha256(options.prior)
    named = Path(options.prior).name + (f" ({weights[:12]})" if weights else "")
    source = f"{options.pairs} samples of {named}, {options.prior_steps} steps"
    if shape[1:] != (canvas, canvas):
        source += f", cut from {canvas} x {canvas}"
        if prior.has_decoder:
            raise ValueError("--canvas cuts pictures, not latents; leave it out for a latent prior.")
    return prior, source


def _pictures(inputs: Sequence[str], leave_out: Sequence[Path], console: Console) -> list[Source]:
    """The pictures to learn from."""
    sources, notes = expand_inputs(inputs, leave_out)
    for note in notes:
        console.print(one_line(note))
    return sources


def _check_same(out: Path, operator: Operator, wanted: FlowCard) -> None:
    """Refuse to take the place of another fit, and to call one done whose files are not what was fitted.

    Raises:
        ValueError: the folder holds another fit, or a file that was changed since, or no list of what was written.
    """
    if changed := changed_files(out):
        raise ValueError(
            f"{out} holds {changed[0]}, which is damaged, missing or not what `invsolve fit` wrote there; fit it again "
            "with --overwrite, or choose another folder with -o."
        )
    flow = load_fitted(out)
    card = flow.card
    if _without_software(card) != _without_software(wanted) or not does_the_same(operator, flow.probe):
        raise ValueError(
            f"{out} holds a flow that was fitted with other options, for {card.operator} on pictures "
            f"{tuple(card.image_shape)} with {card.noise} on {card.prior}; choose another folder with -o, or replace "
            "it with --overwrite."
        )


def _without_software(card: FlowCard) -> Any:
    """The card as JSON holds it, but for the versions it was written by."""
    content = json.loads(json.dumps(asdict(card)))
    content["about"].pop("software", None)
    return content


def _hash(sources: Sequence[Source]) -> str:
    """Of what is in the files."""
    digest = hashlib.sha256()
    for source in sources:
        with source.path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


def _crops(sources: Sequence[Source], shape: Shape, rng: ImageRng, max_pixels: int) -> Tensor:
    """A crop (n, *shape) at a random place of a random picture for every row."""
    channels, height, width = shape
    place = rng.rand((3,), dtype=torch.float64)  # (n, 3): which picture, and where in it
    which = (place[:, 0] * len(sources)).long()
    crops = torch.empty(len(place), *shape)
    for k, source in enumerate(sources):
        rows = (which == k).nonzero()[:, 0].tolist()
        x = load_image(source.path, max_pixels).tensor
        x = x.mean(dim=0, keepdim=True) if channels == 1 else x.expand(channels, -1, -1)
        if x.shape[1] < height or x.shape[2] < width:
            raise ValueError(
                f"{source.path} is {x.shape[2]} x {x.shape[1]} pixels, less than a crop of {width} x {height}; leave "
                "it out, or lower --size."
            )
        for row in rows:
            top, left = (
                int(u * (length - side + 1))
                for u, length, side in zip(place[row, 1:].tolist(), x.shape[1:], (height, width), strict=True)
            )
            crops[row] = x[:, top : top + height, left : left + width]
    return crops
