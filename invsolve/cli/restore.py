"""`invsolve restore`: files in, files out, one picture at a time."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from .. import __version__
from ..api import default_solver, default_steps, make_noises, restore, sigma_of, with_file_tables
from ..devices import find_device
from ..doubts.judge import DoubtWarning
from ..errors import is_expected, one_line, sentence_about
from ..files.atomic import sha256_of
from ..files.holes import hidden_share
from ..files.images import Picture, load_image
from ..files.inputs import Source, check_writable, expand_inputs, plan_outputs
from ..files.outputs import encode_result, further_pictures, record_of, stale_pictures
from ..files.provenance import provenance
from ..files.record import (
    Settings,
    check_targets,
    is_done,
    run_key,
    write_outputs,
)
from ..operators import Operator
from ..operators.sizes import image_shape_of
from ..priors import Prior, load_cards
from ..priors.identity import prior_sha256
from ..problem import Noise
from ..result import Result, Status, json_number
from ..solve import batch_rows, check_capability
from ..solvers import SOLVERS, build_solver
from ..spec import format_spec, parse_spec
from ..times import check_grid
from .choices import (
    check_at_least,
    choose_dtype,
    choose_operator,
    choose_prompts,
    fields_for,
    files_of,
    is_file,
    open_prior,
    operator_for,
    parse_noise,
    public_fields,
)
from .progress import StepBar
from .prompts import read_prompts

__all__ = ["Options", "restore_files"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line of `restore` as it was typed."""

    operator: str | None
    mask: Path | None
    kernel: Path | None
    sigma: str | None
    noise: str | None
    solver: str | None
    prior: str
    prompt: str | None
    prompts: Path | None
    negative_prompt: str | None
    guidance: float | None
    memory: str
    offline: bool
    cache_dir: Path | None
    samples: int
    steps: int | None
    times: str | None
    seed: int
    device: str
    dtype: str
    batch_size: int
    checkpointing: bool
    max_pixels: int
    keep_metadata: bool
    overwrite: bool
    dry_run: bool


@dataclass(frozen=True)
class Plan:
    """Options that have been checked: all that is the same for every picture of a run."""

    options: Options
    sources: Sequence[Source]
    notes: Sequence[str]
    settings: Settings
    operator: str
    fields: dict[str, Any]
    noise: Noise | float | Literal["auto"]
    prior: Prior | None  # None in a dry run with a hub prior
    prior_sha256: str | None
    texts: Mapping[Source, str] | None
    device: torch.device


def restore_files(inputs: Sequence[str], out: Path, options: Options, console: Console, errors: Console) -> int:
    """Restore every input; returns how many failed, each with its sentence on `errors`.

    Raises:
        ValueError, TypeError, OSError: an option or a path that makes the whole run impossible; nothing was written.
    """
    plan = make_plan(options, inputs, out)
    sources = plan.sources
    outputs = plan_outputs(sources, out, lambda path: [record_of(path), *further_pictures(path, options.samples)])
    check_writable(outputs[0].parent)
    solver = build_solver(options.solver or "ddrm")  # those that are chosen without a name do not interact either
    batches = math.ceil(options.samples / batch_rows(solver, options.samples, options.batch_size))
    for note in plan.notes:
        console.print(one_line(note))
    bar = StepBar([batches] * len(sources), console, errors)
    counts = {"restored": 0, "skipped": 0, "failed": 0}
    with bar:
        for source, output in zip(sources, outputs, strict=True):
            try:
                outcome, text = _restore_one(plan, source, output, bar)
            except Exception as error:
                if not is_expected(error):
                    raise
                outcome, text = "failed", ""
                errors.print(f"Error: {sentence_about(source.path, error)}")
            counts[outcome] += 1
            bar.done(ran=outcome == "restored")
            if text:
                console.print(one_line(text))
    if len(sources) > 1 and not options.dry_run:
        console.print(", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count))
    return counts["failed"]


def make_plan(options: Options, inputs: Sequence[str], out: Path) -> Plan:
    """Check the options, find the pictures and load the prior.

    Raises:
        ValueError: an unknown name, field or value, or options that contradict each other.
        FileNotFoundError: there is no such input.
    """
    operator, fields = choose_operator(options.operator, options.mask, options.kernel)
    check_at_least(1, samples=options.samples, batch_size=options.batch_size)
    if options.steps is not None and not 1 <= options.steps <= 1000:
        raise ValueError(f"--steps must be 1 to 1000, got {options.steps}.")
    if options.times is not None:
        check_grid(options.times)
    device = find_device(options.device)
    dtype = choose_dtype(options, device)
    if options.solver is not None:
        build_solver(options.solver)
    noise = parse_noise(options.sigma, options.noise)
    settings = Settings(
        operator=format_spec(operator, public_fields(fields)),
        sigma="0" if options.sigma is None else options.sigma,
        noise=options.noise,
        solver=options.solver or "",  # without one it depends on the operator
        prior=Path(options.prior).name,
        samples=options.samples,
        steps=options.steps,
        times=options.times,
        seed=options.seed,
        device=str(device),
        dtype=dtype,
        negative_prompt=options.negative_prompt,
        guidance=options.guidance,
        keep_metadata=options.keep_metadata or None,
    )
    sources, notes = expand_inputs(inputs, [out, *files_of(fields)], measurements=True)
    texts = read_prompts(sources, options.prompt, options.prompts)
    prompts = choose_prompts(options, None if texts is None else texts.values(), device)
    if options.dry_run and options.prior in load_cards():  # gigabytes, for which a dry run is no reason to load them
        return Plan(options, sources, notes, settings, operator, fields, noise, None, None, texts, device)
    prior = open_prior(options, dtype, prompts, device)
    settings = replace(settings, memory=None if prior.memory_mode == "fast" else prior.memory_mode)
    identity = prior_sha256(options.prior, options.cache_dir)
    return Plan(options, sources, notes, settings, operator, fields, noise, prior, identity, texts, device)


# --- one picture ------------------------------------------------------------------------------------------------------


def _restore_one(plan: Plan, source: Source, output: Path, bar: StepBar) -> tuple[str, str]:
    """Restore one picture, unless its record says that it is done: ("restored" or "skipped", what to tell)."""
    options = plan.options
    picture = load_image(source.path, options.max_pixels, keep_metadata=options.keep_metadata)
    fields = fields_for(plan.operator, plan.fields, source)
    fields = with_file_tables(plan.operator, fields, source.path, picture.format)
    operator = _build_operator(plan, source, picture, fields)
    solver = options.solver or default_solver(operator)
    settings, files = _identify(plan, source, picture, fields, operator, solver)
    key = run_key(settings, files, __version__)
    record, outputs = record_of(output), [output, *further_pictures(output, options.samples)]
    if not options.overwrite and is_done(record, key, outputs):
        done = "would skip" if options.dry_run else "skipped"
        return "skipped", f"{done} {source.name}: done already"
    check_targets(
        [*outputs, record],
        "restore",
        options.overwrite,
        "choose another folder with -o, or --overwrite it",
    )
    check_capability(build_solver(solver), operator)

    y = picture.tensor[None]
    (noise,) = make_noises(plan.noise, operator, y)
    if options.dry_run or plan.prior is None:
        return "restored", _describe(source, picture, operator, noise, output)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DoubtWarning)  # it is told below, and recorded
        result = restore(
            y,
            operator=operator,
            prior=plan.prior if plan.texts is None else plan.prior.prompted(plan.texts[source]),
            solver=solver,
            sigma=noise,
            samples=options.samples,
            steps=settings.steps,
            times=settings.times,
            seed=options.seed,
            device=plan.device,
            dtype=plan.settings.dtype,
            batch_size=options.batch_size,
            checkpointing=options.checkpointing,
            observers=[bar],
        )
    if not result.ok:
        raise ValueError(f"{source.path}: {Status.nonfinite.value}")
    about = {
        "key": key,
        "tool": "restore",
        "command": settings.command(source.name.name, options.batch_size, options.max_pixels),
        "software": {"invsolve": __version__, "torch": torch.__version__},
        "input": {"name": source.name.as_posix(), "format": picture.format, "bit_depth": picture.bit_depth},
        "sha256": files,
        "settings": vars(settings),
        "sigma": sigma_of(noise),
        "times": result.record["times"],
        "hidden": result.record.get("hidden"),
    }
    notes = [*operator.notes, *_save(result, output, picture, about)]
    if about["hidden"] is not None:
        notes.insert(0, f"{100 * about['hidden']:.3g} % hidden")
    return "restored", f"restored {source.name} -> {output}" + "".join(f" ({note})" for note in notes)


def _build_operator(plan: Plan, source: Source, picture: Picture, fields: dict[str, Any]) -> Operator:
    """The operator whose measurement the picture is, unless its result would be larger than the guard allows."""
    most = plan.options.max_pixels
    shape = image_shape_of(plan.operator, picture.shape, **fields)
    if shape[1] * shape[2] > most:
        raise ValueError(
            f"{source.path} would become {shape[2]} x {shape[1]} pixels, more than the guard of {most}; raise it with "
            "--max-pixels."
        )
    return operator_for(plan.operator, fields, shape, most)


def _identify(
    plan: Plan, source: Source, picture: Picture, fields: dict[str, Any], operator: Operator, solver: str
) -> tuple[Settings, dict[str, str]]:
    """What this picture is restored with: the settings without paths, and the SHA-256 of every file that takes part."""
    options = plan.options
    files = {key: sha256_of(Path(value)) for key, value in fields.items() if is_file(value)}
    files["input"] = picture.sha256
    if plan.prior_sha256 is not None:
        files["prior"] = plan.prior_sha256
    public, fitted = _public_solver(solver)
    if fitted is not None:
        files["fitted flow"] = prior_sha256(fitted) or ""
    defaults = options.solver is None and options.steps is None
    settings = replace(
        plan.settings,
        operator=format_spec(plan.operator, public_fields(fields)),
        solver=public,
        steps=default_steps(operator, options.samples, options.times) if defaults else options.steps,
        prompt=None if plan.texts is None else plan.texts[source],
    )
    return settings, files


def _public_solver(solver: str) -> tuple[str, str | None]:
    """The solver as a record spells it, with a name instead of a path, and the folder that was fitted for it."""
    name, fields = parse_spec(solver, SOLVERS, "solver")
    folder = fields.get("folder")
    if folder is None:
        return solver, None
    return format_spec(name, fields | {"folder": Path(folder).name}), folder


def _save(result: Result, output: Path, picture: Picture, about: dict[str, Any]) -> list[str]:
    """Write the pictures and, last, the record, whose presence means that all of them are there; what to tell, too."""
    notes = [*picture.notes, *result.record["notes"]]
    if picture.alpha is not None and picture.alpha.shape != tuple(result.samples.shape[-2:]):
        notes.append("Alpha was resized to the size of the restored picture.")
    made = provenance(
        "restore",
        "sample",
        command=about["command"],
        input_sha256=picture.sha256,
        note="Restored with a generative prior: detail is plausible, not measured.",
    )
    pictures = encode_result(result, output, picture, made)
    chi2 = result.chi2[0].tolist()
    doubts = list(result.doubts[0])
    path = record_of(output)
    more = {
        "stats": {name: json_number(value) for name, value in result.stats.items()},
        "chi2": [json_number(value) for value in chi2],
        "expected_chi2": result.record["expected_chi2"][0],
        "notes": notes + doubts,
    }
    write_outputs(pictures, path, about | more, stale_pictures(output, pictures))
    return doubts


def _describe(source: Source, picture: Picture, operator: Operator, noise: Noise, output: Path) -> str:
    channels, height, width = picture.shape
    kind = f"{width} x {height}, {'grey' if channels == 1 else 'RGB'}, {picture.bit_depth} bit"
    if (hidden := hidden_share(operator.data_mask)) is not None:
        kind += f", {100 * hidden:.3g} % hidden"
    shape = operator.shown_shape
    return f"would restore {source.name} ({kind}) to {shape[2]} x {shape[1]}, noise {sigma_of(noise)} -> {output}"
