"""Grey pictures that describe an operator: mask and kernel files."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["read_grey"]


def read_grey(path: str) -> Tensor:
    """The picture at `path` as grey values in [0, 1], float64 (H, W); 16-bit files keep their precision.

    Raises:
        ValueError: if there is no readable picture.
    """
    try:
        with Image.open(path) as picture:
            deep = picture.mode.startswith("I")  # "I;16" and "I": convert("L") would clip them at 255
            values = np.asarray(picture if deep else picture.convert("L"), dtype=np.float64)
    except OSError as error:
        raise ValueError(f"Cannot read the picture {path!r} ({error}); give the path of a PNG file.") from error
    return torch.from_numpy(values / (65535 if deep else 255))
