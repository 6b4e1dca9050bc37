"""Picture files: what comes back out is what went in, and what cannot be read is refused in one sentence."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from invsolve.files.atomic import atomic_folder, atomic_write, atomic_writes
from invsolve.files.encode import encode_picture, save_png
from invsolve.files.images import Picture, at_bit_depth, load_image, to_tensor

RNG = np.random.default_rng(0)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def pixels(channels: int, dtype: type = np.uint8, size: tuple[int, int] = (9, 7)) -> np.ndarray:
    values = RNG.integers(0, np.iinfo(dtype).max, (*size, channels), dtype=dtype, endpoint=True)
    return values[..., 0] if channels == 1 else values


def write(path: Path, values: np.ndarray, **options: object) -> Path:
    """A PNG or TIFF by a codec that is not under test."""
    if path.suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(values))
    else:
        colour = values.ndim == 3 and values.shape[2] >= 3
        alpha = ["unassalpha"] if values.ndim == 3 and values.shape[2] in (2, 4) else None
        tifffile.imwrite(
            path,
            values,
            photometric="rgb" if colour else "minisblack",
            planarconfig="contig" if values.ndim == 3 else None,
            extrasamples=alpha,
            **options,
        )
    return path


def save_picture(path: Path, x: torch.Tensor, like: Picture, provenance: dict[str, object]) -> None:
    path.write_bytes(encode_picture(path, x, like, provenance))


# --- round trips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("written", [".png", ".tif"])
def test_every_value_survives(tmp_path: Path, suffix: str, dtype: type, channels: int, written: str) -> None:
    values = pixels(channels, dtype)
    picture = load_image(write(tmp_path / f"in{suffix}", values))
    assert picture.bit_depth == 8 * np.dtype(dtype).itemsize
    assert picture.shape == (3 if channels >= 3 else 1, 9, 7)
    assert picture.tensor.dtype == torch.float32
    assert (picture.alpha is not None) == (channels in (2, 4))
    save_picture(tmp_path / f"out{written}", picture.tensor, picture, {})
    data = (tmp_path / f"out{written}").read_bytes()
    again = imagecodecs.png_decode(data) if written == ".png" else tifffile.imread(io.BytesIO(data))
    np.testing.assert_array_equal(again, values)
    assert again.dtype == dtype


def test_all_16_bit_values_are_exact(tmp_path: Path) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    picture = load_image(write(tmp_path / "in.png", values))
    assert picture.tensor.min() == -1
    assert picture.tensor.max() == 1
    save_picture(tmp_path / "out.png", picture.tensor, picture, {})
    np.testing.assert_array_equal(imagecodecs.png_decode((tmp_path / "out.png").read_bytes()), values)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_name", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_orientation_is_applied_and_removed(tmp_path: Path, orientation: int, format_name: str) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "A maker"
    path = tmp_path / f"in.{format_name.lower()}"
    Image.fromarray(pixels(3)).save(path, exif=exif, **({"lossless": True} if format_name == "WEBP" else {}))
    picture = load_image(path)
    with Image.open(path) as reference:
        upright = np.asarray(ImageOps.exif_transpose(reference))
    save_picture(tmp_path / "out.png", picture.tensor, picture, {})
    with Image.open(tmp_path / "out.png") as out:
        np.testing.assert_array_equal(np.asarray(out), upright)
        assert dict(out.getexif()) == {0x010F: "A maker"}


def test_alpha_and_16_bits_turn_with_the_picture(tmp_path: Path) -> None:
    values = pixels(4, np.uint16)
    tag = (274, "H", 1, 6, True)  # orientation: turn clockwise
    picture = load_image(write(tmp_path / "in.tif", values, extratags=[tag]))
    turned = np.rot90(values, -1)
    np.testing.assert_array_equal(picture.alpha, turned[..., 3])
    torch.testing.assert_close(picture.tensor, to_tensor(np.ascontiguousarray(turned[..., :3]))[0])


def test_exif_and_profile_are_kept(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "A maker"
    exif.get_ifd(0x8769)[0x9003] = "2026:01:02 03:04:05"
    Image.fromarray(pixels(3)).save(tmp_path / "in.jpg", exif=exif, icc_profile=SRGB)
    picture = load_image(tmp_path / "in.jpg")
    for bit_depth in (8, 16):
        save_picture(tmp_path / "out.png", picture.tensor, at_bit_depth(picture, bit_depth), {"seed": 3})
        with Image.open(tmp_path / "out.png") as out:
            out.load()
            assert out.info["icc_profile"] == SRGB
            assert out.getexif()[0x010F] == "A maker"
            assert out.getexif().get_ifd(0x8769)[0x9003] == "2026:01:02 03:04:05"
            assert json.loads(out.text["invsolve"])["seed"] == 3
    save_picture(tmp_path / "out.tif", picture.tensor, picture, {"seed": 3})
    with tifffile.TiffFile(tmp_path / "out.tif") as out:
        page = out.pages.first
        assert page.tags["InterColorProfile"].value == SRGB
        assert page.tags["Make"].value == "A maker"
        assert json.loads(page.description)["seed"] == 3


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0nothing of use", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"])
def test_broken_exif_does_not_hide_the_picture(tmp_path: Path, exif: bytes) -> None:
    Image.fromarray(pixels(3)).save(tmp_path / "in.jpg", exif=exif)
    picture = load_image(tmp_path / "in.jpg")
    assert picture.shape == (3, 9, 7)
    save_picture(tmp_path / "out.png", picture.tensor, picture, {})
    assert load_image(tmp_path / "out.png").shape == (3, 9, 7)


def test_tiff_layout_tags_do_not_travel(tmp_path: Path) -> None:
    path = write(tmp_path / "in.tif", pixels(3, np.uint16), software="A scanner", rowsperstrip=2)
    picture = load_image(path)
    tags = Image.Exif()
    tags.load(picture.exif)
    assert set(tags) <= {270, 305}
    assert tags[305] == "A scanner"


def test_profile_of_grey_is_not_put_on_colour(tmp_path: Path) -> None:
    grey = Picture(torch.zeros(1, 4, 4), icc=SRGB)
    save_picture(tmp_path / "out.png", torch.zeros(3, 4, 4), grey, {})
    with Image.open(tmp_path / "out.png") as out:
        assert "icc_profile" not in out.info


def test_alpha_follows_a_new_size_and_bit_depth(tmp_path: Path) -> None:
    picture = load_image(write(tmp_path / "in.png", np.full((4, 4, 4), 200, np.uint8)))
    save_picture(tmp_path / "out.png", torch.zeros(3, 8, 8), at_bit_depth(picture, 16), {})
    alpha = imagecodecs.png_decode((tmp_path / "out.png").read_bytes())[..., 3]
    np.testing.assert_array_equal(alpha, np.full((8, 8), 200 * 257))
    back = at_bit_depth(at_bit_depth(picture, 16), 8)
    np.testing.assert_array_equal(back.alpha, picture.alpha)


@pytest.mark.parametrize(
    ("mode", "shape"),
    [("1", (1, 6, 5)), ("L", (1, 6, 5)), ("LA", (1, 6, 5)), ("P", (3, 6, 5)), ("RGBA", (3, 6, 5))],
)
def test_png_modes(tmp_path: Path, mode: str, shape: tuple[int, int, int]) -> None:
    alpha = mode.endswith("A")
    source = Image.fromarray(pixels(4 if alpha else 3, size=(6, 5))).convert(mode)
    source.save(tmp_path / "in.png")
    picture = load_image(tmp_path / "in.png")
    assert picture.shape == shape
    assert (picture.alpha is not None) == alpha
    colours = np.asarray(source)[..., :-1] if alpha else np.asarray(source.convert("RGB" if shape[0] == 3 else "L"))
    torch.testing.assert_close(picture.tensor, to_tensor(colours)[0])


def test_palette_transparency_becomes_alpha(tmp_path: Path) -> None:
    source = Image.fromarray(RNG.integers(0, 2, (5, 5), dtype=np.uint8), "P")
    source.putpalette([255, 0, 0, 0, 0, 255])
    source.save(tmp_path / "in.png", transparency=0)
    picture = load_image(tmp_path / "in.png")
    np.testing.assert_array_equal(picture.alpha, np.where(np.asarray(source) == 0, 0, 255))


def test_cmyk_is_converted_with_a_note(tmp_path: Path) -> None:
    Image.fromarray(pixels(4), "CMYK").save(tmp_path / "in.jpg", icc_profile=b"for CMYK only")
    picture = load_image(tmp_path / "in.jpg")
    assert picture.shape[0] == 3
    assert picture.icc is None
    assert "CMYK" in picture.notes[0]


def test_phone_jpeg_with_a_preview_is_one_picture(tmp_path: Path) -> None:
    first, preview = (Image.fromarray(pixels(3)) for _ in range(2))
    first.save(tmp_path / "in.jpg", "MPO", save_all=True, append_images=[preview])
    assert load_image(tmp_path / "in.jpg").format == "JPEG"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_tiff_in_0_1_is_read_as_16_bits(tmp_path: Path, channels: int, dtype: type) -> None:
    values = (pixels(channels).astype(np.float64) / 255).astype(dtype)
    picture = load_image(write(tmp_path / "in.tif", values))
    assert picture.bit_depth == 16
    expected = torch.from_numpy(2 * np.atleast_3d(values).astype(np.float32) - 1).permute(2, 0, 1)
    torch.testing.assert_close(picture.tensor, expected, atol=2 / 65535, rtol=0)


def test_white_is_zero_and_planar_tiffs(tmp_path: Path) -> None:
    grey, colour = pixels(1, np.uint16), pixels(3, np.uint16)
    tifffile.imwrite(tmp_path / "inverse.tif", 65535 - grey, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "planar.tif", np.moveaxis(colour, 2, 0), photometric="rgb", planarconfig="separate")
    torch.testing.assert_close(load_image(tmp_path / "inverse.tif").tensor, to_tensor(grey)[0])
    torch.testing.assert_close(load_image(tmp_path / "planar.tif").tensor, to_tensor(colour)[0])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("kind", ["unassalpha", "unspecified", "assocalpha"])
@pytest.mark.parametrize("colours", ["rgb", "minisblack", "miniswhite"])
def test_the_alpha_of_a_tiff_is_read(tmp_path: Path, colours: str, kind: str, planar: str, dtype: type) -> None:
    """At both depths and in both layouts, whatever it is called; colours multiplied by it are divided again."""
    top = np.iinfo(dtype).max
    values = pixels(3 if colours == "rgb" else 1, dtype).reshape(9, 7, -1)
    alpha = (np.arange(63).reshape(9, 7, 1) * (top // 70) + top // 10).astype(dtype)
    stored = values
    if kind == "assocalpha":
        stored = (values.astype(float) * alpha / top).round().astype(dtype)
    whole = np.concatenate([top - stored if colours == "miniswhite" else stored, alpha], axis=2)
    whole = np.moveaxis(whole, 2, 0) if planar == "separate" else whole
    tifffile.imwrite(tmp_path / "in.tif", whole, photometric=colours, planarconfig=planar, extrasamples=[kind])
    if (colours, kind) == ("miniswhite", "assocalpha"):
        with pytest.raises(ValueError, match="straight alpha"):
            load_image(tmp_path / "in.tif")
        return
    picture = load_image(tmp_path / "in.tif")
    assert np.array_equal(picture.alpha, alpha[..., 0])
    slack = 20 / top if kind == "assocalpha" else 1e-6  # a tenth of alpha leaves a tenth of the levels
    torch.testing.assert_close(picture.tensor, to_tensor(values)[0], atol=slack, rtol=0)


def test_a_tiff_of_many_channels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "in.tif", np.zeros((9, 7, 200), np.uint8), photometric="minisblack", planarconfig="contig"
    )
    with pytest.raises(ValueError, match="has 200 channels; save it as grey or RGB"):
        load_image(tmp_path / "in.tif")


# --- refusals ---------------------------------------------------------------------------------------------------------


def broken(path: Path, kind: str) -> Path:
    """A file that cannot be used."""
    grey, colour = pixels(1), pixels(3)
    buffer = io.BytesIO()
    if kind == "empty":
        pass
    elif kind == "text":
        buffer.write(b"this is not a picture")
    elif kind == "gif":
        Image.fromarray(grey).save(buffer, "GIF")
    elif kind == "two pages":
        Image.fromarray(grey).save(buffer, "TIFF", save_all=True, append_images=[Image.fromarray(grey)])
    elif kind == "two deep pages":
        tifffile.imwrite(buffer, np.zeros((2, 9, 7), np.uint16), photometric="minisblack")
    elif kind == "animation":
        Image.fromarray(colour).save(buffer, "WEBP", save_all=True, append_images=[Image.fromarray(255 - colour)])
    elif kind in ("nan", "range"):
        tifffile.imwrite(buffer, np.full((9, 7), np.nan if kind == "nan" else 7, np.float32))
    elif kind == "32 bit":
        tifffile.imwrite(buffer, np.zeros((9, 7), np.uint32))
    elif kind == "float cmyk":
        tifffile.imwrite(buffer, np.zeros((9, 7, 4), np.uint16), photometric="separated")
    elif kind == "premultiplied":
        tifffile.imwrite(buffer, np.zeros((9, 7, 2), np.uint16), photometric="miniswhite", extrasamples=["assocalpha"])
    elif kind == "large":
        buffer.write(imagecodecs.png_encode(np.zeros((200, 200), np.uint8)))
    else:  # cut off
        large = np.zeros((64, 64, 3), np.uint8) + RNG.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        if kind == "deep png":
            buffer.write(imagecodecs.png_encode(large.astype(np.uint16)))
        elif kind == "deep tiff":
            tifffile.imwrite(buffer, large.astype(np.uint16), photometric="rgb")
        else:
            Image.fromarray(large).save(buffer, kind.upper())
        buffer.truncate(buffer.tell() // 2)
    path.write_bytes(buffer.getvalue())
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("empty", "not a picture"),
        ("text", "not a picture"),
        ("gif", "not a picture"),
        ("two pages", "2 pictures"),
        ("two deep pages", "2 pictures"),
        ("animation", "2 pictures"),
        ("nan", "NaN"),
        ("range", "must be in"),
        ("32 bit", "8 or 16 bits"),
        ("float cmyk", "SEPARATED colours"),
        ("premultiplied", "straight alpha"),
        ("large", "more than the guard of 10000"),
        ("jpeg", "damaged"),
        ("png", "damaged"),
        ("tiff", "damaged"),
        ("webp", "damaged"),
        ("bmp", "damaged"),
        ("deep png", "damaged"),
        ("deep tiff", "damaged"),
    ],
)
def test_unreadable_files(tmp_path: Path, kind: str, words: str) -> None:
    path = broken(tmp_path / "in.img", kind)
    with pytest.raises(ValueError, match=words) as error:
        load_image(path, max_pixels=10_000)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    ("side", "words"), [(9_000, "guard of 64000000"), (60_000, "more pixels than can be|guard of 64000000")]
)
@pytest.mark.parametrize("depth", [8, 16])
def test_a_header_that_promises_too_many_pixels_is_not_believed(
    tmp_path: Path, side: int, words: str, depth: int
) -> None:
    data = bytearray(imagecodecs.png_encode(np.zeros((2, 2), np.uint8 if depth == 8 else np.uint16)))
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(ValueError, match=words):
        load_image(tmp_path / "bomb.png")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_image(tmp_path / "none.png")
    with pytest.raises(ValueError, match="not a file"):
        load_image(tmp_path)


@settings(deadline=None)  # the machine may be busy
@given(data=st.binary(max_size=200), kind=st.sampled_from(["png", "jpeg", "tiff", "webp", "bmp", "deep png"]))
def test_damaged_bytes_raise_nothing_else(tmp_path_factory: pytest.TempPathFactory, data: bytes, kind: str) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "in.img"
    whole = broken(path, kind).read_bytes()
    path.write_bytes(whole[:60] + data + whole[60 + len(data) :])
    with contextlib.suppress(ValueError):
        assert load_image(path).tensor.isfinite().all()


# --- tensors ----------------------------------------------------------------------------------------------------------


def test_to_tensor_agrees_on_every_kind_of_input(tmp_path: Path) -> None:
    values = pixels(3)
    path = write(tmp_path / "in.png", values)
    expected = 2 * torch.from_numpy(values).float().permute(2, 0, 1)[None] / 255 - 1
    for y in (path, str(path), values, Image.fromarray(values), Image.fromarray(values).convert("RGBA"), expected):
        torch.testing.assert_close(to_tensor(y), expected)
    torch.testing.assert_close(to_tensor(expected[0].double().numpy()), expected.double())
    assert to_tensor(values > 99).unique().tolist() == [-1, 1]
    assert to_tensor(values[..., :1]).shape == (1, 1, 9, 7)
    planes = torch.from_numpy(values).permute(2, 0, 1)
    torch.testing.assert_close(to_tensor(planes), expected)
    torch.testing.assert_close(to_tensor(torch.stack([planes, planes])), expected.expand(2, -1, -1, -1))
    torch.testing.assert_close(to_tensor(expected[0, 0]), expected[:, :1])


def test_to_tensor_turns_pil_images_upright(tmp_path: Path) -> None:
    image = Image.fromarray(pixels(3))
    image.getexif()[0x0112] = 6
    image.save(tmp_path / "in.png", exif=image.getexif())
    with Image.open(tmp_path / "in.png") as opened:
        torch.testing.assert_close(to_tensor(opened), to_tensor(tmp_path / "in.png"))
        assert to_tensor(opened).shape == (1, 3, 7, 9)


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (np.zeros((2, 3, 4, 5), np.uint8), "batches as a float tensor"),
        (np.zeros((4, 5, 4), np.uint8), "alpha"),
        (np.zeros((4, 5), np.int64), "got ndarray of int64"),
        (torch.zeros(3, 4, 5, dtype=torch.int32), "got Tensor of torch.int32"),
        (torch.zeros(5), "got \\(5,\\)"),
        (np.zeros((4, 5, 3)), "channels first"),
        (torch.zeros(2, 4, 5, 1), "channels first"),
        (torch.zeros(4, 5, 3, dtype=torch.uint8), "channels first"),
        (torch.full((3, 4, 5), 200.0), "looks like 0 to 255"),
        (torch.zeros(3, 0, 5), "got \\(3, 0, 5\\)"),
        (torch.full((1, 4, 5), torch.nan), "20 non-finite"),
        (np.full((1, 4, 5), np.inf), "20 non-finite"),
        (Image.new("I", (4, 5)), "8 or 16 bits"),
        ([1, 2], "got list"),
    ],
)
def test_to_tensor_refuses(y: object, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        to_tensor(y)


# --- writing ----------------------------------------------------------------------------------------------------------


def test_non_finite_pictures_and_other_formats_are_not_written(tmp_path: Path) -> None:
    picture = Picture(torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="non-finite"):
        save_picture(tmp_path / "out.png", torch.full((1, 4, 4), torch.nan), picture, {})
    with pytest.raises(ValueError, match=r"out\.jpg cannot be written"):
        save_picture(tmp_path / "out.jpg", picture.tensor, picture, {})
    assert not list(tmp_path.iterdir())


def test_values_outside_are_clipped(tmp_path: Path) -> None:
    save_png(torch.tensor([[[-3.0, -1, 0.001, 1, 3]]]), tmp_path / "out.png")
    assert np.asarray(Image.open(tmp_path / "out.png")).tolist() == [[0, 0, 128, 255, 255]]


def test_atomic_write_leaves_the_old_file_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic_write(tmp_path / "new" / "a.txt", b"old")

    def fail(fd: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    for name in ("a.txt", "b.txt"):
        with pytest.raises(OSError, match="No space"):
            atomic_write(tmp_path / "new" / name, b"new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"old"


def test_atomic_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "result"
    for text in ("first", "second"):
        with atomic_folder(target) as work:
            (work / text).write_text(text)
            assert work != target
        assert sorted(path.name for path in target.iterdir()) == [".invsolve-files", text]
    with pytest.raises(ZeroDivisionError), atomic_folder(target) as work:
        (work / "third").write_text(f"{1 / 0}")
    assert sorted(path.name for path in target.iterdir()) == [".invsolve-files", "second"]
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("written_before", [False, True])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_atomic_folder_refuses_to_replace_foreign_files(tmp_path: Path, written_before: bool, when: str) -> None:
    target, foreign = tmp_path / "result", tmp_path / "result" / "sub" / "thesis.txt"

    def add_foreign() -> None:
        foreign.parent.mkdir(parents=True, exist_ok=True)
        foreign.write_text("years of work")

    if written_before:
        with atomic_folder(target) as work:
            (work / "sub").mkdir()
    if when == "before":
        add_foreign()
    with pytest.raises(FileExistsError, match=r"holds sub.*did not write"), atomic_folder(target) as work:
        (work / "new").write_text("new")
        assert when == "meanwhile"
        add_foreign()
    assert foreign.read_text() == "years of work"
    assert not (target / "new").exists()
    assert list(tmp_path.iterdir()) == [target]


def test_atomic_folder_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "result").write_text("a file")
    with pytest.raises(FileExistsError, match="is a file"), atomic_folder(tmp_path / "result"):
        pass
    assert (tmp_path / "result").read_text() == "a file"


def test_atomic_folder_puts_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "result"
    with atomic_folder(target) as work:
        (work / "a").write_text("old")
    real = Path.replace

    def fail(path: Path, to: Path) -> Path:
        if path.name.endswith(".tmp"):
            raise OSError("No space left on device")
        return real(path, to)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space"), atomic_folder(target) as work:
        (work / "a").write_text("new")
    assert (target / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_16_bit_pil_pictures_are_read_like_their_files(tmp_path):
    values = pixels(1, np.uint16)[..., 0] if pixels(1, np.uint16).ndim == 3 else pixels(1, np.uint16)
    (tmp_path / "deep.png").write_bytes(imagecodecs.png_encode(values))
    with Image.open(tmp_path / "deep.png") as image:
        assert image.mode.startswith("I;16")
        torch.testing.assert_close(to_tensor(image), to_tensor(tmp_path / "deep.png"), rtol=0, atol=0)


def test_a_profile_of_other_colours_is_left_out(tmp_path):
    Image.fromarray(pixels(3)).convert("L").save(tmp_path / "grey.png", icc_profile=SRGB)
    picture = load_image(tmp_path / "grey.png")
    assert picture.icc is None
    assert "profile" in picture.notes[0]


def test_files_of_a_set_appear_together_or_not_at_all(tmp_path):
    (tmp_path / "b").mkdir()
    with pytest.raises(OSError, match="directory"):
        atomic_writes({tmp_path / "new" / "a": b"1", tmp_path / "b": b"2"})
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "new"]  # all on the disk, then renamed
    with pytest.raises(TypeError):
        atomic_writes({tmp_path / "c": b"1", tmp_path / "d": "not bytes"})
    assert not (tmp_path / "c").exists()


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path):
    path = tmp_path / ("n" * 251 + ".png")
    save_png(torch.zeros(1, 4, 4), path)
    assert path.is_file()
