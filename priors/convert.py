"""Folders of diffusers with weights as .bin files, written again with safetensors; code in them is never run."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["convert_folder"]

COPIED = (".json", ".txt", ".model", ".safetensors")
INDEX = ".bin.index.json"  # of weights in several files


def convert_folder(source: str | Path, folder: str | Path) -> Path:
    """Copy the folder of a diffusers model, with every .bin file of tensors as safetensors.

    Arguments:
        source: the folder as it was downloaded.
        folder: where to write; it must not exist, or be empty.

    Returns:
        The folder, for `load_prior`.

    Raises:
        ValueError: the source has no such files, one of them is damaged, in several parts or holds code, or the folder
            holds something; nothing is written then.
    """
    source, folder = Path(source), Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder; give another folder, or remove it first.")
    files = [path for path in sorted(source.rglob("*")) if path.is_file()]
    binary = [path for path in files if path.suffix == ".bin"]
    if not binary:
        raise ValueError(f"{source} holds no .bin file to convert; give the folder of a diffusers model that has some.")
    if parts := [path for path in files if path.name.endswith(INDEX)]:
        raise ValueError(f"{parts[0]} tells of weights in several parts; save the model again with diffusers instead.")
    from safetensors.torch import save_file

    target = folder.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as work:
        written = Path(work) / "prior"
        for path in files:
            copy = written / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix in COPIED:
                shutil.copyfile(path, copy)
            elif path.suffix == ".bin" and not path.with_suffix(".safetensors").is_file():
                name = path.name.removeprefix("pytorch_") if path.name.startswith("pytorch_model") else path.name
                save_file(_read(path), copy.with_name(name).with_suffix(".safetensors"), {"format": "pt"})
        written.replace(target)
    return folder


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a .bin file."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        return {name: value.contiguous().clone() for name, value in weights.items()}
    except Exception as error:  # of torch, zip files and the reader, each with its own for the same few causes
        raise ValueError(
            f"{path} cannot be read as named tensors ({type(error).__name__}): it is damaged, or holds code, which is "
            "never run; download it again, or take another prior."
        ) from error
