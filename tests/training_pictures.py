"""A tiny training set for the tests of the training scripts."""

import numpy as np
from PIL import Image


def picture(seed, size=(320, 300)):
    """A picture without two equal neighbourhoods."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def training_set(folder):
    """Write three photographs, one for validation and a cut-out."""
    for kind in ("photos", "validation", "stamps"):
        (folder / kind).mkdir(parents=True)
    for i in range(3):
        picture(i).save(folder / "photos" / f"{i}.png")
    picture(3).save(folder / "validation" / "3.png")
    stamp = picture(4, (40, 60)).convert("RGBA")
    stamp.putalpha(255)
    stamp.save(folder / "stamps" / "stamp.png")
    return folder
