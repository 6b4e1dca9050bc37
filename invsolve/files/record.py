"""The JSON record of a run: it repeats it, and tells what is done."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

from .atomic import atomic_writes, sha256_of
from .images import MAX_PIXELS
from .provenance import is_damaged, is_edited, provenance_of

__all__ = [
    "Settings",
    "check_targets",
    "is_done",
    "read_record",
    "typed_name",
    "write_outputs",
]


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
    told = read_record(paths[0].with_suffix(".json"))
    outputs = told.get("outputs") if told.get("tool") == tool else None
    outputs = outputs if isinstance(outputs, dict) else {}
    for path in paths:
        if path.is_dir():
            raise FileExistsError(
                f"{path} would be written, but is a folder; move it, or choose another folder with -o."
            )
        if overwrite or not os.path.lexists(path):
            continue
        if path.suffix != ".json" and path.name in outputs and path.is_file() and is_damaged(path):
            continue  # what is left of a result
        record = read_record(path) if path.suffix == ".json" else {}
        made = record or provenance_of(paths[0] if path.suffix == ".json" else path)  # unreadable: its picture's
        edited = path.suffix != ".json" and path.is_file() and is_edited(path)
        if made.get("tool") != tool or edited:
            raise FileExistsError(
                f"{path} exists and was not written by invsolve {tool}, or was changed since; {hint}."
            )


def is_done(record: Path, key: str, outputs: Sequence[Path]) -> bool:
    """Whether a record tells of the same run and of these outputs, and they are what that run wrote, byte for byte."""
    found = read_record(record)
    hashes = found.get("outputs")
    if found.get("key") != key or not isinstance(hashes, dict):
        return False
    names = [path.relative_to(record.parent).as_posix() for path in outputs]
    if set(names) != hashes.keys():
        return False
    return all(path.is_file() and sha256_of(path) == hashes[name] for name, path in zip(names, outputs, strict=True))


def write_outputs(
    pictures: Mapping[Path, bytes], record: Path, about: Mapping[str, Any], stale: Sequence[Path] = ()
) -> None:
    """Write pictures and, last, their record, which holds the SHA-256 of each: it tells of all of them or is not there.

    What tells of an earlier run goes first, so that a record never tells of pictures that are not its own.

    Arguments:
        pictures: the files; nothing is changed before all of them are on the disk.
        record: where the record goes.
        about: what it holds beside the outputs.
        stale: what an earlier run wrote and this one does not, to be removed.
    """

    def clear() -> None:
        for path in (*stale, record):
            path.unlink(missing_ok=True)

    outputs = {
        PurePath(os.path.relpath(path, record.parent)).as_posix(): hashlib.sha256(data).hexdigest()
        for path, data in pictures.items()
    }
    text = json.dumps({**about, "outputs": outputs}, indent=2, allow_nan=False) + "\n"
    atomic_writes({**pictures, record: text.encode()}, clear)


def read_record(path: Path) -> dict[str, Any]:
    """A record; empty if there is none, or a file of another kind."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
