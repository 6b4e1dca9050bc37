"""The pictures of the benchmarks, and the measurement made of them; imported by the other scripts.

    from pictures import held_out, tuning

Results are reported on `held_out`; hyperparameters are chosen on `tuning`.  The two share no picture, and the bundled
prior has seen neither.  `validation` chooses among networks in training, which have not seen it either.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from invsolve.files.images import to_tensor

__all__ = ["HELD_OUT", "SIZE", "TUNING", "held_out", "pictures", "tuning", "validation"]

SIZE = 256
HELD_OUT = ("astronaut", "chelsea", "coffee", "rocket")  # scikit-image
VALIDATION_SIDES = (288, 480)  # short sides of every second photograph each: dense ones, and sharp ones
TUNING = ("china.jpg", "flower.jpg", "camera", "coins")  # two of scikit-learn, two grey ones of scikit-image


def held_out(size: int = SIZE) -> Tensor:
    """astronaut, chelsea, coffee and rocket at 256 x 256, (4, 3, size, size) in [-1, 1].

    Arguments:
        size: below 256, the middle of each picture is cut out.
    """
    return _stack([_scikit_image(name) for name in HELD_OUT], size)


def tuning(size: int = SIZE) -> Tensor:
    """china, flower, camera and coins (grey in all three channels), (4, 3, size, size) in [-1, 1].

    Arguments:
        size: as in `held_out`.
    """
    from sklearn.datasets import load_sample_image

    arrays = [load_sample_image(name) if "." in name else _scikit_image(name) for name in TUNING]
    return _stack(arrays, size)


def validation(folder: Path) -> Tensor:
    """The middle of every validation photograph of make_training_set.py, reduced, (B, 3, SIZE, SIZE) in [-1, 1].

    Raises:
        FileNotFoundError: the folder has none.
    """
    files = sorted((folder / "validation").iterdir()) if (folder / "validation").is_dir() else []
    if not files:
        raise FileNotFoundError(f"{folder} holds no validation/*; make it with scripts/make_training_set.py.")
    crops = []
    for i, file in enumerate(files):
        photo = Image.open(file).convert("RGB")
        scale = VALIDATION_SIDES[i % 2] / min(photo.size)
        width, height = (round(n * scale) for n in photo.size)
        left, top = (width - SIZE) // 2, (height - SIZE) // 2
        small = photo.resize((width, height), Image.Resampling.LANCZOS)
        crops.append(to_tensor(small.crop((left, top, left + SIZE, top + SIZE))))
    return torch.cat(crops)


def pictures(name: str, size: int = SIZE) -> Tensor:
    """`held-out` or `tuning` by its name."""
    return held_out(size) if name == "held-out" else tuning(size)


def _scikit_image(name: str) -> np.ndarray:
    from skimage import data

    array: np.ndarray = getattr(data, name)()
    return array


def _stack(arrays: list[np.ndarray], size: int) -> Tensor:
    if not 1 <= size <= SIZE:
        raise ValueError(f"size must be 1 to {SIZE}, got {size}.")
    small = [Image.fromarray(a).convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS) for a in arrays]
    middle = slice((SIZE - size) // 2, (SIZE - size) // 2 + size)
    return torch.cat([to_tensor(image) for image in small])[..., middle, middle].contiguous()
