"""Reading pictures: files and 8- or 16-bit numbers become tensors in [-1, 1]; `invsolve.files.encode` is the way back.

A file becomes a `Picture`: colours as a tensor, and what a restoration must hand back unchanged (alpha, ICC profile,
EXIF, bit depth).
"""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .decode import FORMATS, decode, expand, orientation_of, split_alpha
from .metadata import exif_block, kept_xmp
from .tiff import RefusedError, upright

__all__ = [
    "MAX_PIXELS",
    "SUFFIXES",
    "Picture",
    "at_bit_depth",
    "load_image",
    "to_tensor",
]

MAX_PIXELS = 64_000_000  # 8000 x 8000: more than any prior here restores, far less than what fills the memory
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")


@dataclass(frozen=True)
class Picture:
    """A picture file: what is restored, and what is carried through.

    Arguments:
        tensor: colours (C, H, W) in [-1, 1], float32, C = 1 or 3, turned upright.
        alpha: (H, W) uint8 or uint16 as in the file, or None.
        bit_depth: 8 or 16.
        icc: colour profile, or None.
        exif: EXIF block without the orientation, which has been applied, or None; see `invsolve.files.metadata`.
        xmp: XMP packet, or None.
        format: the file's format, such as "PNG".
        sha256: of the file's bytes.
        notes: what was changed on reading, as sentences.
    """

    tensor: Tensor
    alpha: np.ndarray | None = None
    bit_depth: int = 8
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    format: str = "PNG"
    sha256: str = ""
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.tensor.shape
        return channels, height, width

    @property
    def is_opaque(self) -> bool:
        """Whether no pixel is transparent, not even in part."""
        return self.alpha is None or bool(self.alpha.min() == np.iinfo(self.alpha.dtype).max)


# --- numbers ----------------------------------------------------------------------------------------------------------


def to_tensor(y: Tensor | np.ndarray | Image.Image | str | os.PathLike[str]) -> Tensor:
    """A batch of pictures (B, C, H, W) in [-1, 1] from whatever holds one.

    Arguments:
        y: a path; a PIL image (its alpha is left out); a uint8, uint16 or bool array (H, W), (H, W, 1) or (H, W, 3),
            black = 0; a uint8 tensor (H, W), (C, H, W) or (B, C, H, W); or a float tensor or array of such a shape,
            which is in [-1, 1] already and is not rescaled.  PIL images are turned upright by their EXIF orientation.

    Raises:
        ValueError: another shape, values far outside [-1, 1], or NaN or infinite values.
        TypeError: another type.
    """
    if isinstance(y, str | os.PathLike):
        return load_image(y).tensor[None]
    if isinstance(y, Image.Image):
        try:
            return _from_integers(split_alpha(upright(expand(y, []), orientation_of(y)))[0])[None]
        except RefusedError as error:
            raise ValueError(f"The picture {error}") from None
    if isinstance(y, np.ndarray) and y.dtype in (np.bool_, np.uint8, np.uint16):
        if y.ndim not in (2, 3) or (y.ndim == 3 and y.shape[2] not in (1, 3)):
            raise ValueError(
                f"An integer picture must have shape (H, W), (H, W, 1) or (H, W, 3), got {y.shape}; "
                "pass batches as a float tensor (B, C, H, W) in [-1, 1], and leave the alpha channel out."
            )
        return _from_integers(y)[None]
    if isinstance(y, np.ndarray) and np.issubdtype(y.dtype, np.floating):
        y = torch.from_numpy(np.ascontiguousarray(y))
    if not (isinstance(y, Tensor) and (y.is_floating_point() or y.dtype == torch.uint8)):
        what = f"{type(y).__name__} of {y.dtype}" if isinstance(y, Tensor | np.ndarray) else type(y).__name__
        raise TypeError(
            f"A picture must be a path, a PIL image, a uint8, uint16 or bool array (H, W[, C]), a uint8 tensor, or a "
            f"float tensor or array (C, H, W) or (B, C, H, W) in [-1, 1], got {what}."
        )
    if y.ndim not in (2, 3, 4) or 0 in y.shape:
        raise ValueError(
            f"A tensor or float picture must have shape (H, W), (C, H, W) or (B, C, H, W), got {tuple(y.shape)}."
        )
    if y.ndim > 2 and y.shape[-1] in (1, 3) and y.shape[-3] not in (1, 3):
        raise ValueError(
            f"The picture {tuple(y.shape)} looks like one with its channels last; a tensor or float picture must have "
            "shape (C, H, W) or (B, C, H, W), so move the channels first."
        )
    if y.dtype == torch.uint8:
        y = 2 * (y.float() / 255) - 1
    if not y.isfinite().all():
        count = int((~y.isfinite()).sum())
        raise ValueError(f"The picture has {count} non-finite values (NaN or inf); replace or mask them first.")
    if y.abs().max() > 8:
        raise ValueError(
            f"The picture has values from {y.min().item():.4g} to {y.max().item():.4g}, which looks like 0 to 255; "
            "pass uint8, or scale it to [-1, 1]."
        )
    return y.reshape(-1, *y.shape[-3:]) if y.ndim > 2 else y[None, None]


def _from_integers(values: np.ndarray) -> Tensor:
    """(H, W) or (H, W, C) of bool, uint8 or uint16 to (C, H, W) float32 in [-1, 1]."""
    top = 1 if values.dtype == np.bool_ else np.iinfo(values.dtype).max
    planes = values[None] if values.ndim == 2 else np.moveaxis(values, 2, 0)
    return torch.from_numpy((2 * (planes / top) - 1).astype(np.float32))


# --- reading ----------------------------------------------------------------------------------------------------------


def load_image(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS, *, keep_metadata: bool = False) -> Picture:
    """Read a PNG, JPEG, TIFF, WebP or BMP file, 8 or 16 bits, upright.

    Float TIFF files must hold values in [0, 1] and become 16-bit pictures.

    Arguments:
        path: of the file.
        max_pixels: the guard.
        keep_metadata: keep EXIF and XMP that tell of a person or a place, too, such as a GPS position.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a picture, is damaged, is of a kind that is not supported, or has more than
            `max_pixels` pixels, which is checked before anything is decoded.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give a picture ({', '.join(FORMATS)}).")
    data = path.read_bytes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # decoders warn of oddities that they cope with
            return _decode(data, max_pixels, keep_metadata)
    except RefusedError as error:
        raise ValueError(f"{path} {error}") from None
    except Image.DecompressionBombError:  # Pillow's own guard, far above what can be restored
        raise ValueError(f"{path} has more pixels than can be read at all; make the picture smaller.") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not a picture that can be read ({', '.join(FORMATS)}).") from None
    except Exception as error:  # decoders raise many types on damaged files; each means the same to the user
        raise ValueError(f"{path} is damaged or cut off ({str(error).rstrip('.')}); get the file anew.") from error


def at_bit_depth(picture: Picture, bit_depth: int) -> Picture:
    """The same picture, to be written with 8 or 16 bits; its alpha goes along."""
    if bit_depth == picture.bit_depth:
        return picture
    alpha = picture.alpha
    if alpha is not None:
        alpha = alpha.astype(np.uint16) * 257 if bit_depth == 16 else (alpha // 257).astype(np.uint8)
    return replace(picture, alpha=alpha, bit_depth=bit_depth)


def _decode(data: bytes, max_pixels: int, keep_metadata: bool) -> Picture:
    notes: list[str] = []
    content = decode(data, max_pixels, notes)
    colours, alpha = split_alpha(content.values)
    icc = content.icc
    if icc and icc[16:20] != (b"GRAY" if colours.ndim == 2 else b"RGB "):  # of the colours before a conversion
        notes.append("The colour profile does not belong to grey or RGB values and was left out.")
        icc = None
    return Picture(
        tensor=_from_integers(colours),
        alpha=alpha,
        bit_depth=8 * content.values.dtype.itemsize,
        icc=icc,
        exif=exif_block(content.tags, content.order, of_tiff=content.format == "TIFF", everything=keep_metadata),
        xmp=kept_xmp(content.xmp, everything=keep_metadata),
        format=content.format,
        sha256=hashlib.sha256(data).hexdigest(),
        notes=tuple(notes),
    )
