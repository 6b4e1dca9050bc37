"""Mask, kernel and JPEG files, the small size and the random numbers that the tests of the operators share."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SHAPE = (3, 7, 8)  # odd and even, not square; brute force takes (C H W)^2 steps
FILES = tempfile.TemporaryDirectory()  # removed at exit
CORNER_KERNEL = [[0, 0, 0, 0, 0], [0, 255, 0, 0, 0], [0, 120, 30, 0, 0], [0, 0, 0, 60, 0], [0, 0, 0, 0, 0]]


def save(name: str, values: Any) -> str:
    path = Path(FILES.name, name)
    Image.fromarray(np.asarray(values, dtype=np.uint8)).save(path)
    return str(path)


def mask_file(shape: tuple[int, int]) -> str:
    """White (the hole) in the first two rows and at one pixel, 129 there; the rest is nearly black."""
    picture = np.full(shape, 30)
    picture[:2], picture[4, 3] = 255, 129
    return save(f"mask_{shape[0]}x{shape[1]}.png", picture)


KERNEL_FILE = save("kernel.png", CORNER_KERNEL)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
