"""TIFF files: pixels that Pillow cannot read or would cut to 8 bits, tags of any, and files with tags of EXIF."""

from __future__ import annotations

import contextlib
import io
import logging
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import UnidentifiedImageError
from tifffile import EXTRASAMPLE, PHOTOMETRIC, PLANARCONFIG, TiffPage

from .metadata import ORIENTATION, Entry, Folder, byte_order, encode_folder, read_exif

__all__ = ["RefusedError", "Tiff", "check_pixels", "encode_tiff", "is_tiff", "read_tiff", "tiff_description", "upright"]

HEADERS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ICC, XMP = 34675, 700
COLOURS = PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.RGB

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it writes to stderr about files that it copes with


class RefusedError(ValueError):
    """A readable picture that is not accepted; the message continues a sentence that begins with its path."""


@dataclass(frozen=True)
class Tiff:
    """A TIFF file of one page.

    Arguments:
        values: (H, W[, C]) uint8 or uint16, upright.
        turned: whether they are stored otherwise.
        tags: its folder of tags.
        icc: colour profile, or None.
        xmp: XMP packet, or None.
    """

    values: np.ndarray
    turned: bool
    tags: Folder
    icc: bytes | None
    xmp: bytes | None


def is_tiff(data: bytes) -> bool:
    """Whether a file begins like a TIFF."""
    return data[:4] in HEADERS


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Refuse a picture with more pixels than the guard allows."""
    if width * height > max_pixels:
        raise RefusedError(
            f"has {width} x {height} = {width * height} pixels, more than the guard of {max_pixels}; "
            "raise it with --max-pixels (max_pixels=) or make the picture smaller."
        )


def read_tiff(data: bytes, max_pixels: int, otherwise: Callable[[], np.ndarray]) -> Tiff:
    """The pixels of a TIFF and its tags.

    Arguments:
        data: the file.
        max_pixels: the guard.
        otherwise: how Pillow reads it upright: palettes, compressions and colours of many kinds, but at most 8 bits.

    Raises:
        RefusedError: too many pixels or pages, or pixels of a kind that is not supported.
    """
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page = tiff.pages.first
        if not isinstance(page, TiffPage):
            raise RefusedError("has no page of its own; save it as a plain TIFF.")
        orientation, icc, xmp = (_tag(page, tag) for tag in (ORIENTATION, ICC, XMP))
        orientation = orientation if isinstance(orientation, int) and orientation in range(2, 9) else 1
        check_pixels(page.imagewidth, page.imagelength, max_pixels)
        values = None
        one_plane = page.samplesperpixel == 1 or page.planarconfig == PLANARCONFIG.CONTIG
        plain = one_plane and not page.extrasamples  # Pillow reads no other kinds well
        if page.dtype in (np.bool_, np.uint8) and (plain or page.photometric not in COLOURS):
            with contextlib.suppress(UnidentifiedImageError):
                values = otherwise()
        if values is None:
            values = upright(_values(page, len(tiff.pages)), orientation)
        tags = read_exif(data, page.offset, big=tiff.is_bigtiff)
    return Tiff(
        values=values,
        turned=orientation > 1,
        tags=tags,
        icc=icc if isinstance(icc, bytes) else None,
        xmp=xmp if isinstance(xmp, bytes) else None,
    )


def upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation to (H, W[, C])."""
    if orientation in (5, 6, 7, 8):  # stored on its side
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)


def _tag(page: TiffPage, code: int) -> object:
    tag = page.tags.get(code)
    return None if tag is None else tag.value


def _values(page: TiffPage, pages: int) -> np.ndarray:
    """Grey or RGB pixels as uint8 or uint16 (H, W[, C]), black = 0, not multiplied by alpha, the last channel."""
    if pages > 1 or page.axes not in ("YX", "YXS", "SYX"):
        raise RefusedError(f"holds {pages} pictures; save the one to restore as a file of its own.")
    colours, multiplied = page.photometric, EXTRASAMPLE.ASSOCALPHA in page.extrasamples
    if colours not in COLOURS:
        raise RefusedError(f"has {getattr(colours, 'name', f'unknown ({colours})')} colours; save it as grey or RGB.")
    if page.samplesperpixel > 4:
        raise RefusedError(f"has {page.samplesperpixel} channels; save it as grey or RGB, with or without alpha.")
    if multiplied and (len(page.extrasamples) > 1 or colours == PHOTOMETRIC.MINISWHITE):
        raise RefusedError("has colours multiplied by alpha; save it with straight alpha.")
    values = page.asarray()
    values = np.moveaxis(values, 0, 2) if page.axes == "SYX" else values
    if np.issubdtype(values.dtype, np.floating):
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise RefusedError(
                f"holds float values from {values.min()} to {values.max()}; they must be in [0, 1] and not NaN."
            )
        values = (values.astype(np.float64) * 65535).round().astype(np.uint16)
    elif values.dtype not in (np.uint8, np.uint16) or page.bitspersample != 8 * values.dtype.itemsize:
        raise RefusedError(f"has {page.bitspersample}-bit {values.dtype} pixels; save it with 8 or 16 bits each.")
    top = np.iinfo(values.dtype).max
    if multiplied:
        colour, alpha = values[..., :-1].astype(np.float64), values[..., -1:]
        divided = (colour * top / np.maximum(alpha, 1)).round().clip(0, top)
        return np.dstack([divided.astype(values.dtype), alpha])
    if colours != PHOTOMETRIC.MINISWHITE:
        return values
    return np.dstack([top - values[..., :1], values[..., 1:]]) if values.ndim == 3 else top - values


def tiff_description(path: Path) -> str:
    """The description of the first page."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        return page.description if isinstance(page, TiffPage) else ""


def encode_tiff(values: np.ndarray, text: str, icc: bytes | None, exif: bytes | None, xmp: bytes | None) -> bytes:
    """A TIFF file.

    Arguments:
        values: (H, W, 1 | 2 | 3 | 4) uint8 or uint16.
        text: its description.
        icc: colour profile, or None.
        exif: EXIF block, or None; what a TIFF says itself, such as its description, stays.
        xmp: XMP packet, or None.
    """
    order = byte_order(exif) if exif else "<"
    channels = values.shape[2]
    file = io.BytesIO()
    tifffile.imwrite(
        file,
        values[..., 0] if channels == 1 else values,
        byteorder=order,
        photometric="rgb" if channels >= 3 else "minisblack",
        planarconfig="contig" if channels > 1 else None,
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        compression="zlib",
        description=text,
        metadata=None,
        software=False,
        iccprofile=icc,
    )
    file.write(b"\0" * (file.seek(0, io.SEEK_END) % 2))
    data = file.getvalue()
    if not exif and not xmp:
        return data
    # tifffile writes no folders of EXIF: a new folder of tags at the end, with the old one's entries, takes its place.
    tags = (read_exif(exif) if exif else {}) | ({XMP: Entry(1, xmp)} if xmp else {}) | read_exif(data)
    return data[:4] + struct.pack(order + "I", len(data)) + data[8:] + encode_folder(tags, order, len(data))
