"""Mask pictures: what is taken as one and what is refused, on files that other libraries made."""

from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import skimage
import tifffile
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter, zoom
from skimage import draw
from sklearn.datasets import load_sample_image

from invsolve.files.holes import hidden_share, load_mask, mask_notes

SIZE = 192, 256
RNG = np.random.default_rng(0)
POINTS = [tuple(int(n) for n in RNG.integers(0, 192, 2)) for _ in range(24)]
PHOTOS = Path(skimage.__file__).parent / "data"


def as_bytes(level: np.ndarray) -> np.ndarray:
    return (255 * level).round().clip(0, 255).astype(np.uint8)


def pillow(paint: Callable[[ImageDraw.ImageDraw, int], object], scale: int = 4) -> np.ndarray:
    """What Pillow draws at `scale` times the size and makes smaller, as painting programs smooth their strokes."""
    large = Image.new("L", (SIZE[1] * scale, SIZE[0] * scale))
    paint(ImageDraw.Draw(large), scale)
    return np.asarray(large.resize(SIZE[::-1], Image.Resampling.LANCZOS)) / 255


def scratches(width: int) -> np.ndarray:
    def paint(canvas: ImageDraw.ImageDraw, scale: int) -> None:
        for (x0, y0), (x1, y1) in zip(POINTS[::2], POINTS[1::2], strict=True):
            canvas.line([(x0 * scale, y0 * scale), (x1 * scale, y1 * scale)], fill=255, width=width * scale)

    return pillow(paint)


def text(size: int) -> np.ndarray:
    def paint(canvas: ImageDraw.ImageDraw, _: int) -> None:
        for row in range(0, SIZE[0], round(1.3 * size)):
            canvas.text((2, row), "Copyright: a sample text, 2026 " * 2, fill=255, font=ImageFont.load_default(size))

    return pillow(paint, scale=1)


def thin_lines() -> np.ndarray:
    """Lines of one pixel by scikit-image, most of whose pixels are grey."""
    level = np.zeros(SIZE)
    for (c0, r0), (c1, r1) in zip(POINTS[::2], POINTS[1::2], strict=True):
        rows, columns, value = draw.line_aa(min(r0, 191), c0, min(r1, 191), c1)
        level[rows, columns] = np.maximum(level[rows, columns], value)
    return level


def disk() -> np.ndarray:
    level = np.zeros(SIZE)
    level[draw.disk((90, 110), 40)] = 1
    return level


MASKS = {
    "disk": disk(),
    "disk, soft edge": gaussian_filter(disk(), 2.0),
    "everything but a disk": 1 - disk(),
    "strokes": scratches(10),
    "strokes, soft brush": gaussian_filter(scratches(10), 2.0),
    "scratches": scratches(1),
    "thin lines": thin_lines(),
    "small text": text(8),
    "text": text(16),
    "text, white on black": 1 - text(16),
    "pixels at random": (RNG.random(SIZE) < 0.7).astype(float),
    "chessboard": np.asarray(Image.open(PHOTOS / "chessboard_GRAY.png")) / 255,
    "enlarged": zoom(scratches(10), 4, order=1).clip(0, 1),
    "not quite black and white": 0.06 + 0.84 * scratches(4),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_cut_at_mid_grey(tmp_path: Path, name: str) -> None:
    values = as_bytes(MASKS[name])
    Image.fromarray(values).save(tmp_path / "m.png")
    holes = load_mask(tmp_path / "m.png")
    assert holes.dtype == torch.bool
    assert np.array_equal(holes.numpy(), values > 127)


@pytest.mark.parametrize("quality", [50, 75, 95])
@pytest.mark.parametrize("name", ["disk", "strokes", "scratches", "text", "pixels at random"])
def test_a_mask_may_ring_as_jpeg(tmp_path: Path, name: str, quality: int) -> None:
    values = as_bytes(MASKS[name])
    Image.fromarray(values).save(tmp_path / "pillow.jpg", quality=quality)
    (tmp_path / "codecs.jpg").write_bytes(imagecodecs.jpeg8_encode(values, level=quality))
    for path in tmp_path.iterdir():
        wrong = load_mask(path).numpy() != (values > 127)
        assert wrong.mean() < 0.02


def test_a_mask_of_any_kind_of_file(tmp_path: Path) -> None:
    hole = disk() > 0.5
    values = as_bytes(disk())
    bilevel = Image.fromarray(values).convert("1")
    bilevel.save(tmp_path / "1 bit.png")
    bilevel.save(tmp_path / "1 bit.tif", compression="group4")
    Image.fromarray(values).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(np.stack([values] * 3 + [np.full_like(values, 255)], axis=2)).save(tmp_path / "opaque.png")
    Image.fromarray(values).convert("LA").save(tmp_path / "grey and alpha.webp", lossless=True)
    Image.fromarray(values).save(tmp_path / "plain.bmp")
    tifffile.imwrite(tmp_path / "16 bit.tif", hole.astype(np.uint16) * 65535)
    (tmp_path / "16 bit.png").write_bytes(imagecodecs.png_encode(hole.astype(np.uint16) * 65535))
    tifffile.imwrite(tmp_path / "float.tif", hole.astype(np.float32))
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 9
    for path in paths:
        assert np.array_equal(load_mask(path).numpy(), hole), path.name


GREY = {
    "ramp": np.linspace(0, 1, 256)[None].repeat(192, axis=0),
    "vignette": np.hypot(*np.mgrid[-1:1:192j, -1:1:256j]).clip(0, 1),
    "steps": np.arange(256)[None].repeat(192, axis=0) // 52 / 4,
    "noise": RNG.random(SIZE),
    "a hole in mid grey": 0.6 * disk(),
    "a wide feather": gaussian_filter(scratches(10), 6.0),
    "phantom": np.asarray(Image.open(PHOTOS / "phantom.png").convert("L")) / 255,
    "a night": (np.asarray(Image.open(PHOTOS / "rocket.jpg").convert("L")) / 255) ** 3,
}
NO_PHOTOS = ("chessboard_GRAY", "chessboard_RGB", "color", "horse", "logo", "cell", "microaneurysms", "phantom")
for path in sorted([*PHOTOS.glob("*.png"), *PHOTOS.glob("*.jpg")]):
    if path.stem not in NO_PHOTOS:
        GREY[path.stem] = np.asarray(Image.open(path).convert("RGB")) / 255
assert len(GREY) >= 25
for stem in ("china.jpg", "flower.jpg"):
    GREY[stem] = load_sample_image(stem) / 255
depth = np.load(PHOTOS / "motorcycle_disp.npz")["arr_0"]
GREY["depth map"] = np.nan_to_num(depth / depth[np.isfinite(depth)].max(), posinf=0)


@pytest.mark.parametrize("name", GREY)
def test_a_photograph_is_no_mask(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.png"
    Image.fromarray(as_bytes(GREY[name])).save(path)
    with pytest.raises(ValueError, match=r"m\.png is no mask: .* % of its pixels are grey, .*; paint what is to be"):
        load_mask(path)


def test_a_mask_with_one_value_only_or_transparent(tmp_path: Path) -> None:
    for sentence, values in {
        "no hole": np.full(SIZE, 10),
        "white everywhere": np.full(SIZE, 250),
        "transparent": np.zeros((*SIZE, 4)),
    }.items():
        Image.fromarray(values.astype(np.uint8)).save(tmp_path / "m.png")
        with pytest.raises(ValueError, match=sentence):
            load_mask(tmp_path / "m.png")


def test_what_a_mask_hides() -> None:
    seen = torch.ones(1, 100, 100)
    assert (hidden_share(None), hidden_share(seen), mask_notes(None), mask_notes(seen)) == (None, None, [], [])
    seen[:, :30] = 0
    assert hidden_share(seen) == pytest.approx(0.3)
    assert mask_notes(seen) == []
    seen[:, :96] = 0
    assert mask_notes(seen) == [
        "The mask hides 96.0 % of the picture; white = hole, so invert it if black is the hole."
    ]
    seen = torch.ones(1, 100, 100)
    seen[0, 5, 5:8] = 0
    assert mask_notes(seen) == ["The mask hides 3 of 10000 pixels; check that it is the right one."]
