"""What the converters share: tensors read without running code and checked, folders written whole or not at all."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["check_tensors", "new_folder", "read_checkpoint", "require_empty"]


def read_checkpoint(path: Path, network: str, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors, by their names, of a file that PyTorch saved; code in it is never run.

    Arguments:
        path: the file.
        network: what it should be of, such as "an ADM network".
        sha256: what its checksum has to be; None does not check it.

    Raises:
        ValueError: the file is missing, damaged, another one, or holds something else than named tensors.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give the checkpoint of {network}.")
    if sha256 is not None:
        with path.open("rb") as file:
            got = hashlib.file_digest(file, "sha256").hexdigest()
        if got != sha256.lower():
            raise ValueError(f"{path} has the sha256 {got}, expected is {sha256}; download it again.")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of torch, zip files and the reader, each with its own for the same few causes
        raise ValueError(
            f"{path} cannot be read as tensors ({type(error).__name__}): it is damaged, or holds code, which "
            "is never run; download it again from where it was published."
        ) from error
    if not isinstance(weights, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in weights.items()
    ):
        raise ValueError(f"{path} holds something else than named tensors; give the state dict of {network}.")
    for name, tensor in weights.items():
        if tensor.layout != torch.strided or tensor.is_complex() or tensor.is_meta:
            raise ValueError(
                f"{path} holds {name} as {tensor.dtype} numbers of a kind that is not stored (sparse, complex or "
                f"without data); give the state dict of {network}."
            )
    return weights


def check_tensors(weights: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], network: str) -> None:
    """Whether these are the tensors of the network.

    Arguments:
        weights: of the checkpoint.
        expected: the shapes of all tensors.
        network: what the config describes, such as "ADM network".

    Raises:
        ValueError: if tensors are missing, too many or of another shape.
    """
    missing, extra = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or extra:
        lacks = [f"missing ({len(missing)}, such as {missing[0]})"] if missing else []
        holds = [f"unknown ({len(extra)}, such as {extra[0]})"] if extra else []
        problem = f"tensors are {' and '.join(lacks + holds)}"
    elif wrong := [name for name, shape in expected.items() if tuple(weights[name].shape) != shape]:
        name = wrong[0]
        problem = f"{name} has the shape {tuple(weights[name].shape)}, expected is {expected[name]}"
    else:
        return
    raise ValueError(
        f"The checkpoint is not of the {network} that the config describes: {problem}; "
        "give the config it was trained with, or download it again."
    )


def require_empty(folder: Path) -> None:
    """Nothing that is there is overwritten.

    Raises:
        ValueError: there is a file of that name, or a folder that holds something.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder; give another folder, or remove it first.")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes the place of `folder` at the end, and leaves nothing after an error."""
    target = folder.resolve()  # a link to an empty folder stays one
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as work:
        written = Path(work) / "prior"  # the temporary folder itself is closed to other users
        written.mkdir()
        yield written
        written.replace(target)
