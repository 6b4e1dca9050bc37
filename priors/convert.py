"""Folders of diffusers with weights as .bin files, written again with safetensors; code in them is never run."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..files.encode import check_folder_name
from .checkpoints import new_folder, read_checkpoint, require_empty

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
    check_folder_name(folder)
    require_empty(folder)
    files = [path for path in sorted(source.rglob("*")) if path.is_file()]
    binary = [path for path in files if path.suffix == ".bin"]
    if not binary:
        raise ValueError(f"{source} holds no .bin file to convert; give the folder of a diffusers model that has some.")
    if parts := [path for path in files if path.name.endswith(INDEX)]:
        raise ValueError(f"{parts[0]} tells of weights in several parts; save the model again with diffusers instead.")
    from safetensors.torch import save_file

    with new_folder(folder) as written:
        for path in files:
            copy = written / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix in COPIED:
                shutil.copyfile(path, copy)
            elif path.suffix == ".bin" and not path.with_suffix(".safetensors").is_file():
                name = path.name.removeprefix("pytorch_") if path.name.startswith("pytorch_model") else path.name
                weights = read_checkpoint(path, "a diffusers model")
                whole = {key: value.contiguous().clone() for key, value in weights.items()}  # as safetensors wants it
                save_file(whole, copy.with_name(name).with_suffix(".safetensors"), {"format": "pt"})
    return folder
