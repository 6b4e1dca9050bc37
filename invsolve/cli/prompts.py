"""The prompt of each picture: one for all, lines of a file, or a text file beside every picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..files.inputs import Source

__all__ = ["read_prompts"]


def read_prompts(sources: Sequence[Source], prompt: str | None, path: Path | None) -> dict[Source, str] | None:
    """The prompt of every picture; None if none was asked for.

    Arguments:
        sources: the pictures.
        prompt: of pictures that `path` has none for.
        path: a text file with a line `NAME: PROMPT` per picture, or a folder with a text file NAME.txt per picture,
            which may be the folder of the pictures; NAME is the file name or, of the text file, its stem.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: a line cannot be read, a prompt is empty, or a picture has none.
    """
    if prompt is not None and not prompt.strip():
        raise ValueError("--prompt is empty; leave it out to ask without a prompt.")
    if path is None:
        return None if prompt is None else dict.fromkeys(sources, prompt.strip())
    if not path.exists():
        raise FileNotFoundError(f"--prompts: {path} does not exist; check the path.")
    table = {} if path.is_dir() else _read_lines(path)
    found = {source: _beside(source, path) if path.is_dir() else _in_table(source, table) for source in sources}
    texts = {source: text or (prompt or "").strip() for source, text in found.items()}
    lost = [source.name.as_posix() for source, text in texts.items() if not text]
    if lost:
        raise ValueError(f"{path} has no prompt for {lost[0]}; add it, or give --prompt for all pictures without one.")
    return texts


def _read_lines(path: Path) -> dict[str, str]:
    table: dict[str, str] = {}
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, separator, text = line.partition("\t") if "\t" in line else line.partition(": ")
        if not (separator and name.strip() and text.strip()):
            raise ValueError(f"{path}, line {number}: expected 'NAME: PROMPT', got {line.strip()!r}.")
        if name.strip() in table:
            raise ValueError(f"{path}, line {number}: {name.strip()} has a prompt already; leave one of them out.")
        table[name.strip()] = text.strip()
    return table


def _in_table(source: Source, table: Mapping[str, str]) -> str:
    return table.get(source.name.as_posix(), table.get(source.name.name, ""))


def _beside(source: Source, folder: Path) -> str:
    for path in (folder / source.name.with_suffix(".txt"), folder / f"{source.path.stem}.txt"):
        if path.is_file():
            return " ".join(_text(path).split())
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8 ({error.reason}); save it as one.") from error
