"""Pictures that describe an operator: mask and kernel files, read as `images.py` reads every other picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
import torch
from tifffile import PHOTOMETRIC
from torch import Tensor

from ..files.holes import load_mask
from ..files.images import MAX_PIXELS, load_image
from ..files.metadata import ORIENTATION
from ..files.tiff import upright

__all__ = ["read_grey", "read_holes", "read_taps"]


def read_grey(path: str) -> Tensor:
    """The mean over the channels of the picture at `path`, upright, in [0, 1]: float64 (H, W), exact for 16 bits.

    Raises:
        ValueError: if there is no readable picture, or it has transparent pixels.
    """
    try:
        picture = load_image(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    if not picture.is_opaque:
        raise ValueError(f"The picture {path!r} has transparent pixels; save it opaque.")
    top = 2**picture.bit_depth - 1
    levels = ((picture.tensor.to(torch.float64) + 1) / 2 * top).round()  # whole again, after the float32 of the tensor
    return levels.mean(dim=0) / top


def read_taps(path: str) -> Tensor:
    """The numbers of a kernel file, black or 0 being 0: float64 (H, W), of any scale.

    NumPy arrays (.npy) and TIFF files of floats hold the taps themselves, every other picture levels of grey.

    Raises:
        ValueError: if the file cannot be read or holds anything else.
    """
    values = _read_array(path) if Path(path).suffix.lower() == ".npy" else _read_float_tiff(path)
    if values is None:
        return read_grey(path)
    if values.ndim == 3:  # channels, first or last
        axis = 2 if values.shape[2] in (1, 3) else 0
        values = values.mean(axis=axis) if values.shape[axis] in (1, 3) else values
    if values.ndim != 2 or values.dtype.kind not in "fiub" or 0 in values.shape or not np.isfinite(values).all():
        raise ValueError(
            f"The kernel {path!r} holds {values.dtype} numbers of shape {values.shape}; it must hold finite real ones "
            "of shape (height, width)."
        )
    return torch.from_numpy(values.astype(np.float64))


def _read_array(path: str) -> np.ndarray:
    try:
        lazy = np.load(path, mmap_mode="r")  # objects are refused: that is its default
        if not isinstance(lazy, np.ndarray) or lazy.size > MAX_PIXELS:
            raise ValueError("it is no single array of the size of a kernel")
        return np.array(lazy)
    except Exception as error:  # noqa: BLE001  NumPy parses the header as Python, which has many ways to fail
        raise ValueError(
            f"Cannot read the array {path!r} ({str(error).rstrip('.')}); save it with numpy.save."
        ) from None


def _read_float_tiff(path: str) -> np.ndarray | None:
    """The numbers of a TIFF file of floats, upright; None for every other file.

    Raises:
        ValueError: it holds several pictures, or white is 0 in it.
    """
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            if page.dtype is None or page.dtype.kind != "f" or page.imagewidth * page.imagelength > MAX_PIXELS:
                return None
            values, pages, colours = page.asarray(), len(tiff.pages), page.photometric
            values = np.moveaxis(values, 0, 2) if page.axes == "SYX" else values
            orientation = page.tags.valueof(ORIENTATION, 1)
    except Exception:  # noqa: BLE001  no TIFF, or damaged: what reads the other files has the sentence
        return None
    if pages > 1:
        raise ValueError(f"The kernel {path!r} holds {pages} pictures; save the kernel as a file of its own.")
    if colours not in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB):
        name = getattr(colours, "name", f"unknown ({colours})")
        raise ValueError(f"The kernel {path!r} has {name} colours; save it with black = 0.")
    return upright(values, orientation)


def read_holes(path: str) -> Tensor:
    """The mask at `path`: (H, W) bool, True where the mean over the channels is above 127.5 of 255.

    Raises:
        ValueError: if there is no readable picture, it has transparent pixels, or is black or white everywhere.
    """
    try:
        return load_mask(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: OSError) -> ValueError:
    return ValueError(f"Cannot read the picture {path!r} ({str(error).rstrip('.')}); give the path of a PNG file.")
