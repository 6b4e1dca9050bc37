"""Pictures that describe an operator: mask and kernel files, read as `images.py` reads every other picture."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..holes import load_mask
from ..images import load_image

__all__ = ["read_grey", "read_holes"]


def read_grey(path: str) -> Tensor:
    """The mean over the channels of the picture at `path`, upright, in [0, 1]: float64 (H, W), exact for 16 bits.

    Raises:
        ValueError: if there is no readable picture, or it has transparent pixels.
    """
    try:
        picture = load_image(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    if picture.alpha is not None and picture.alpha.min() < np.iinfo(picture.alpha.dtype).max:
        raise ValueError(f"The picture {path!r} has transparent pixels; save it opaque.")
    top = 2**picture.bit_depth - 1
    levels = ((picture.tensor.to(torch.float64) + 1) / 2 * top).round()  # whole again, after the float32 of the tensor
    return levels.mean(dim=0) / top


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
