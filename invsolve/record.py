"""Which pictures a run reads, which files it writes, and the JSON record that repeats it and tells what is done."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

from .encode import OUTPUT_SUFFIXES, provenance_of
from .images import MAX_PIXELS, SUFFIXES
from .priors import BUNDLED, PRIORS, find_card, load_cards, pull

__all__ = [
    "Settings",
    "Source",
    "check_targets",
    "check_writable",
    "encode_record",
    "expand_inputs",
    "is_done",
    "plan_outputs",
    "prior_sha256",
    "read_record",
    "run_key",
    "stale_outputs",
    "typed_name",
]


@dataclass(frozen=True)
class Source:
    """A picture to read; `name` is its path relative to the folder that was given, or its file name."""

    path: Path
    name: PurePath


@dataclass(frozen=True)
class Settings:
    """The options of a restoration that decide what its pictures look like, spelt as on the command line.

    Paths in them are file names alone: a record tells nothing about the machine it was made on.
    """

    operator: str
    sigma: str
    noise: str | None
    solver: str
    prior: str
    samples: int
    steps: int | None
    seed: int
    device: str
    dtype: str
    prompt: str | None = None
    negative_prompt: str | None = None
    guidance: float | None = None
    memory: str | None = None
    times: str | None = None
    keep_metadata: bool | None = None

    def command(self, name: str, batch_size: int, max_pixels: int = MAX_PIXELS) -> str:
        """The command that repeats the run on one picture, typed in the folder that holds its files.

        The batch size is in it, but not in the settings: it changes the last digits at most.
        """
        options = {key: value for key, value in asdict(self).items() if value is not None}
        if self.noise is not None:
            del options["sigma"]  # it is the noise that counts
        options["batch-size"] = batch_size
        if max_pixels != MAX_PIXELS:
            options["max-pixels"] = max_pixels
        words = []
        for key, value in options.items():
            words += [f"--{key.replace('_', '-')}", *([] if value is True else [str(value)])]
        return shlex.join(["invsolve", "restore", typed_name(name), *words])


def typed_name(name: str) -> str:
    """A file name as it can be typed: one that begins with a dash is not an option."""
    return f"./{name}" if name.startswith("-") else name


def expand_inputs(inputs: Sequence[str], leave_out: Path) -> list[Source]:
    """The pictures that files, folders and globs stand for, each once, sorted by name.

    Arguments:
        inputs: a file is taken as it is; of a folder (with its sub-folders) or a glob, what ends like a picture.
        leave_out: the output folder, whose pictures are not inputs even if it lies inside an input folder.

    Raises:
        FileNotFoundError: there is no such file or folder, or a glob has no match.
        ValueError: a folder holds no picture.
    """
    sources: dict[Path, Source] = {}
    for text in inputs:
        if not text:
            raise ValueError("An input is empty; name a picture, a folder or a glob ('.' is the current folder).")
        path = Path(text)
        if path.is_dir():
            found = _find(path, "**/*", leave_out)
            if not found:
                raise ValueError(f"The folder {text} holds no picture ({', '.join(SUFFIXES)}) to read; name another.")
        elif path.exists():
            found = [Source(path, PurePath(path.name))]
        elif glob.has_magic(text):
            fixed = next(k for k, part in enumerate(path.parts) if glob.has_magic(part))
            found = _find(Path(*path.parts[:fixed]), str(PurePath(*path.parts[fixed:])), leave_out)
            if not found:
                raise FileNotFoundError(f"No picture ({', '.join(SUFFIXES)}) matches {text}; check the pattern.")
        else:
            raise FileNotFoundError(f"{text} does not exist; check the path.")
        for source in found:
            sources.setdefault(source.path.resolve(), source)
    return sorted(sources.values(), key=lambda source: source.name)


def _find(folder: Path, pattern: str, leave_out: Path) -> list[Source]:
    """Pictures in a folder, without hidden ones and without those of an output folder inside it.

    Where the output folder is the folder itself, what an earlier run wrote there is left out.
    """
    out = leave_out.resolve()
    inside = out != folder.resolve()
    found = [Source(path, path.relative_to(folder)) for path in folder.glob(pattern)]
    return [
        source
        for source in found
        if source.path.suffix.lower() in SUFFIXES
        and source.path.is_file()
        and not any(part.startswith(".") for part in source.name.parts)
        and not (source.path.resolve().is_relative_to(out) if inside else _restored(source.path))
    ]


def plan_outputs(sources: Sequence[Source], out: Path, endings: Sequence[str]) -> list[Path]:
    """The main file that each source is written to: `out` itself if it is named like a picture, else inside it.

    Arguments:
        sources: the pictures to read.
        out: a folder, or for one picture a file.
        endings: what the run adds to the stem for the files it writes, such as "_std.png", for the search for clashes.

    Raises:
        ValueError: a file name for several pictures or of another format, two pictures with one output, or an
            output that would replace an input.
    """
    if out.suffix.lower() in SUFFIXES and not out.is_dir():
        if out.suffix.lower() not in OUTPUT_SUFFIXES:
            raise ValueError(f"{out.name} cannot be written; name a folder, or a file ending in .png, .tif or .tiff.")
        if len(sources) > 1:
            raise ValueError(f"-o {out} names one file for {len(sources)} pictures; name a folder.")
        outputs = [out]
    else:
        outputs = [out / source.name.with_suffix(".png") for source in sources]
    inputs = {source.path.resolve() for source in sources}
    owner: dict[Path, Source] = {}
    for source, output in zip(sources, outputs, strict=True):
        for path in (output, *(output.with_name(output.stem + ending) for ending in endings)):
            if path.resolve() in inputs:
                raise ValueError(f"The output {path} would replace an input; choose another folder with -o.")
            if path in owner:
                raise ValueError(
                    f"{owner[path].path} and {source.path} would both be written to {path}; run them with different -o."
                )
            owner[path] = source
    return outputs


def check_targets(paths: Sequence[Path], tool: str, overwrite: bool, hint: str) -> None:
    """Refuse, before any work, to replace what is not an earlier result of the same tool.

    Arguments:
        paths: the files that will be written, the main picture first.
        tool: "restore" or "degrade", which stands in the files that it wrote.
        overwrite: whether files of others may be replaced; folders never are.
        hint: what the user can do.

    Raises:
        FileExistsError: one of them is a folder, or such a file.
    """
    for path in paths:
        if path.is_dir():
            raise FileExistsError(
                f"{path} would be written, but is a folder; move it, or choose another folder with -o."
            )
        if overwrite or not os.path.lexists(path):
            continue
        record = read_record(path) if path.suffix == ".json" else {}
        made = record or provenance_of(paths[0] if path.suffix == ".json" else path)  # unreadable: its picture's
        if made.get("tool") != tool:
            raise FileExistsError(f"{path} exists and was not written by invsolve {tool}; {hint}.")


def check_writable(folder: Path) -> None:
    """Refuse, before any work, an output folder that cannot be made or written to; makes nothing."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise ValueError(f"Cannot write to {folder}: {existing} is a file, not a folder.")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"Cannot write to {folder}: no permission in {existing}.")


def prior_sha256(name: str, cache_dir: Path | None = None) -> str | None:
    """A hash of the weights and configurations of a prior that has them, bundled or in a folder of its own.

    Of a prior of the hub it is that of its commit, which stands for gigabytes, and of its calibration.
    """
    folder = BUNDLED / name if name in PRIORS else Path(name)
    hashes, pattern = {}, "**/*"
    if not folder.is_dir():
        if name not in load_cards():
            return None
        folder = pull(name, offline=True, cache_dir=cache_dir)
        hashes, pattern = {"commit": f"{find_card(name).repo}@{folder.name}"}, "calibration.*"
    for path in sorted(path for path in folder.glob(pattern) if path.suffix in (".safetensors", ".json")):
        with path.open("rb") as file:
            hashes[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def run_key(settings: Settings, files: Mapping[str, str], version: str) -> str:
    """A hash of all that decides the pictures: settings, version, and what input, mask, kernel and prior hold."""
    text = json.dumps({"settings": asdict(settings), "files": dict(files), "version": version}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def is_done(record: Path, key: str) -> bool:
    """Whether a record tells of the same run and the pictures it wrote are still there, and not empty."""
    outputs = _outputs(record)
    there = bool(outputs) and all(path.is_file() and path.stat().st_size > 0 for path in outputs)
    return there and read_record(record).get("key") == key


def read_record(path: Path) -> dict[str, Any]:
    """A record; empty if there is none, or a file of another kind."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _outputs(record: Path) -> list[Path]:
    """The pictures beside a record that it names; a record names nothing outside its folder."""
    names = read_record(record).get("outputs")
    names = names if isinstance(names, list) else []
    return [record.parent / name for name in names if isinstance(name, str) and PurePath(name).name == name]


def stale_outputs(record: Path, new: Sequence[Path]) -> list[Path]:
    """What an earlier run of the same picture wrote and this one does not, such as samples."""
    return [path for path in _outputs(record) if path not in new and _restored(path)]


def _restored(path: Path) -> bool:
    """Whether the picture file was written by a restoration."""
    return provenance_of(path).get("tool") == "restore"


def encode_record(record: Mapping[str, Any]) -> bytes:
    """The file of a record."""
    return (json.dumps(record, indent=2, allow_nan=False) + "\n").encode()
