"""`invsolve degrade`: simulated measurements of clean pictures, each with the command that restores it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from .. import __version__
from ..errors import is_expected, one_line, sentence_about
from ..files.encode import OUTPUT_SUFFIXES, encode_picture
from ..files.holes import hidden_share, mask_notes
from ..files.images import Picture, at_bit_depth, load_image
from ..files.inputs import MEASUREMENT, Source, check_writable, expand_inputs, plan_outputs
from ..files.provenance import is_edited, provenance, provenance_of
from ..files.record import check_targets, typed_name, write_outputs
from ..noise import GaussianNoise, Noise, NoNoise
from ..operators import Inpaint, Operator
from ..problem import simulate
from ..rng import ImageRng, derive_seed
from ..spec import format_spec
from .choices import choose_operator, fields_for, files_of, operator_for, parse_noise, public_fields

__all__ = ["degrade_files"]

MASKS = "masks"  # the folder of masks in the output folder


@dataclass(frozen=True, kw_only=True)
class Plan:
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


def degrade_files(
    inputs: Sequence[str],
    out: Path,
    *,
    operator: str | None,
    mask: Path | None,
    kernel: Path | None,
    sigma: str | None,
    noise: str | None,
    seed: int,
    bit_depth: int | None,
    max_pixels: int,
    keep_metadata: bool,
    console: Console,
    errors: Console,
) -> int:
    """Write a simulated measurement of every input, with a record that names the command to restore it.

    Returns how many inputs failed, each with its sentence on `errors`.

    Raises:
        ValueError, TypeError, OSError: an option or a path that makes the whole run impossible; nothing was written.
    """
    name, fields = choose_operator(operator, mask, kernel)
    model = parse_noise(sigma, noise)
    if model == "auto":
        raise ValueError("--sigma auto estimates the noise of a picture; to add noise, give a number.")
    if isinstance(model, float):
        model = GaussianNoise(model) if model > 0 else NoNoise()
    if bit_depth not in (None, 8, 16):
        raise ValueError(f"--bit-depth must be 8 or 16, got {bit_depth}.")
    sources, notes = expand_inputs(inputs, [out, *files_of(fields)])
    folder = out.parent if out.suffix.lower() in OUTPUT_SUFFIXES and not out.is_dir() else out
    masks = name.partition("-")[0] == "inpaint"
    outputs = plan_outputs(sources, out, lambda path: [_record_of(path), *([_mask_of(path, folder)] if masks else [])])
    check_writable(outputs[0].parent)
    for note in notes:
        console.print(one_line(note))
    plan = Plan(
        folder=folder,
        operator=name,
        fields=fields,
        noise=model,
        noise_options=["--noise", noise] if noise else ["--sigma", "0" if sigma is None else sigma],
        seed=seed,
        bit_depth=bit_depth,
        max_pixels=max_pixels,
        keep_metadata=keep_metadata,
    )
    done = _degrade_all(plan, sources, outputs, console, errors)
    if done:
        measured, mask_path = done[0]
        if len(outputs) > 1:
            measured, mask_path = folder, None if mask_path is None else folder / MASKS
        console.print(one_line(f"restore with: {_command(plan, fields, measured, mask_path)}"))
    return len(outputs) - len(done)


def _degrade_all(
    plan: Plan, sources: Sequence[Source], outputs: Sequence[Path], console: Console, errors: Console
) -> list[tuple[Path, Path | None]]:
    """The measurements that were written, each with its mask if it has one."""
    done: list[tuple[Path, Path | None]] = []
    for source, output in zip(sources, outputs, strict=True):
        try:
            text, mask_path = _degrade_one(plan, source, output)
        except Exception as error:
            if not is_expected(error):
                raise
            errors.print(f"Error: {sentence_about(source.path, error)}")
        else:
            done.append((output, mask_path))
            console.print(one_line(text))
    return done


def _degrade_one(plan: Plan, source: Source, output: Path) -> tuple[str, Path | None]:
    """Write the measurement of one picture, its mask if it has one, and its record: (what to tell, the mask)."""
    picture = load_image(source.path, plan.max_pixels, keep_metadata=plan.keep_metadata)
    like = picture if plan.bit_depth is None else at_bit_depth(picture, plan.bit_depth)
    name, fields = plan.operator, fields_for(plan.operator, plan.fields, source)
    built = operator_for(name, fields, picture.shape, plan.max_pixels)
    y = simulate(built, plan.noise, picture.tensor[None], ImageRng([derive_seed(plan.seed, picture.sha256)]))[0]
    if y.ndim != 3 or len(y) not in (1, 3):
        raise ValueError(f"The data of {name} has shape {tuple(y.shape)} and is not a picture; use the Python API.")
    if like.alpha is not None:
        like = replace(like, alpha=built.crop(torch.from_numpy(like.alpha)).numpy())
    clipped, hidden = (y.abs() > 1).float().mean().item(), hidden_share(built.data_mask)
    notes = _notes(built, y, clipped, hidden)
    record_path, mask_path = _record_of(output), _mask_of(output, plan.folder)
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
        "restore_with": _command(plan, public_fields(fields), Path(output.name), beside),
        "software": {"invsolve": __version__, "torch": torch.__version__},
        "input": source.name.as_posix(),
        "sha256": {"input": picture.sha256},
        "operator": format_spec(name, public_fields(fields)),
        "noise": str(plan.noise),
        "seed": plan.seed,
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


def _command(plan: Plan, fields: dict[str, Any], measured: Path, mask: Path | None) -> str:
    """The command that restores a measurement, or a folder of them, which has a mask, or a folder of them."""
    words = ["invsolve", "restore", typed_name(str(measured))]
    if mask is None:
        words += ["--operator", format_spec(plan.operator, fields)]
    else:
        words += ["--mask", typed_name(str(mask))]
    return shlex.join([*words, *plan.noise_options])


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
