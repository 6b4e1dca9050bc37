"""From the bytes of a picture file to upright pixels and metadata."""

from __future__ import annotations

import io
from dataclasses import dataclass

import imagecodecs
import numpy as np
from PIL import Image

from .metadata import ORIENTATION, Folder, byte_order, read_exif
from .tiff import RefusedError, check_pixels, is_tiff, read_tiff, upright

__all__ = ["FORMATS", "Content", "decode", "expand", "orientation_of", "split_alpha"]

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP")  # Pillow tries no other decoder
TURNED = "Turned upright by the EXIF orientation."


@dataclass(frozen=True)
class Content:
    """What a picture file holds.

    Arguments:
        values: pixels (H, W[, C]) uint8 or uint16, upright, black = 0.
        icc: colour profile, or None.
        tags: of EXIF.
        order: their byte order.
        xmp: XMP packet, if that is what it is.
        format: the file's format, such as "PNG".
    """

    values: np.ndarray
    icc: bytes | None
    tags: Folder
    order: str
    xmp: object
    format: str


def decode(data: bytes, max_pixels: int, notes: list[str]) -> Content:
    """Decode a picture file; what was changed on the way is added to `notes`.

    Raises:
        RefusedError: it is of a kind that is not supported, or has too many pixels.
        Exception: it is no picture or damaged; decoders raise many types.
    """
    return _of_tiff(data, max_pixels, notes) if is_tiff(data) else _plain(data, max_pixels, notes)


def _plain(data: bytes, max_pixels: int, notes: list[str]) -> Content:
    """Of a file that is no TIFF."""
    header = _open(data, max_pixels)
    deep = data[12:16] == b"IHDR" and data[24] == 16  # Pillow would cut these to 8 bits without a word
    values = imagecodecs.png_decode(data) if deep else expand(header, notes)
    orientation = orientation_of(header)
    if orientation > 1:
        notes.append(TURNED)
    tags: Folder = {}
    block, order = _exif_bytes(header), ">"
    if block:
        try:
            tags, order = read_exif(block), byte_order(block)
        except ValueError:
            notes.append("The EXIF data cannot be read and was left out.")
    return Content(
        values=upright(values, orientation),
        icc=header.info.get("icc_profile"),
        tags=tags,
        order=order,
        xmp=header.info.get("xmp") or header.info.get("XML:com.adobe.xmp"),
        format="JPEG" if header.format == "MPO" else str(header.format),
    )


def _of_tiff(data: bytes, max_pixels: int, notes: list[str]) -> Content:
    """Of a TIFF."""
    tiff = read_tiff(data, max_pixels, lambda: expand(_open(data, max_pixels), notes))
    if tiff.turned:
        notes.append(TURNED)
    return Content(tiff.values, tiff.icc, tiff.tags, byte_order(data), tiff.xmp, "TIFF")


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """The picture as Pillow sees it, not yet decoded."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    check_pixels(image.width, image.height, max_pixels)
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # phones append previews to a JPEG; its first frame is the photograph
        raise RefusedError(f"holds {frames} pictures; save the one to restore as a file of its own.")
    return image


def expand(image: Image.Image, notes: list[str]) -> np.ndarray:
    """The pixels of a picture as uint8 (H, W) or (H, W, 2 | 3 | 4), or of a grey one of 16 bits as uint16 (H, W)."""
    image.load()
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode in ("I", "F"):
        raise RefusedError(f"has {image.mode} pixels; save it with 8 or 16 bits per channel.")
    grey = image.mode in ("1", "L", "LA", "La")
    if image.mode == "CMYK":
        notes.append("CMYK colours were converted to RGB without their profile.")
    if image.has_transparency_data:
        return np.asarray(image.convert("LA" if grey else "RGBA"))
    return np.asarray(image.convert("L" if grey else "RGB"))


def _exif_bytes(image: Image.Image) -> bytes:
    """The EXIF block of a picture; empty if there is none.  ImageMagick writes it to PNG files as hexadecimal text."""
    block = image.info.get("exif") or b""
    text = image.info.get("Raw profile type exif")
    if not block and isinstance(text, str):
        try:
            block = bytes.fromhex("".join(text.split("\n")[3:]))
        except ValueError:
            block = b"?"  # not readable
    return block.removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0")  # some cameras write it twice


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8, of a picture that stays as it is."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001  cameras write EXIF of every kind; the picture is not worse for it
        return 1
    return int(orientation) if orientation in range(2, 9) else 1


def split_alpha(values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """(H, W[, C]) into colours (H, W[, 3]) and alpha (H, W) or None."""
    channels = 1 if values.ndim == 2 else values.shape[2]
    if channels in (1, 3):
        return values, None
    if channels not in (2, 4):
        raise RefusedError(f"has {channels} channels; grey or RGB, with or without alpha, can be read.")
    colours = values[..., 0] if channels == 2 else values[..., :3]
    return colours, np.ascontiguousarray(values[..., -1])
