"""`invsolve degrade`: simulated measurements of clean pictures, each with the command that restores it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

from .. import __version__
from ..errors import is_expected, one_line, sentence_about
from ..files.encode import OUTPUT_SUFFIXES, encode_picture
from ..files.holes import hidden_share, mask_notes
from ..files.images import MAX_PIXELS, Picture, at_bit_depth, load_image
from ..files.inputs import MEASUREMENT, Source, check_writable, expand_inputs, plan_outputs
from ..files.provenance import is_edited, provenance, provenance_of
from ..files.record import check_targets, typed_name, write_outputs
from ..noise import GaussianNoise, Noise, NoNoise
from ..operators import Inpaint, Operator
from ..problem import simulate
from ..rng import ImageRng, derive_seed
from ..spec import format_spec
from .choices import choose_operator, fields_for, files_of, operator_for, parse_noise, public_fields
from .options import (
    Inputs,
    KernelOption,
    MaskOption,
    MetadataOption,
    NoiseOption,
    OperatorOption,
    OutOption,
    PixelsOption,
)

__all__ = ["DegradeOptions", "degrade_files"]

MASKS = "masks"  # the folder of masks in the output folder


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is the same for every picture of a run."""

    folder: Path  # that holds the outputs
    operator: str
    fields: dict[str, Any]
    noise: Noise
    noise_options: list[str]  # the words that tell `invsolve restore` of the noise
    seed: int
    bit_depth: int | None
    max_pixels: int
    keep_metadata: bool


@dataclass(frozen=True, kw_only=True)
class DegradeOptions:
    """The options of `degrade`."""

    inputs: Inputs
    operator: OperatorOption = None
    mask: MaskOption = None
    kernel: KernelOption = None
    sigma: Annotated[
        str | None, typer.Option(help="Noise to add: 0.1 in [-1, 1] units, or 25/255 for 25 grey levels.")
    ] = None
    noise: NoiseOption = None
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0
    bit_depth: Annotated[int | None, typer.Option(help="8 or 16; by default that of the picture.")] = None
    out: OutOption = Path("degraded")
    max_pixels: PixelsOption = MAX_PIXELS
    keep_metadata: MetadataOption = False


def degrade_files(options: DegradeOptions, console: Console, errors: Console) -> int:
    """Simulate measurements of clean pictures, and say how to restore them.

    Masks go to the folder masks in the output folder, where `invsolve restore FOLDER --mask FOLDER/masks` finds them.
    """
    out = options.out
    name, fields = choose_operator(options.operator, options.mask, options.kernel)
    model = parse_noise(options.sigma, options.noise)
    if model == "auto":
        raise ValueError("--sigma auto estimates the noise of a picture; to add noise, give a number.")
    if isinstance(model, float):
        model = GaussianNoise(model) if model > 0 else NoNoise()
    if options.bit_depth not in (None, 8, 16):
        raise ValueError(f"--bit-depth must be 8 or 16, got {options.bit_depth}.")
    sources, notes = expand_inputs(options.inputs, [out, *files_of(fields)])
    folder = out.parent if out.suffix.lower() in OUTPUT_SUFFIXES and not out.is_dir() else out
    masks = name.partition("-")[0] == "inpaint"
    outputs = plan_outputs(sources, out, lambda path: [_record_of(path), *([_mask_of(path, folder)] if masks else [])])
    check_writable(outputs[0].parent)
    for note in notes:
        console.print(one_line(note))
    job = Job(
        folder=folder,
        operator=name,
        fields=fields,
        noise=model,
        noise_options=["--noise", options.noise] if options.noise else ["--sigma", options.sigma or "0"],
        seed=options.seed,
        bit_depth=options.bit_depth,
        max_pixels=options.max_pixels,
        keep_metadata=options.keep_metadata,
    )
    done = _degrade_all(job, sources, outputs, console, errors)
    if done:
        measured, mask_path = done[0]
        if len(outputs) > 1:
            measured, mask_path = folder, None if mask_path is None else folder / MASKS
        console.print(one_line(f"restore with: {_command(job, fields, measured, mask_path)}"))
    return len(outputs) - len(done)


def _degrade_all(
    job: Job, sources: Sequence[Source], outputs: Sequence[Path], console: Console, errors: Console
) -> list[tuple[Path, Path | None]]:
    """The measurements that were written, each with its mask if it has one."""
    done: list[tuple[Path, Path | None]] = []
    for source, output in zip(sources, outputs, strict=True):
        try:
            text, mask_path = _degrade_one(job, source, output)
        except Exception as error:
            if not is_expected(error):
                raise
            errors.print(f"Error: {sentence_about(source.path, error)}")
        else:
            done.append((output, mask_path))
            console.print(one_line(text))
    return done


def _degrade_one(job: Job, source: Source, output: Path) -> tuple[str, Path | None]:
    """Write the measurement of one picture, its mask if it has one, and its record: (what to tell, the mask)."""
    picture = load_image(source.path, job.max_pixels, keep_metadata=job.keep_metadata)
    like = picture if job.bit_depth is None else at_bit_depth(picture, job.bit_depth)
    name, fields = job.operator, fields_for(job.fields, source)
    built = operator_for(name, fields, picture.shape, job.max_pixels)
    y = simulate(built, job.noise, picture.tensor[None], ImageRng([derive_seed(job.seed, picture.sha256)]))[0]
    if y.ndim != 3 or len(y) not in (1, 3):
        raise ValueError(f"The data of {name} has shape {tuple(y.shape)} and is not a picture; use the Python API.")
    if like.alpha is not None:
        like = replace(like, alpha=built.crop(torch.from_numpy(like.alpha)).numpy())
    clipped, hidden = (y.abs() > 1).float().mean().item(), hidden_share(built.data_mask)
    notes = _notes(built, y, clipped, hidden)
    record_path, mask_path = _record_of(output), _mask_of(output, job.folder)
    masked = isinstance(built, Inpaint)
    check_targets(
        [output, record_path, *([mask_path] if masked else [])], "degrade", False, "choose another folder with -o"
    )
    files = {output: encode_picture(output, y, like, provenance("degrade", MEASUREMENT))}
    if isinstance(built, Inpaint):
        holes = 1 - 2 * built.data_mask.expand(1, *y.shape[1:])  # white = hole
        files[mask_path] = encode_picture(mask_path, holes, Picture(holes), provenance("degrade", "mask"))
    beside = Path(os.path.relpath(mask_path, output.parent)) if masked else None
    record = {
        "tool": "degrade",
        "restore_with": _command(job, public_fields(fields), Path(output.name), beside),
        "software": {"invsolve": __version__, "torch": torch.__version__},
        "input": source.name.as_posix(),
        "sha256": {"input": picture.sha256},
        "operator": format_spec(name, public_fields(fields)),
        "noise": str(job.noise),
        "seed": job.seed,
        "clipped": clipped,
        "hidden": hidden,
        "border": list(built.border),
        "notes": notes,
    }
    ours = provenance_of(mask_path).get("tool") == "degrade" and not is_edited(mask_path)
    old = [mask_path] if ours and not masked else []
    write_outputs(files, record_path, record, old)
    told = "".join(f" ({note.rstrip('.')})" for note in notes)
    return f"degraded {source.name} -> {output}{told}", mask_path if masked else None


def _command(job: Job, fields: dict[str, Any], measured: Path, mask: Path | None) -> str:
    """The command that restores a measurement, or a folder of them, which has a mask, or a folder of them."""
    words = ["invsolve", "restore", typed_name(str(measured))]
    if mask is None:
        words += ["--operator", format_spec(job.operator, fields)]
    else:
        words += ["--mask", typed_name(str(mask))]
    return shlex.join([*words, *job.noise_options])


def _record_of(output: Path) -> Path:
    """The record of a measurement, beside it."""
    return output.with_name(f"{output.stem}.json")


def _mask_of(output: Path, folder: Path) -> Path:
    """The mask of a measurement, where `invsolve restore FOLDER --mask FOLDER/masks` looks for it."""
    return folder / MASKS / output.relative_to(folder).with_suffix(".png")


def _notes(operator: Operator, y: Tensor, clipped: float, hidden: float | None) -> list[str]:
    """What to tell of a measurement, as sentences."""
    notes = list(operator.notes)
    if any(operator.border):
        rows, columns = operator.border
        notes.append(
            f"{y.shape[-1]} x {y.shape[-2]} pixels: {rows} rows and {columns} columns less on every side, as the blur "
            "there depends on what lies beyond the border."
        )
    if hidden is not None:
        notes += [f"{100 * hidden:.3g} % hidden", *mask_notes(operator.data_mask)]
    if clipped:
        notes.append(f"{100 * clipped:.1f} % of the values were clipped to the range of a picture.")
    return notes
