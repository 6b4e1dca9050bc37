"""Errors that a user can bring about, as one sentence each."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from .devices import is_out_of_memory

__all__ = ["is_expected", "one_line", "sentence", "sentence_about"]

EXPECTED = (  # what a user can bring about
    ValueError,
    TypeError,
    OSError,
    ImportError,
    MemoryError,
    torch.OutOfMemoryError,
    Image.DecompressionBombError,
)


def is_expected(error: Exception) -> bool:
    """Whether a user can bring this about, so that it becomes a sentence; anything else is a bug."""
    return isinstance(error, EXPECTED) or is_out_of_memory(error)


def sentence(error: Exception) -> str:
    """One line for the user."""
    if is_out_of_memory(error):
        return "The device ran out of memory; lower --batch-size, or restore a smaller picture."
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return one_line(f"{place}{error.strerror}; choose another file or folder, or mend this one.")
    return one_line(" ".join(str(error).split()))


def sentence_about(path: Path, error: Exception) -> str:
    """One line for the user about one file of several, which names it."""
    text = sentence(error)
    return text if " ".join(path.name.split()) in text else one_line(f"{path}: {text}")


def one_line(text: str) -> str:
    """The text with what cannot be shown, such as a newline in a file name, as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
