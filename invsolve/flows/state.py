"""The state of a fit that is not finished: a folder beside the one that it will make."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..files.atomic import is_unfinished

__all__ = ["ABOUT", "PAIRS", "PROGRESS", "another_fit", "check_state", "load_state", "state_folder"]

ABOUT, PAIRS, PROGRESS = "card.json", "pairs.safetensors", "progress.safetensors"


def state_folder(folder: Path) -> Path:
    """Where an unfinished fit of `folder` lives."""
    return folder.with_name(folder.name + ".state")


def check_state(work: Path, text: str) -> None:
    """Refuse a state folder that is not the state of this very fit."""
    path = work / ABOUT
    if path.is_file():
        if path.read_text() != text:
            raise another_fit(work)
    elif work.exists() and (not work.is_dir() or any(not is_unfinished(entry) for entry in work.iterdir())):
        raise FileExistsError(f"{work} exists and is not the state of a fit; choose another folder with -o.")


def another_fit(work: Path) -> ValueError:
    """The error about a state folder of other options."""
    return ValueError(
        f"{work} holds an unfinished fit with other options; repeat its options (see {ABOUT}) to finish it, or remove "
        "that folder."
    )


def load_state(path: Path) -> dict[str, Tensor]:
    """Tensors of an unfinished fit."""
    try:
        return load_file(path)
    except (SafetensorError, OSError):
        raise ValueError(f"{path} is damaged; remove the folder {path.parent}, and the fit starts anew.") from None
