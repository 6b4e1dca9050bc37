"""`invsolve degrade`: simulated measurements of clean pictures, each with the command that restores it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from . import __version__
from .atomic import atomic_writes
from .choices import (
    choose_operator,
    fields_for,
    is_expected,
    one_line,
    operator_for,
    parse_noise,
    public_fields,
    sentence_about,
)
from .encode import encode_picture
from .images import Picture, at_bit_depth, load_image
from .problem import GaussianNoise, Noise, NoNoise, simulate
from .record import (
    Source,
    check_targets,
    check_writable,
    encode_record,
    expand_inputs,
    plan_outputs,
    typed_name,
)
from .rng import ImageRng, derive_seed
from .spec import format_spec

__all__ = ["degrade_files"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is the same for every picture of a run."""

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
    sources = expand_inputs(inputs, out)
    outputs = plan_outputs(sources, out, [".json", "_mask.png"])
    check_writable(outputs[0].parent)
    plan = Plan(
        operator=name,
        fields=fields,
        noise=model,
        noise_options=["--noise", noise] if noise else ["--sigma", "0" if sigma is None else sigma],
        seed=seed,
        bit_depth=bit_depth,
        max_pixels=max_pixels,
        keep_metadata=keep_metadata,
    )
    failed = 0
    for source, output in zip(sources, outputs, strict=True):
        try:
            text = _degrade_one(plan, source, output)
        except Exception as error:
            if not is_expected(error):
                raise
            failed += 1
            errors.print(f"Error: {sentence_about(source.path, error)}")
        else:
            console.print(one_line(text))
    return failed


def _degrade_one(plan: Plan, source: Source, output: Path) -> str:
    """Write the measurement of one picture and its record; returns what to tell."""
    picture = load_image(source.path, plan.max_pixels, keep_metadata=plan.keep_metadata)
    like = picture if plan.bit_depth is None else at_bit_depth(picture, plan.bit_depth)
    name, fields = plan.operator, fields_for(plan.operator, plan.fields, source)
    built = operator_for(name, fields, picture.shape, plan.max_pixels)
    y = simulate(built, plan.noise, picture.tensor[None], ImageRng([derive_seed(plan.seed, picture.sha256)]))[0]
    if y.ndim != 3 or len(y) not in (1, 3):
        raise ValueError(f"The data of {name} has shape {tuple(y.shape)} and is not a picture; use the Python API.")
    clipped = (y.abs() > 1).float().mean().item()
    record_path, mask_path = (output.with_name(output.stem + ending) for ending in (".json", "_mask.png"))
    targets = [output, record_path] + ([] if built.data_mask is None else [mask_path])
    check_targets(targets, "degrade", False, "choose another folder with -o")
    provenance = {"software": f"invsolve {__version__}", "tool": "degrade", "content": "simulated measurement"}
    files = {output: encode_picture(output, y, like, provenance)}
    command = ["invsolve", "restore", typed_name(output.name)]
    if built.data_mask is None:
        command += ["--operator", format_spec(name, public_fields(fields))]
    else:
        holes = 1 - 2 * built.data_mask.expand(1, *y.shape[1:])  # white = hole
        files[mask_path] = encode_picture(mask_path, holes, Picture(holes), provenance | {"content": "mask"})
        command += ["--mask", typed_name(mask_path.name)]
    command += plan.noise_options
    record = {
        "tool": "degrade",
        "restore_with": shlex.join(command),
        "software": {"invsolve": __version__, "torch": torch.__version__},
        "input": source.name.as_posix(),
        "sha256": {"input": picture.sha256},
        "operator": format_spec(name, public_fields(fields)),
        "noise": str(plan.noise),
        "seed": plan.seed,
        "clipped": clipped,
    }
    atomic_writes(files | {record_path: encode_record(record)})
    note = f" ({100 * clipped:.1f} % of the values were clipped to the range of a picture)" if clipped else ""
    return f"degraded {source.name} -> {output}{note}"
