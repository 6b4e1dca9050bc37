"""`invsolve restore`: files in, files out, one picture at a time."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from ..defaults import with_file_tables
from ..doubts import DoubtWarning
from ..errors import is_expected, one_line, sentence_about
from ..files.holes import hidden_share
from ..files.images import Picture, load_image
from ..files.inputs import Source, check_writable, plan_outputs
from ..files.outputs import encode_result, further_pictures, record_of, stale_pictures
from ..files.provenance import provenance
from ..files.record import Settings, check_targets, is_done, write_outputs
from ..operators import Operator
from ..operators.sizes import image_shape_of
from ..result import Result, Status, json_number
from ..run import Run
from ..solve import batch_rows
from ..solvers import SOLVERS, build_solver
from ..spec import format_spec, parse_spec
from .choices import (
    fields_for,
    operator_for,
    public_fields,
)
from .job import Job, RestoreOptions, make_job
from .progress import StepBar

__all__ = ["restore_files"]


def restore_files(options: RestoreOptions, console: Console, errors: Console) -> int:
    """Restore pictures.

    Each is written as PNG at its own bit depth, with a JSON record that repeats the run; pictures are skipped whose
    record tells of the same run and of the very files that are there.
    """
    job = make_job(options)
    sources = job.sources
    outputs = plan_outputs(
        sources, options.out, lambda path: [record_of(path), *further_pictures(path, options.samples)]
    )
    check_writable(outputs[0].parent)
    solver = job.solver or build_solver("ddrm")  # those that are chosen without a name do not interact either
    batches = math.ceil(options.samples / batch_rows(solver, options.samples, options.batch_size))
    for note in job.notes:
        console.print(one_line(note))
    bar = StepBar([batches] * len(sources), console, errors)
    counts = {"restored": 0, "skipped": 0, "failed": 0}
    with bar:
        for source, output in zip(sources, outputs, strict=True):
            try:
                outcome, lines = _restore_one(job, source, output, bar)
            except Exception as error:
                if not is_expected(error):
                    raise
                outcome, lines = "failed", []
                errors.print(f"Error: {sentence_about(source.path, error)}")
            counts[outcome] += 1
            bar.done(ran=outcome == "restored")
            for line in lines:
                console.print(one_line(line))
    if len(sources) > 1 and not options.dry_run:
        console.print(", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count))
    return counts["failed"]


# --- one picture ------------------------------------------------------------------------------------------------------


def _restore_one(job: Job, source: Source, output: Path, bar: StepBar) -> tuple[str, list[str]]:
    """Restore one picture, unless its record says that it is done: ("restored" or "skipped", what to tell)."""
    options = job.options
    picture = load_image(source.path, options.max_pixels, keep_metadata=options.keep_metadata)
    fields = fields_for(job.fields, source)
    fields = with_file_tables(job.operator, fields, source.path, picture.format)
    run = job.run(picture, _build_operator(job, source, picture, fields), source)
    key = hashlib.sha256(json.dumps([run.key, picture.sha256, options.keep_metadata]).encode()).hexdigest()
    record, outputs = record_of(output), [output, *further_pictures(output, options.samples)]
    if not options.overwrite and is_done(record, key, outputs):
        done = "would skip" if options.dry_run else "skipped"
        return "skipped", [f"{done} {source.name}: done already"]
    hint = "choose another folder with -o, or --overwrite it"
    check_targets([*outputs, record], "restore", options.overwrite, hint)
    if options.dry_run:
        return "restored", [_describe(source, picture, run, output), json.dumps(run.record())]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DoubtWarning)  # it is told below, and recorded
        result = run([bar])
    if not result.ok:
        raise ValueError(f"{source.path}: {Status.nonfinite.value}")
    typed = _typed(job, source, fields, run)
    command = typed.command(source.name.name, options.batch_size, options.max_pixels)
    about = {"key": key, "tool": "restore", "command": command, **result.record}
    about["input"] = {"name": source.name.as_posix(), "format": picture.format, "bit_depth": picture.bit_depth}
    about["sha256"] = {**about["sha256"], "input": picture.sha256}
    notes = [*run.operator.notes, *_save(result, output, picture, about)]
    if "hidden" in about:
        notes.insert(0, f"{100 * about['hidden']:.3g} % hidden")
    return "restored", [f"restored {source.name} -> {output}" + "".join(f" ({note})" for note in notes)]


def _build_operator(job: Job, source: Source, picture: Picture, fields: dict[str, Any]) -> Operator:
    """The operator whose measurement the picture is, unless its result would be larger than the guard allows."""
    most = job.options.max_pixels
    shape = image_shape_of(job.operator, picture.shape, **fields)
    if shape[1] * shape[2] > most:
        raise ValueError(
            f"{source.path} would become {shape[2]} x {shape[1]} pixels, more than the guard of {most}; raise it with "
            "--max-pixels."
        )
    return operator_for(job.operator, fields, shape, most)


def _typed(job: Job, source: Source, fields: dict[str, Any], run: Run) -> Settings:
    """The options that repeat the run of one picture, typed beside its files."""
    solver = job.options.solver or run.record()["solver"]["name"]
    name, given = parse_spec(solver, SOLVERS, "solver")
    if given.get("folder") is not None:
        solver = format_spec(name, given | {"folder": Path(given["folder"]).name})
    return replace(
        job.typed,
        operator=format_spec(job.operator, public_fields(fields)),
        solver=solver,
        steps=run.steps,
        prompt=None if job.texts is None else job.texts[source],
    )


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


def _describe(source: Source, picture: Picture, run: Run, output: Path) -> str:
    channels, height, width = picture.shape
    kind = f"{width} x {height}, {'grey' if channels == 1 else 'RGB'}, {picture.bit_depth} bit"
    if (hidden := hidden_share(run.operator.data_mask)) is not None:
        kind += f", {100 * hidden:.3g} % hidden"
    _, rows, columns = run.operator.shown_shape
    calls = f"{run.network_calls * run.samples} network calls"
    noise = f"noise {run.record()['sigma']}"
    return f"would restore {source.name} ({kind}) to {columns} x {rows}, {noise}, {calls} -> {output}"
