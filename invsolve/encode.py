"""Writing pictures: tensors in [-1, 1] become PNG or TIFF files that say in themselves how they were made.

What was read with a picture (alpha, ICC profile, EXIF, bit depth) goes along.  The provenance is JSON, in the text
chunk `invsolve` of a PNG and in the description of a TIFF; no file's name is trusted for it.
"""

from __future__ import annotations

import json
import os
import struct
import warnings
import zlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
import torch
from PIL import Image
from torch import Tensor

from .atomic import atomic_write
from .images import Picture
from .tiff import encode_tiff, is_tiff, tiff_description

__all__ = [
    "OUTPUT_SUFFIXES",
    "check_folder_name",
    "check_suffix",
    "encode_picture",
    "figure_metadata",
    "is_cut_off",
    "provenance",
    "provenance_of",
    "save_png",
]

PNG_BEGIN, PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
OUTPUT_SUFFIXES = (".png", ".tif", ".tiff")


# What people name pictures by and this package does not write; of a name that ends so, no folder is made.
OTHER_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".apng", ".mpo", ".heic", ".heif", ".hif"}
    | {".avif", ".jp2", ".j2k", ".jpf", ".jpx", ".jpc", ".j2c", ".jxl", ".jxr", ".wdp", ".hdp", ".exr", ".hdr"}
    | {".pic", ".pfm", ".pgm", ".ppm", ".pbm", ".pnm", ".pam", ".tga", ".ico", ".psd", ".psb", ".xcf", ".svg"}
    | {".pdf", ".eps", ".ps", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw", ".rw2", ".orf", ".raf", ".pef", ".srw"}
    | {".npy", ".npz", ".mat", ".fits", ".fit", ".dcm", ".nii"}
)


def provenance(tool: str, content: str, **more: Any) -> dict[str, Any]:
    """How a picture was made, as it stands in the file.

    Arguments:
        tool: what wrote it, such as "restore".
        content: what it shows, such as "sample".
        more: further entries.
    """
    return {"software": f"invsolve {version('invsolve')}", "tool": tool, "content": content, **more}


def figure_metadata(tool: str) -> dict[str, str]:
    """The provenance for matplotlib's `savefig(..., metadata=)` of a PNG."""
    return {"invsolve": json.dumps(provenance(tool, "figure"), sort_keys=True)}


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
    return encode(values, json.dumps(provenance, sort_keys=True), icc, like.exif, like.xmp)


def provenance_of(path: Path) -> dict[str, Any]:
    """What `encode_picture` wrote about the making of a picture file; empty if it did not write this one.

    Other programs describe their pictures in JSON with a "software", too.
    """
    try:
        with path.open("rb") as file:
            tiff = is_tiff(file.read(4))
        made = json.loads(tiff_description(path) if tiff else _png_text(path))
    except Exception:  # noqa: BLE001  a file of any kind may lie there
        return {}
    ours = isinstance(made, dict) and "tool" in made and str(made.get("software")).startswith("invsolve ")
    return made if ours else {}


def _png_text(path: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of large pictures, which are not decoded here
        with Image.open(path, formats=["PNG"]) as image:
            return image.info["invsolve"]


def is_cut_off(path: Path) -> bool:
    """Whether a file begins like a PNG or a TIFF and does not go on to its end, or is empty."""
    data = path.read_bytes()
    if is_tiff(data):
        try:
            tifffile.imread(path)
        except Exception:  # noqa: BLE001  decoders raise many types
            return True
        return False
    return not data or (data[:8] == PNG_BEGIN[: len(data)] and not data.endswith(PNG_END))


def save_png(x: Tensor, path: str | os.PathLike[str], provenance: Mapping[str, Any] | None = None) -> None:
    """Write (C, H, W) in [-1, 1], C = 1 or 3, as an 8-bit PNG; values outside are clipped."""
    text = None if provenance is None else json.dumps(provenance, sort_keys=True)
    atomic_write(path, _encode_png(_to_integers(x, 8), text))


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
        chunks += _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc))
    if exif:
        chunks += _chunk(b"eXIf", exif)
    for keyword, content in ((b"invsolve", text and text.encode()), (b"XML:com.adobe.xmp", xmp)):
        if content:
            chunks += _chunk(b"iTXt", keyword + b"\0\0\0\0\0" + content)  # not compressed, no language
    header = 8 + 25  # signature and IHDR; all these chunks may follow it at once
    return data[:header] + chunks + data[header:]


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _to_integers(x: Tensor, bit_depth: int) -> np.ndarray:
    """(C, H, W) in [-1, 1] to (H, W, C) uint8 or uint16, rounded; values outside are clipped."""
    if not x.isfinite().all():
        raise ValueError("A picture with non-finite values (NaN or inf) is not written.")
    top = 2**bit_depth - 1
    values = ((x.detach().cpu().double().clamp(-1, 1) + 1) / 2 * top).round().numpy()
    integers: np.ndarray = np.moveaxis(values, 0, 2).astype(np.uint8 if bit_depth == 8 else np.uint16)
    return integers
