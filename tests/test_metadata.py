"""Metadata of picture files: what travels to the new picture, what stays behind, and TIFFs of every layout."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from invsolve.files.encode import encode_picture
from invsolve.files.images import Picture, load_image
from invsolve.files.metadata import Entry, byte_order, exif_block, read_exif
from invsolve.files.provenance import has_changed, is_damaged, provenance, provenance_of

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GREY = SRGB[:16] + b"GRAY" + SRGB[20:]
PRIVATE = {  # by EXIF folder and tag
    (0, 0x010E): "Private description",
    (0, 0x013C): "private-host",
    (0, 0x9C9D): "Private".encode("utf-16-le"),
    (0x8769, 0x9011): "+05:45",
    (0x8769, 0x927C): b"private maker note",
    (0x8769, 0x9286): b"ASCII\0\0\0private comment",
    (0x8769, 0xA420): "private0123456789abcdef012345678",
    (0x8769, 0xA430): "Private Owner",
    (0x8769, 0xA431): "private-body-1",
    (0x8769, 0xA435): "private-lens-2",
    (0x8825, 0x0001): "N",
    (0x8825, 0x0002): (48.0, 8.0, 14.0),
    (0x8825, 0x001D): "2026:01:02",
}
PUBLIC = {
    (0, 0x010F): "A maker",
    (0, 0x0110): "A model",
    (0, 0x0132): "2026:01:02 03:04:05",
    (0, 0x013B): "An artist",
    (0, 0x8298): "All rights reserved",
    (0x8769, 0x829A): 0.004,
    (0x8769, 0x8827): 400,
    (0x8769, 0x9003): "2026:01:02 03:04:05",
    (0x8769, 0x9204): -1.5,
    (0x8769, 0xA434): "A lens",
}
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" city="private-city"/></x:xmpmeta>'
PLACES = list(itertools.product((".jpg", ".png", ".webp", ".tif"), (".png", ".tif")))


def source(path: Path, orientation: int = 6) -> Path:
    """A photograph (9 x 7 as stored) with all of that, written by Pillow."""
    exif = Image.Exif()
    for (folder, tag), value in (PRIVATE | PUBLIC).items():
        (exif if folder == 0 else exif.get_ifd(folder))[tag] = value
    exif[0x0112] = orientation
    options: dict[str, Any] = {"xmp": XMP}
    if path.suffix == ".tif":
        exif[700] = XMP
    elif path.suffix == ".png":
        options = {"pnginfo": PngInfo()}
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())
    elif path.suffix == ".webp":
        options |= {"lossless": True}
    values = np.random.default_rng(0).integers(0, 255, (7, 9, 3), dtype=np.uint8)
    Image.fromarray(values).save(path, exif=exif.tobytes(), **options)
    return path


def through(path: Path, out: str, **options: bool) -> tuple[bytes, dict[tuple[int, int], object]]:
    """The bytes and the EXIF entries of the picture that is written for a file."""
    picture = load_image(path, **options)
    target = path.with_name(f"out{out}")
    target.write_bytes(encode_picture(target, picture.tensor, picture, provenance("restore", "sample")))
    with Image.open(target) as image:
        image.load()
        assert image.size == (7, 9)
        exif = image.getexif()
        found = {(0, tag): value for tag, value in exif.items()}
        for folder in (0x8769, 0x8825):
            found |= {(folder, tag): value for tag, value in exif.get_ifd(folder).items()}
    return target.read_bytes(), found


@pytest.mark.parametrize(("suffix", "out"), PLACES)
def test_what_tells_of_a_person_or_a_place_stays_behind(tmp_path: Path, suffix: str, out: str) -> None:
    data, found = through(source(tmp_path / f"in{suffix}"), out)
    assert not found.keys() & (PRIVATE.keys() - ({(0, 0x010E)} if out == ".tif" else set()))
    for text in (b"rivate", "rivate".encode("utf-16-le"), b"+05:45", b"xmpmeta"):
        assert text not in data
    for key, value in PUBLIC.items():
        assert found[key] == (pytest.approx(value) if isinstance(value, float) else value), key
    assert (0, 0x0112) not in found or found[0, 0x0112] == 1


@pytest.mark.parametrize(("suffix", "out"), PLACES)
def test_everything_is_kept_on_request(tmp_path: Path, suffix: str, out: str) -> None:
    data, found = through(source(tmp_path / f"in{suffix}"), out, keep_metadata=True)
    for key, value in (PUBLIC | PRIVATE).items():
        if key == (0, 0x010E) and out == ".tif":
            continue  # the provenance stands there
        if isinstance(value, bytes) and isinstance(found[key], str):
            found[key] = str(found[key]).encode("latin-1")
        assert found[key] == (pytest.approx(value) if isinstance(value, float) else value), key
    assert XMP.replace(b'Orientation="6"', b'Orientation="1"') in data
    assert (0, 0x0112) not in found or found[0, 0x0112] == 1


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="needs exiftool")
@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize(("exif", "xmp"), [(False, False), (True, False), (False, True), (True, True)])
def test_what_was_just_written_counts_as_unchanged(suffix, depth, alpha, exif, xmp, tmp_path):
    tags = Image.Exif()
    tags[271] = "A maker"
    picture = Picture(
        torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1,
        alpha=np.full((9, 7), 200, np.uint8 if depth == 8 else np.uint16) if alpha else None,
        bit_depth=depth,
        exif=tags.tobytes().removeprefix(b"Exif\0\0") if exif else None,
        xmp=b"<x/>" if xmp else None,
    )
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encode_picture(path, picture.tensor, picture, provenance("restore", "sample", command="ä – ü")))
    assert provenance_of(path)["command"] == "ä – ü"
    assert not has_changed(path) and not is_damaged(path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"restore", b"deteriorate"[:7]))
    assert has_changed(path)


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="needs exiftool")
def test_letters_and_thumbnails_as_exiftool_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "in.jpg"
    Image.new("RGB", (9, 7)).save(path)
    Image.new("RGB", (160, 120)).save(tmp_path / "thumbnail.jpg")
    words = ["-Artist=Jürgen Ünal", "-SerialNumber=12", f"-ThumbnailImage<={tmp_path / 'thumbnail.jpg'}"]
    subprocess.run(["exiftool", "-q", *words, "-Orientation#=6", path], check=True)
    for keep in (False, True):
        for out in (".png", ".tif"):
            through(path, out, keep_metadata=keep)
            run = subprocess.run(["exiftool", "-j", tmp_path / f"out{out}"], capture_output=True, text=True, check=True)
            (told,) = json.loads(run.stdout)
            assert told["Artist"] == "Jürgen Ünal"
            assert ("SerialNumber" in told) == keep
            assert "ThumbnailImage" not in told


def test_entries_that_share_their_bytes_do_not_fill_the_memory() -> None:
    count, size = 5000, 60_000
    entries = b"".join(struct.pack("<HHII", tag, 1, size, 8) for tag in range(count))
    block = b"II*\0" + struct.pack("<IH", 8, count) + entries + bytes(4 + size)
    found = read_exif(block)
    assert sum(len(entry.data) for entry in found.values() if isinstance(entry, Entry)) <= len(block)


@given(data=st.binary(max_size=200), big=st.booleans())
def test_damaged_exif_raises_nothing_else(data: bytes, big: bool) -> None:
    for head in (b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"):
        block = head + data
        with contextlib.suppress(ValueError):
            folder = read_exif(block, 8 if big else None, big=big)
            for everything in (False, True):
                kept = exif_block(folder, byte_order(block), of_tiff=big, everything=everything)
                assert kept is None or read_exif(kept)


def test_entries_of_large_tiffs_are_left_out() -> None:
    """Types 16 to 18 have eight bytes, and EXIF does not know them."""
    wide = Entry(16, b"\0" * 8)
    folder: dict[int, Any] = {
        271: wide,
        272: Entry(2, b"camera\0"),
        34665: {33434: wide, 33437: Entry(5, b"\1\0\0\0" * 2)},
    }
    for of_tiff in (False, True):
        for everything in (False, True):
            block = exif_block(folder, "<", of_tiff=of_tiff, everything=everything)
            assert block is not None
            again = read_exif(block)
            assert 271 not in again and again[272] == folder[272]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_both_byte_orders_and_large_tiffs(tmp_path: Path, order: str, big: bool) -> None:
    values = np.random.default_rng(0).integers(0, 65535, (7, 9, 3), dtype=np.uint16)
    tags = [(315, "s", 0, "An artist", True), (316, "s", 0, "private-host", True), (274, "H", 1, 6, True)]
    tifffile.imwrite(
        tmp_path / "in.tif", values, byteorder=order, bigtiff=big, photometric="rgb", extratags=tags, iccprofile=SRGB
    )
    picture = load_image(tmp_path / "in.tif")
    for suffix in (".png", ".tif"):
        data = encode_picture(f"out{suffix}", picture.tensor, picture, {})
        again = imagecodecs.png_decode(data) if suffix == ".png" else tifffile.imread(io.BytesIO(data))
        np.testing.assert_array_equal(again, np.rot90(values, -1))
        assert b"An artist" in data
        assert b"private" not in data
        assert Image.open(io.BytesIO(data)).info["icc_profile"] == SRGB


KINDS = [
    (photometric, dtype, alpha)
    for photometric in ("minisblack", "miniswhite", "rgb")
    for dtype in (np.uint8, np.uint16, np.float16, np.float32, np.float64)
    for alpha in (False, True)
]


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize(("photometric", "dtype", "alpha"), KINDS)
def test_tiffs_of_every_layout_keep_alpha_orientation_and_profile(
    tmp_path: Path, photometric: str, dtype: type, alpha: bool, compression: str | None
) -> None:
    channels = (3 if photometric == "rgb" else 1) + alpha
    top = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
    levels = np.random.default_rng(0).random((7, 9, channels))
    values = (levels * top).astype(dtype)
    profile = SRGB if photometric == "rgb" else GREY
    tifffile.imwrite(
        tmp_path / "in.tif",
        values if channels > 1 else values[..., 0],
        photometric=photometric,
        planarconfig="contig" if channels > 1 else None,
        extrasamples=["unassalpha"] if alpha else None,
        compression=compression,
        iccprofile=profile,
        extratags=[(274, "H", 1, 6, True), (315, "s", 0, "An artist", True)],
    )
    picture = load_image(tmp_path / "in.tif")
    stored = np.rot90(values, -1).astype(np.float64) / top
    colours = stored[..., : channels - alpha]
    expected = 1 - colours if photometric == "miniswhite" else colours
    assert picture.bit_depth == (8 if dtype == np.uint8 else 16)
    np.testing.assert_allclose(picture.tensor.permute(1, 2, 0).numpy(), 2 * expected - 1, atol=2 / 65535)
    if alpha:
        assert picture.alpha is not None
        np.testing.assert_allclose(picture.alpha / np.iinfo(picture.alpha.dtype).max, stored[..., -1], atol=1 / 65535)
    assert picture.icc == profile
    assert b"An artist" in (picture.exif or b"")
    assert picture.notes == ("Turned upright by the EXIF orientation.",)


def test_the_provenance_is_found_under_any_name(tmp_path: Path) -> None:
    picture = Picture(load_image(source(tmp_path / "in.png")).tensor)
    made = provenance("restore", "sample", command="invsolve restore in.png")
    for suffix, other in ((".png", ".tif"), (".tif", ".jpg"), (".tiff", ".png")):
        data = encode_picture(f"a{suffix}", picture.tensor, picture, made)
        for name in (f"a{suffix}", f"b{other}", "c"):
            (tmp_path / name).write_bytes(data)
            assert provenance_of(tmp_path / name) == made
    others = tmp_path / "others.tif"
    description = '{"software": "MicroScope 3.1", "tool": "stage"}'
    tifffile.imwrite(others, np.zeros((5, 5), dtype=np.uint8), description=description, metadata=None)
    for path in (tmp_path / "in.png", tmp_path / "none.png", tmp_path, others):
        assert provenance_of(path) == {}


def test_an_old_provenance_is_no_description_of_the_new_picture(tmp_path: Path) -> None:
    picture = load_image(source(tmp_path / "in.png"))
    (tmp_path / "one.tif").write_bytes(encode_picture("one.tif", picture.tensor, picture, provenance("restore", "one")))
    data, found = through(tmp_path / "one.tif", ".png", keep_metadata=True)
    assert b'"one"' not in data
    assert (0, 0x010E) not in found
