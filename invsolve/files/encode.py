"""Writing pictures: tensors in [-1, 1] become PNG or TIFF files that say in themselves how they were made.

What was read with a picture (alpha, ICC profile, EXIF, bit depth) goes along.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import torch
from torch import Tensor

from .atomic import atomic_write
from .images import Picture
from .provenance import KEYWORD, png_chunk, png_text, sealed
from .tiff import encode_tiff

__all__ = [
    "OUTPUT_SUFFIXES",
    "check_folder_name",
    "check_suffix",
    "encode_picture",
    "save_png",
]

OUTPUT_SUFFIXES = (".png", ".tif", ".tiff")


# What people name pictures by and this package does not write; of a name that ends so, no folder is made.
OTHER_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("jpg", "jpeg", "jpe", "jfif", "jls", "webp", "bmp", "dib", "gif", "apng", "mng", "mpo", "qoi", "flif", "bpg"),
        *("heic", "heics", "heif", "heifs", "hif", "avif", "avifs", "jxl", "jxr", "wdp", "hdp"),
        *("jp2", "jpeg2000", "jpg2", "j2k", "j2c", "jpf", "jpx", "jpc", "jpm", "jph", "jhc", "mj2"),
        *("exr", "hdr", "pic", "pfm", "pgm", "ppm", "pbm", "pnm", "pam", "tga", "pcx", "dcx", "dds", "sgi", "ras"),
        *("ico", "cur", "icns", "xbm", "xpm", "psd", "psb", "xcf", "kra", "ora", "svg", "svgz", "wmf", "emf"),
        *("pdf", "eps", "ps", "dng", "cr2", "cr3", "crw", "nef", "nrw", "arw", "sr2", "srf", "raw", "rw2", "orf"),
        *("raf", "pef", "srw", "x3f", "erf", "kdc", "dcr", "mos", "mrw", "3fr", "iiq", "rwl"),
        *("npy", "npz", "mat", "fits", "fit", "dcm", "nii", "czi", "lif", "nd2", "svs"),
    )
)


def check_suffix(path: Path) -> None:
    """Refuse a name that ends like a picture of a kind that is not written, unless it is a folder that is there.

    Raises:
        ValueError: it does.
    """
    if path.suffix.lower() in OTHER_SUFFIXES and not path.is_dir():
        raise ValueError(
            f"{path.name} cannot be written; name a file ending in .png, .tif or .tiff, or a folder (one whose name "
            f"ends in {path.suffix} must be there already)."
        )


def check_folder_name(path: Path) -> None:
    """Refuse the name of a picture where a folder is to be made.

    Raises:
        ValueError: it is one.
    """
    if path.suffix.lower() in OTHER_SUFFIXES.union(OUTPUT_SUFFIXES) and not path.exists():
        raise ValueError(f"{path.name} is the name of a picture, and several files are written; name a folder.")


def encode_picture(path: str | os.PathLike[str], x: Tensor, like: Picture, provenance: Mapping[str, Any]) -> bytes:
    """A picture file at the bit depth of `like`, with its alpha, profile, EXIF and XMP, as PNG or TIFF by suffix.

    Alpha is resized if the picture has another size; the profile is kept only if grey stays grey and colour colour.

    Arguments:
        path: a name that ends in .png, .tif or .tiff.
        x: colours (C, H, W) in [-1, 1], C = 1 or 3; values outside are clipped.
        like: the picture that was read.
        provenance: how it was made, see `provenance`.

    Raises:
        ValueError: non-finite values, or another suffix.
    """
    path = Path(path)
    if path.suffix.lower() not in OUTPUT_SUFFIXES:
        raise ValueError(f"{path.name} cannot be written; pictures are written as .png, .tif or .tiff.")
    values = _to_integers(x, like.bit_depth)
    if like.alpha is not None:
        values = np.dstack([values, _resize(like.alpha, values.shape[:2])])
    icc = like.icc if len(x) == len(like.tensor) else None
    encode = _encode_png if path.suffix.lower() == ".png" else encode_tiff
    return sealed(provenance, lambda text: encode(values, text, icc, like.exif, like.xmp))


def save_png(x: Tensor, path: str | os.PathLike[str], provenance: Mapping[str, Any] | None = None) -> None:
    """Write (C, H, W) in [-1, 1], C = 1 or 3, as an 8-bit PNG; values outside are clipped."""
    values = _to_integers(x, 8)
    data = _encode_png(values) if provenance is None else sealed(provenance, lambda text: _encode_png(values, text))
    atomic_write(path, data)


def _resize(alpha: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Alpha (H, W) at another size; the same numbers at its own."""
    if alpha.shape == size:
        return alpha
    planes = torch.from_numpy(alpha.astype(np.float64))[None, None]
    resized = torch.nn.functional.interpolate(planes, size=size, mode="bilinear", antialias=True)
    return resized[0, 0].round().numpy().astype(alpha.dtype)


def _encode_png(
    values: np.ndarray,
    text: str | None = None,
    icc: bytes | None = None,
    exif: bytes | None = None,
    xmp: bytes | None = None,
) -> bytes:
    """A PNG file of (H, W, 1 | 2 | 3 | 4) uint8 or uint16, with metadata chunks as the PNG specification has them."""
    data = bytes(imagecodecs.png_encode(np.ascontiguousarray(values), level=6))
    chunks = b""
    if icc:
        chunks += png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc))
    if exif:
        chunks += png_chunk(b"eXIf", exif)
    for keyword, content in ((KEYWORD, text and text.encode()), ("XML:com.adobe.xmp", xmp)):
        if content:
            chunks += png_text(keyword, content)
    header = 8 + 25  # signature and IHDR; all these chunks may follow it at once
    return data[:header] + chunks + data[header:]


def _to_integers(x: Tensor, bit_depth: int) -> np.ndarray:
    """(C, H, W) in [-1, 1] to (H, W, C) uint8 or uint16, rounded; values outside are clipped."""
    if not x.isfinite().all():
        raise ValueError("A picture with non-finite values (NaN or inf) is not written.")
    top = 2**bit_depth - 1
    values = ((x.detach().cpu().double().clamp(-1, 1) + 1) / 2 * top).round().numpy()
    integers: np.ndarray = np.moveaxis(values, 0, 2).astype(np.uint8 if bit_depth == 8 else np.uint16)
    return integers


def spread_picture(std: Tensor) -> Tensor:
    """A standard deviation (C, H, W) as a grey picture (1, H, W) in [-1, 1], white = the largest value in it."""
    level = std.square().mean(dim=0, keepdim=True).sqrt()
    return 2 * level / level.max().clamp_min(1e-12) - 1
