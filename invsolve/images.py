"""Picture files and 8- or 16-bit numbers on one side, tensors in [-1, 1] on the other: the only place that knows both.

A file becomes a `Picture`: colours as a tensor, and what a restoration must hand back unchanged (alpha, ICC profile,
EXIF, bit depth).  Everything is written as PNG, or as TIFF where the file name asks for it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
import torch
from PIL import Image, UnidentifiedImageError
from tifffile import EXTRASAMPLE, PHOTOMETRIC
from torch import Tensor

from .atomic import atomic_write

__all__ = [
    "MAX_PIXELS",
    "SUFFIXES",
    "Picture",
    "at_bit_depth",
    "encode_picture",
    "load_image",
    "load_mask",
    "provenance_of",
    "save_png",
    "to_tensor",
]

MAX_PIXELS = 64_000_000  # 8000 x 8000: more than any prior here restores, far less than what fills the memory
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP")  # Pillow tries no other decoder
ORIENTATION, EXIF_IFD, GPS_IFD = 0x0112, 0x8769, 0x8825
DESCRIPTIVE_TAGS = (270, 271, 272, 305, 306, 315, 33432)  # description, make, model, software, date, artist, copyright


@dataclass(frozen=True)
class Picture:
    """A picture file: what is restored, and what is carried through.

    Arguments:
        tensor: colours (C, H, W) in [-1, 1], float32, C = 1 or 3, turned upright.
        alpha: (H, W) uint8 or uint16 as in the file, or None.
        bit_depth: 8 or 16.
        icc: colour profile, or None.
        exif: EXIF block without the orientation, which has been applied, or None.
        format: the file's format, such as "PNG".
        sha256: of the file's bytes.
        notes: what was changed on reading, as sentences.
    """

    tensor: Tensor
    alpha: np.ndarray | None = None
    bit_depth: int = 8
    icc: bytes | None = None
    exif: bytes | None = None
    format: str = "PNG"
    sha256: str = ""
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.tensor.shape
        return channels, height, width


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
            upright = _upright(_expand(y, []), _orientation(y))
            return _from_integers(_split_alpha(upright)[0])[None]
        except _RefusedError as error:
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


def _to_integers(x: Tensor, bit_depth: int) -> np.ndarray:
    """(C, H, W) in [-1, 1] to (H, W, C) uint8 or uint16, rounded; values outside are clipped."""
    if not x.isfinite().all():
        raise ValueError("A picture with non-finite values (NaN or inf) is not written.")
    top = 2**bit_depth - 1
    values = ((x.detach().cpu().double().clamp(-1, 1) + 1) / 2 * top).round().numpy()
    integers: np.ndarray = np.moveaxis(values, 0, 2).astype(np.uint8 if bit_depth == 8 else np.uint16)
    return integers


# --- reading ----------------------------------------------------------------------------------------------------------


def load_image(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a PNG, JPEG, TIFF, WebP or BMP file, 8 or 16 bits, upright.

    Float TIFF files must hold values in [0, 1] and become 16-bit pictures.

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
            return _decode(data, max_pixels)
    except _RefusedError as error:
        raise ValueError(f"{path} {error}") from None
    except Image.DecompressionBombError:  # Pillow's own guard, far above what can be restored
        raise ValueError(f"{path} has more pixels than can be read at all; make the picture smaller.") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not a picture that can be read ({', '.join(FORMATS)}).") from None
    except Exception as error:  # decoders raise many types on damaged files; each means the same to the user
        raise ValueError(f"{path} is damaged or cut off ({str(error).rstrip('.')}); get the file anew.") from error


def load_mask(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read a mask picture: (H, W) bool, True where it is white, that is where the picture has a hole.

    Raises:
        ValueError: it has transparent pixels, no hole, or nothing but holes.
    """
    picture = load_image(path, max_pixels)
    if picture.alpha is not None and picture.alpha.min() < np.iinfo(picture.alpha.dtype).max:
        raise ValueError(f"The mask {path} has transparent pixels; save it opaque, white = hole and black = keep.")
    holes = picture.tensor.mean(dim=0) > 0
    if not holes.any():
        raise ValueError(f"The mask {path} has no hole; paint what is to be filled in white on black.")
    if holes.all():
        raise ValueError(f"The mask {path} is white everywhere; white = hole, so paint what is to be kept in black.")
    return holes


def at_bit_depth(picture: Picture, bit_depth: int) -> Picture:
    """The same picture, to be written with 8 or 16 bits; its alpha goes along."""
    if bit_depth == picture.bit_depth:
        return picture
    alpha = picture.alpha
    if alpha is not None:
        alpha = alpha.astype(np.uint16) * 257 if bit_depth == 16 else (alpha // 257).astype(np.uint8)
    return replace(picture, alpha=alpha, bit_depth=bit_depth)


class _RefusedError(ValueError):
    """A readable picture that is not accepted; the message continues a sentence that begins with its path."""


def _decode(data: bytes, max_pixels: int) -> Picture:
    notes: list[str] = []
    tiff_values = _decode_deep_tiff(data, max_pixels) if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+") else None
    try:
        header = _open(data, max_pixels)
    except UnidentifiedImageError:
        if tiff_values is None:
            raise
        header = Image.new("L", (1, 1))  # a TIFF that only tifffile knows: no ICC, no EXIF
    if tiff_values is not None:
        values = tiff_values
    elif data[12:16] == b"IHDR" and data[24] == 16:  # Pillow would cut these to 8 bits without a word
        values = imagecodecs.png_decode(data)
    else:
        values = _expand(header, notes)
    exif, orientation = _exif(header, notes)
    colours, alpha = _split_alpha(_upright(values, orientation))
    icc = header.info.get("icc_profile")
    if icc and icc[16:20] != (b"GRAY" if colours.ndim == 2 else b"RGB "):  # of the colours before a conversion
        notes.append("The colour profile does not belong to grey or RGB values and was left out.")
        icc = None
    return Picture(
        tensor=_from_integers(colours),
        alpha=alpha,
        bit_depth=8 * values.dtype.itemsize,
        icc=icc,
        exif=exif,
        format="JPEG" if header.format == "MPO" else header.format or "TIFF",
        sha256=hashlib.sha256(data).hexdigest(),
        notes=tuple(notes),
    )


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """The picture as Pillow sees it, not yet decoded."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    _check_pixels(image.width, image.height, max_pixels)
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # phones append previews to a JPEG; its first frame is the photograph
        raise _RefusedError(f"holds {frames} pictures; save the one to restore as a file of its own.")
    return image


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise _RefusedError(
            f"has {width} x {height} = {width * height} pixels, more than the guard of {max_pixels}; "
            "raise it with --max-pixels (max_pixels=) or make the picture smaller."
        )


def _expand(image: Image.Image, notes: list[str]) -> np.ndarray:
    """The pixels of a picture as uint8 (H, W) or (H, W, 2 | 3 | 4), or of a grey one of 16 bits as uint16 (H, W)."""
    image.load()
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode in ("I", "F"):
        raise _RefusedError(f"has {image.mode} pixels; save it with 8 or 16 bits per channel.")
    grey = image.mode in ("1", "L", "LA", "La")
    if image.mode == "CMYK":
        notes.append("CMYK colours were converted to RGB without their profile.")
    if image.has_transparency_data:
        return np.asarray(image.convert("LA" if grey else "RGBA"))
    return np.asarray(image.convert("L" if grey else "RGB"))


def _decode_deep_tiff(data: bytes, max_pixels: int) -> np.ndarray | None:
    """The pixels of a TIFF as uint16 (H, W[, C]), or None if it has 8 bits or less, which Pillow reads."""
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page = tiff.pages.first
        if page.dtype in (np.bool_, np.uint8):
            return None
        _check_pixels(page.imagewidth, page.imagelength, max_pixels)
        if len(tiff.pages) > 1 or page.axes not in ("YX", "YXS", "SYX"):
            raise _RefusedError(f"holds {len(tiff.pages)} pictures; save the one to restore as a file of its own.")
        colours = PHOTOMETRIC(page.photometric)
        if colours not in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.RGB):
            raise _RefusedError(f"has {colours.name} colours; save it as grey or RGB.")
        if EXTRASAMPLE.ASSOCALPHA in page.extrasamples:
            raise _RefusedError("has colours multiplied by alpha; save it with straight alpha.")
        values = page.asarray()
    values = np.moveaxis(values, 0, 2) if page.axes == "SYX" else values
    if np.issubdtype(values.dtype, np.floating):
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise _RefusedError(
                f"holds float values from {values.min()} to {values.max()}; they must be in [0, 1] and not NaN."
            )
        values = (values.astype(np.float64) * 65535).round().astype(np.uint16)
    elif values.dtype != np.uint16 or page.bitspersample != 16:
        raise _RefusedError(f"has {page.bitspersample}-bit {values.dtype} pixels; save it with 8 or 16 bits each.")
    return 65535 - values if colours is PHOTOMETRIC.MINISWHITE else values


def _exif(image: Image.Image, notes: list[str]) -> tuple[bytes | None, int]:
    """The EXIF block without its orientation, and the orientation (1 to 8)."""
    try:
        exif = image.getexif()
        orientation = exif.pop(ORIENTATION, 1)
        if image.format == "TIFF":  # its tags also say how the file is laid out, which is of no use in another
            exif = _descriptive(exif)
        block = exif.tobytes() if len(exif) else None
    except Exception:  # noqa: BLE001  cameras write EXIF of every kind; the picture is not worse for it
        notes.append("The EXIF data cannot be read and was left out.")
        return None, 1
    if orientation not in range(2, 9):
        return block, 1
    notes.append("Turned upright by the EXIF orientation.")
    return block, orientation


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of somebody else's picture, which stays as it is."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # noqa: BLE001  as in `_exif`
        return 1


def _descriptive(exif: Image.Exif) -> Image.Exif:
    """Only what tells of the picture itself."""
    kept = Image.Exif()
    kept.update({tag: exif[tag] for tag in DESCRIPTIVE_TAGS if tag in exif})
    kept.update({tag: exif.get_ifd(tag) for tag in (EXIF_IFD, GPS_IFD) if exif.get_ifd(tag)})
    return kept


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation to (H, W[, C])."""
    if orientation in (5, 6, 7, 8):  # stored on its side
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)


def _split_alpha(values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """(H, W[, C]) into colours (H, W[, 3]) and alpha (H, W) or None."""
    channels = 1 if values.ndim == 2 else values.shape[2]
    if channels in (1, 3):
        return values, None
    if channels not in (2, 4):
        raise _RefusedError(f"has {channels} channels; grey or RGB, with or without alpha, can be read.")
    colours = values[..., 0] if channels == 2 else values[..., :3]
    return colours, np.ascontiguousarray(values[..., -1])


# --- writing ----------------------------------------------------------------------------------------------------------


def encode_picture(path: str | os.PathLike[str], x: Tensor, like: Picture, provenance: Mapping[str, Any]) -> bytes:
    """A picture file at the bit depth of `like`, with its alpha, colour profile and EXIF, as PNG or TIFF by suffix.

    Alpha is resized if the picture has another size; the profile is kept only if grey stays grey and colour colour.

    Arguments:
        path: a name that ends in .png, .tif or .tiff.
        x: colours (C, H, W) in [-1, 1], C = 1 or 3; values outside are clipped.
        like: the picture that was read.
        provenance: how it was made; written as JSON into the text chunk `invsolve` (PNG) or the description (TIFF).

    Raises:
        ValueError: non-finite values, or another suffix.
    """
    path = Path(path)
    values = _to_integers(x, like.bit_depth)
    if like.alpha is not None:
        values = np.dstack([values, _resize(like.alpha, values.shape[:2])])
    icc = like.icc if len(x) == len(like.tensor) else None
    text = json.dumps(provenance, sort_keys=True)
    if path.suffix.lower() in (".tif", ".tiff"):
        return _encode_tiff(values, icc, like.exif, text)
    if path.suffix.lower() == ".png":
        return _encode_png(values, icc, like.exif, text)
    raise ValueError(f"{path.name} cannot be written; pictures are written as .png, .tif or .tiff.")


def provenance_of(path: Path) -> dict[str, Any]:
    """What `encode_picture` wrote about the making of a picture file; empty if it did not write this one."""
    try:
        if path.suffix.lower() in (".tif", ".tiff"):
            with tifffile.TiffFile(path) as tiff:
                text = tiff.pages.first.description
        else:
            with Image.open(path, formats=["PNG"]) as image:
                text = image.info["invsolve"]
        provenance = json.loads(text)
    except Exception:  # noqa: BLE001  a file of any kind may lie there
        return {}
    return provenance if isinstance(provenance, dict) and "software" in provenance else {}


def save_png(x: Tensor, path: str | os.PathLike[str]) -> None:
    """Write (C, H, W) in [-1, 1], C = 1 or 3, as an 8-bit PNG; values outside are clipped."""
    atomic_write(path, _encode_png(_to_integers(x, 8)))


def _resize(alpha: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Alpha (H, W) at another size; the same numbers at its own."""
    if alpha.shape == size:
        return alpha
    planes = torch.from_numpy(alpha.astype(np.float64))[None, None]
    resized = torch.nn.functional.interpolate(planes, size=size, mode="bilinear", antialias=True)
    return resized[0, 0].round().numpy().astype(alpha.dtype)


def _encode_png(
    values: np.ndarray, icc: bytes | None = None, exif: bytes | None = None, text: str | None = None
) -> bytes:
    """A PNG file of (H, W, 1 | 2 | 3 | 4) uint8 or uint16, with metadata chunks as the PNG specification has them."""
    data = bytes(imagecodecs.png_encode(np.ascontiguousarray(values), level=6))
    chunks = b""
    if icc:
        chunks += _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc))
    if exif:
        chunks += _chunk(b"eXIf", exif.removeprefix(b"Exif\0\0"))
    if text:
        chunks += _chunk(b"iTXt", b"invsolve\0\0\0\0\0" + text.encode())  # not compressed, no language
    header = 8 + 25  # signature and IHDR; all three chunks may follow it at once
    return data[:header] + chunks + data[header:]


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _encode_tiff(values: np.ndarray, icc: bytes | None, exif: bytes | None, text: str) -> bytes:
    """A TIFF file of (H, W, 1 | 2 | 3 | 4) uint8 or uint16; of EXIF, it keeps the tags that are plain text."""
    tags = Image.Exif()
    tags.load(exif or b"")
    kept = [(tag, "s", 0, tags[tag], True) for tag in DESCRIPTIVE_TAGS[1:] if isinstance(tags.get(tag), str)]
    channels = values.shape[2]
    file = io.BytesIO()
    tifffile.imwrite(
        file,
        values[..., 0] if channels == 1 else values,
        photometric="rgb" if channels >= 3 else "minisblack",
        planarconfig="contig" if channels > 1 else None,
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        compression="zlib",
        description=text,
        metadata=None,
        software=False,
        iccprofile=icc,
        extratags=kept,
    )
    return file.getvalue()
