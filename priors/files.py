"""The files of a prior's folder, and diffusers kept quiet while it reads them."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["quiet_diffusers", "read_json", "weights_variant"]


def read_json(path: Path, folder: Path) -> dict[str, Any]:
    """The names and values in a JSON file of a pipeline folder.

    Raises:
        ValueError: if it is missing or holds something else.
    """
    if not path.is_file():
        raise ValueError(
            f"{folder} is not a diffusers pipeline folder: {path.relative_to(folder)} is missing; it needs unet/ and "
            "scheduler/ as written by save_pretrained."
        )
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__} where names and values are expected")
    except ValueError as error:
        raise ValueError(
            f"{path.relative_to(folder)} in {folder} is damaged ({error}); save or download the prior again."
        ) from error
    return content


def weights_variant(folder: Path) -> str | None:
    """`fp16` where a folder has its weights in files of that name only."""
    plain, half = (
        [*folder.glob(f"*model{infix}.safetensors"), *folder.glob(f"*.safetensors.index{infix}.json")]
        for infix in ("", ".fp16")
    )
    return "fp16" if half and not plain else None


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Without the lines, warnings and progress bars of diffusers and transformers while they read a folder."""
    from diffusers.utils import logging as diffusers
    from transformers.utils import logging as transformers

    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    bars = [library for library in (diffusers, transformers) if library.is_progress_bar_enabled()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        for library in bars:
            library.disable_progress_bar()
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            for library in bars:
                library.enable_progress_bar()
