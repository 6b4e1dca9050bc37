"""Which pictures a run reads, and which files it writes for each."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NamedTuple

from .encode import OUTPUT_SUFFIXES, check_suffix
from .images import SUFFIXES
from .provenance import provenance_of

__all__ = ["MEASUREMENT", "Inputs", "Source", "check_writable", "expand_inputs", "plan_outputs"]

MEASUREMENT = "simulated measurement"  # what `invsolve degrade` writes; `invsolve restore` reads it from folders, too


@dataclass(frozen=True)
class Source:
    """A picture to read; `name` is its path relative to the folder that was given, or its file name."""

    path: Path
    name: PurePath


class Inputs(NamedTuple):
    """The pictures that a command line stands for, and sentences about what invsolve itself wrote among them."""

    sources: list[Source]
    notes: list[str]


def expand_inputs(inputs: Sequence[str], leave_out: Sequence[Path], *, measurements: bool = False) -> Inputs:
    """The pictures that files, folders and globs stand for, each once, sorted by name.

    Arguments:
        inputs: a file is taken as it is; of a folder (with its sub-folders) or a glob, what ends like a picture and
            was not written by invsolve, as the file itself says.
        leave_out: files that are not inputs, and folders whose files are not, if they lie inside an input folder: the
            output, masks and kernels.
        measurements: whether what `invsolve degrade` made is an input like any other.

    Raises:
        FileNotFoundError: there is no such file or folder, or a glob has no match.
        ValueError: a folder holds no picture.
    """
    sources: dict[Path, Source] = {}
    notes: list[str] = []
    named: list[tuple[Path, str]] = []
    for text in inputs:
        if not text:
            raise ValueError("An input is empty; name a picture, a folder or a glob ('.' is the current folder).")
        path = Path(text)
        if path.is_dir():
            found = _find(text, path, "**/*", leave_out, measurements, notes)
            if not found:
                raise ValueError(f"The folder {text} holds no picture ({', '.join(SUFFIXES)}) to read; name another.")
        elif path.exists():
            found = [Source(path, PurePath(path.name))]
            maker = _maker(path, measurements)
            named += [(path, maker)] if maker else []
        elif glob.has_magic(text):
            fixed = next(k for k, part in enumerate(path.parts) if glob.has_magic(part))
            pattern = str(PurePath(*path.parts[fixed:]))
            found = _find(text, Path(*path.parts[:fixed]), pattern, leave_out, measurements, notes)
            if not found:
                raise FileNotFoundError(f"No picture ({', '.join(SUFFIXES)}) matches {text}; check the pattern.")
        else:
            raise FileNotFoundError(f"{text} does not exist; check the path.")
        for source in found:
            sources.setdefault(source.path.resolve(), source)
    if named:
        more = f", and {len(named) - 1} more of the named pictures" if len(named) > 1 else ""
        notes.append(f"note: {named[0][0]}{more} was written by invsolve {named[0][1]}; it is read as you named it.")
    return Inputs(sorted(sources.values(), key=lambda source: source.name), notes)


def _find(
    text: str, folder: Path, pattern: str, leave_out: Sequence[Path], measurements: bool, notes: list[str]
) -> list[Source]:
    """Pictures in a folder, without hidden ones, without what is to be left out, and without what invsolve wrote."""
    root = folder.resolve()
    apart = [path.resolve() for path in leave_out]
    apart = [path for path in apart if path != root and path.is_relative_to(root)]
    found, own = [], Counter[str]()
    for path in folder.glob(pattern):
        name = path.relative_to(folder)
        if path.suffix.lower() not in SUFFIXES or any(part.startswith(".") for part in name.parts):
            continue
        if not path.is_file() or any(path.resolve().is_relative_to(other) for other in apart):
            continue
        if maker := _maker(path, measurements):
            own[maker] += 1
        else:
            found.append(Source(path, name))
    if own:
        what = ", ".join(f"{count} by {maker}" for maker, count in sorted(own.items()))
        pictures = "picture" if own.total() == 1 else "pictures"
        note = f"left out {own.total()} {pictures} of {text} that invsolve wrote itself ({what}); name one to read it."
        if not found:
            raise ValueError(f"The input {text} holds no picture to read: {note}")
        notes.append(note)
    return found


def _maker(path: Path, measurements: bool) -> str:
    """The command of invsolve that wrote a picture; empty if it is an input like any other."""
    made = provenance_of(path)
    if not made or (measurements and made.get("content") == MEASUREMENT):
        return ""
    return str(made.get("tool", "itself"))


def plan_outputs(sources: Sequence[Source], out: Path, others: Callable[[Path], Sequence[Path]]) -> list[Path]:
    """The main file that each source is written to: `out` itself if it is named like a picture, else inside it.

    Arguments:
        sources: the pictures to read.
        out: a folder, or for one picture a file.
        others: the further files that go with a main file, for the search for clashes.

    Raises:
        ValueError: a file name for several pictures or of another format, two pictures with one output, or an
            output that would replace an input.
    """
    check_suffix(out)
    if out.suffix.lower() in OUTPUT_SUFFIXES and not out.is_dir():
        if len(sources) > 1:
            raise ValueError(f"-o {out} names one file for {len(sources)} pictures; name a folder.")
        outputs = [out]
    else:
        outputs = [out / source.name.with_suffix(".png") for source in sources]
    inputs = {source.path.resolve() for source in sources}
    owner: dict[Path, Source] = {}
    for source, output in zip(sources, outputs, strict=True):
        for path in (output, *others(output)):
            if path.resolve() in inputs:
                raise ValueError(f"The output {path} would replace an input; choose another folder with -o.")
            if path in owner:
                raise ValueError(
                    f"{owner[path].path} and {source.path} would both be written to {path}; run them with different -o."
                )
            owner[path] = source
    return outputs


def check_writable(folder: Path) -> None:
    """Refuse, before any work, an output folder that cannot be made or written to; makes nothing."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise ValueError(f"Cannot write to {folder}: {existing} is a file, not a folder.")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"Cannot write to {folder}: no permission in {existing}.")
