"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

__all__ = [
    "append_lines",
    "atomic_folder",
    "atomic_write",
    "atomic_writes",
    "changed_files",
    "check_replaceable",
    "is_unfinished",
    "read_lines",
    "sha256_of",
]

T = TypeVar("T")

MANIFEST = ".invsolve-files"  # in a folder written by `atomic_folder`: the names of what was written


def atomic_write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that it holds all of `data` or stays as it was; missing folders are made."""
    atomic_writes({Path(path): data})


def atomic_writes(contents: Mapping[Path, bytes], before: Callable[[], None] = lambda: None) -> None:
    """Write several files, none of them before all are on the disk; they then appear in the order given.

    Arguments:
        contents: what to write where.
        before: called when all are on the disk and none has appeared, for what must be gone first.
    """
    work = {path: _beside(path) for path in contents}
    try:
        for path, data in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with work[path].open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        before()
        for path in contents:
            work[path].replace(path)
    finally:
        for temporary in work.values():
            temporary.unlink(missing_ok=True)
    for folder in {path.parent for path in contents}:
        _sweep(folder, ".invsolve-*.*.tmp")


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A new folder to write into; at the end it takes the place of `path`, and on an error it is removed.

    A list of what was written stays in the folder, so that a later run replaces its own files and nothing else, and
    `changed_files` knows them.

    Raises:
        FileExistsError: `path` is a file, or a folder that holds what no earlier run wrote; it is left as it is.
    """
    path = Path(path).resolve()
    check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    work, old = _beside(path), _beside(path, "old")
    work.mkdir()
    try:
        yield work
        (work / MANIFEST).write_text(json.dumps(_hashes(work), indent=2) + "\n")
        check_replaceable(path)  # somebody may have put a file there in the meantime
        if path.exists():
            path.replace(old)
        try:
            work.replace(path)
        except BaseException:
            if old.exists():
                old.replace(path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    _sweep(path.parent, ".invsolve-*.*.tmp")
    _sweep(path.parent, _beside(path, "old").name.replace(f".{os.getpid()}.", ".*."))


def _entries(folder: Path) -> list[str]:
    """What a folder holds, at any depth, without the list itself."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p != folder / MANIFEST)


def _hashes(folder: Path) -> dict[str, str | None]:
    """The SHA-256 of every file in a folder, and None for every folder in it."""
    return {name: sha256_of(folder / name) if (folder / name).is_file() else None for name in _entries(folder)}


def sha256_of(path: Path) -> str:
    """Of what a file holds."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def changed_files(path: Path) -> list[str]:
    """What is missing from a folder that `atomic_folder` wrote, or is not what it wrote; all, if it has no list."""
    try:
        wrote = dict(json.loads((path / MANIFEST).read_text()))
    except (OSError, ValueError, TypeError, RecursionError):  # no list, or not one of ours
        return _entries(path)
    there = _hashes(path)
    return sorted(name for name in wrote if name not in there or there[name] != wrote[name])


def check_replaceable(path: Path) -> None:
    """Refuse a target that is a file, or a folder with anything that its own list does not name."""
    if not path.exists():
        return
    if not path.is_dir():
        raise FileExistsError(f"{path} is a file; choose another name for the folder.")
    try:
        own = set(json.loads((path / MANIFEST).read_text()))
    except (OSError, ValueError, TypeError, RecursionError):  # no list, or not one of ours
        own = set()
    foreign = [name for name in _entries(path) if name not in own]
    if foreign:
        raise FileExistsError(
            f"{path} exists and holds {foreign[0]}, which invsolve did not write there; choose another folder."
        )


def _beside(path: Path, what: str = "tmp") -> Path:
    """A short hidden name in the same folder, thus on the same disk, that no other process uses."""
    short = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    return path.with_name(f".invsolve-{short}.{os.getpid()}.{what}")


def _sweep(folder: Path, pattern: str) -> None:
    """Remove what killed processes left in a folder under names that `_beside` made."""
    for left in folder.glob(pattern):
        owner = left.name.split(".")[2]
        if owner.isdigit() and not _is_running(int(owner)):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    if os.name != "posix":
        return True  # os.kill would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def is_unfinished(path: Path) -> bool:
    """Whether that is a file which a killed process was about to put into its place."""
    return path.name.startswith(".invsolve-") and path.suffix == ".tmp"


def read_lines(path: Path, parse: Callable[[str], T]) -> Iterator[T]:
    """What a file of JSON lines holds, by `parse`; a last line without its end was cut short and is left out.

    Raises:
        ValueError: a line holds something else.
    """
    *lines, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            found = parse(line.decode())
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError(f"{path}, line {number}, is not a measurement; move the file away.") from None
        yield found


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Add lines to a file, in the place of one that an interrupted run may have cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_bytes() if path.exists() else b""
    whole = before[: before.rfind(b"\n") + 1]
    if whole != before:
        atomic_write(path, whole)
    with path.open("a") as file:
        file.write("".join(f"{line}\n" for line in lines))
