"""The files of a prior's folder, and diffusers kept quiet while it reads them."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

__all__ = [
    "CANNOT_HELP",
    "check_counts",
    "check_weights",
    "files_within",
    "quiet_diffusers",
    "read_json",
    "read_number",
    "reading",
    "refuse_code",
    "short",
    "weight_files",
    "weights_variant",
]

CANNOT_HELP = (MemoryError, torch.OutOfMemoryError, ImportError)  # errors that another copy of the files would not mend
CODE = (".py", ".pyc", ".pyo", ".pyw", ".pyd", ".so", ".dll", ".dylib")  # what Python can import
COUNT = re.compile("layer|block|depth|stage")  # in the names of fields that count parts of a network
NO_COUNT = re.compile("channel|size|dim|width|ratio|scale|norm|eps")
UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".pkl")  # weights that can hold code


def read_json(path: Path, folder: Path) -> dict[str, Any]:
    """The names and values in a JSON file of a pipeline folder.

    Raises:
        ValueError: if it is missing or holds something else.
    """
    if not path.is_file():
        raise ValueError(
            f"{folder} is not a diffusers pipeline folder: {_within(path, folder)} is missing; it needs unet/ or "
            "transformer/, scheduler/, and of latent models vae/, as written by save_pretrained."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__} where names and values are expected")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{_within(path, folder)} in {folder} is damaged ({error}); save or download the prior again."
        ) from error
    return content


def _within(path: Path, folder: Path) -> Path:
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def read_number(config: Mapping[str, Any], name: str, default: float, *, positive: bool = True) -> float:
    """A number of a config, where None is the default.

    Raises:
        ValueError: it is something else, not finite, or not positive where it must be.
    """
    value = config.get(name)
    value = default if value is None else value
    if type(value) not in (int, float) or not math.isfinite(value) or (positive and value <= 0):
        kind = "a positive number" if positive else "a number"
        raise ValueError(f"The config has {name} {value!r}; expected is {kind}: save or download the prior again.")
    return float(value)


def files_within(folder: Path) -> list[Path]:
    """The files of a folder at any depth, also behind links to folders, sorted."""
    return sorted(Path(place, name) for place, _, names in _walk(folder) for name in names)


def _walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk`, also behind links to folders, every folder once."""
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()  # links that lead in a circle
            continue
        seen.add(real)
        yield place, folders, names


def refuse_code(folder: Path) -> None:
    """Refuse a model folder that holds code at any depth, also behind links to folders.

    Raises:
        ValueError: it does.
    """
    for place, folders, names in _walk(folder):
        for name in sorted((*names, *folders)):
            if name.lower().endswith(CODE):
                raise ValueError(
                    f"{folder} holds code ({_within(Path(place, name), folder)}), and a model needs none here; remove "
                    "the code from the folder, or download the prior again without it."
                )


def check_weights(folder: Path) -> None:
    """Refuse weights that are not safetensors, and an index of several files that names anything else.

    Arguments:
        folder: of one part of a prior, with its config.json and its weights.

    Raises:
        ValueError: they are not, or the index is damaged.
    """
    others = sorted(path.name for path in folder.glob("*") if path.suffix.lower() in UNSAFE)
    if others and not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{folder} has its weights in {others[0]}, which can hold code, and not as safetensors; convert the whole "
            "prior with `invsolve prior convert FOLDER -o OUT`, or download its safetensors."
        )
    for index in folder.glob("*.index*.json"):
        names = read_json(index, folder).get("weight_map")
        plain = isinstance(names, dict) and all(
            isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors")
            for name in names.values()
        )
        if ".safetensors.index" in index.name and not plain:
            raise ValueError(
                f"{index} names files that are not safetensors beside it; save or download the prior again."
            )


def check_counts(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse a config that asks for more layers than there are tensors of weights: building them would not end.

    Arguments:
        config: of a network.
        folder: with its weights.

    Raises:
        ValueError: it does.
    """
    try:
        tensors = sum(len(safe_open(path, "pt").keys()) for path in folder.glob("*.safetensors"))
    except Exception:  # noqa: BLE001  damaged weights: what loads them has the sentence
        return
    for name, value in config.items():
        if not COUNT.search(name) or NO_COUNT.search(name):
            continue
        for count in _flat(value):
            if type(count) in (int, float) and count > max(tensors, 1):
                raise ValueError(
                    f"The config.json in {folder} has {name} {count}, and the weights hold {tensors} tensors; save or "
                    "download the prior again."
                )


def _flat(value: Any) -> Iterator[Any]:
    """What stands in lists of lists, to a depth that JSON can have."""
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, list):
            pending += one
        else:
            yield one


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model that transformers saved.

    Raises:
        ValueError: there are none, or other files stand for them.
    """
    check_weights(folder)
    infix = "" if weights_variant(folder) is None else f".{weights_variant(folder)}"
    whole, index = folder / f"model{infix}.safetensors", folder / f"model.safetensors.index{infix}.json"
    if index.is_file() and not whole.is_file():
        return sorted({folder / name for name in read_json(index, folder)["weight_map"].values()})
    if not whole.is_file():
        raise ValueError(f"{folder} has no {whole.name}; save or download the prior again.")
    return [whole]


def short(error: Exception, folder: Path) -> str:
    """What a library says of a folder, in one line that fits in a sentence."""
    reason = str(error).partition(" If you want")[0].replace(str(folder), folder.name)
    return textwrap.shorten(reason, 200, placeholder=" ...").rstrip(".")


@contextmanager
def reading(folder: Path, what: str) -> Iterator[None]:
    """Quiet libraries, whose errors become one sentence: the folder does not hold `what`.

    Raises:
        ValueError: anything that another copy of the files would mend.
    """
    try:
        with quiet_diffusers():
            yield
    except CANNOT_HELP:
        raise
    except Exception as error:  # of torch, safetensors, diffusers, transformers: each has its own for the same causes
        raise ValueError(
            f"{folder} does not hold {what} ({short(error, folder)}); save or download the prior again."
        ) from error


def weights_variant(folder: Path) -> str | None:
    """`fp16` where a folder has its weights in files of that name only."""
    plain, half = (
        [*folder.glob(f"*model{infix}.safetensors"), *folder.glob(f"*.safetensors.index{infix}.json")]
        for infix in ("", ".fp16")
    )
    return "fp16" if half and not plain else None


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Without the lines, warnings and progress bars of diffusers and transformers while they read a folder.

    Torch's default dtype is as before afterwards: diffusers leaves it in half precision where such a load fails.
    """
    from diffusers.utils import logging as diffusers
    from transformers.utils import logging as transformers

    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    bars = [library for library in (diffusers, transformers) if library.is_progress_bar_enabled()]
    dtype = torch.get_default_dtype()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        for library in bars:
            library.disable_progress_bar()
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            for library in bars:
                library.enable_progress_bar()
