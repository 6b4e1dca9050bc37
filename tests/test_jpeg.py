"""The JPEG codec against Pillow, and what is done with its gradient and with the files of others."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from files import FILES, SHAPE, randn
from PIL import Image
from torch import Tensor

from invsolve.files.images import load_image
from invsolve.operators import (
    JPEG,
    build_operator,
)


def picture(channels: int = 3, height: int = 37, width: int = 50) -> Tensor:
    """Smooth shapes, an edge and some noise, on whole grey levels: (1, C, H, W) in [-1, 1], float64."""
    rows, columns = torch.arange(height)[:, None] / 9.0, torch.arange(width)[None] / 7.0
    waves = torch.stack([torch.sin(rows + c) * torch.cos(columns - 2 * c) for c in range(channels)])
    waves = 0.7 * waves + 0.3 * (columns > 3) + 0.05 * randn(channels, height, width)
    return ((waves.clamp(-1, 1)[None] + 1) * 127.5).round() / 127.5 - 1


def pillow(x: Tensor, **options: Any) -> Tensor:
    """Save and load with Pillow alone."""
    pixels = ((x[0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, "JPEG", **options)
    decoded = np.asarray(Image.open(file), dtype=np.float64).reshape(pixels.shape)
    return torch.from_numpy(decoded).permute(2, 0, 1)[None] / 127.5 - 1


CODECS = [
    (channels, quality, subsampling)
    for channels, subsampling in [(3, "4:2:0"), (3, "4:4:4"), (1, "4:4:4")]
    for quality in (5, 10, 50, 95)
]


@pytest.mark.parametrize(("channels", "quality", "subsampling"), CODECS)
def test_jpeg_is_pillows(channels: int, quality: int, subsampling: str) -> None:
    x = picture(channels)
    operator = build_operator("jpeg", tuple(x.shape[1:]), quality=quality, subsampling=subsampling)
    expected = pillow(x, quality=quality, subsampling=subsampling)
    torch.testing.assert_close(operator(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(operator(x.requires_grad_(True)).detach(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("channels", "quality", "subsampling"), CODECS)
def test_soft_codec_follows_the_true_one(channels: int, quality: int, subsampling: str) -> None:
    """It misses the true result by less than the compression changes the picture."""
    x = picture(channels)
    operator = build_operator("jpeg", tuple(x.shape[1:]), quality=quality, subsampling=subsampling)
    y = operator(x)
    assert (operator.soft(x) - y).norm() < 0.6 * (y - x).norm()


@pytest.mark.parametrize(("channels", "subsampling"), [(3, "4:2:0"), (3, "4:4:4"), (1, "4:2:0")])
def test_jpeg_gradient_is_the_slope_of_the_soft_codec(channels: int, subsampling: str) -> None:
    x = 0.8 * picture(channels, 19, 23)
    operator = build_operator("jpeg", tuple(x.shape[1:]), quality=40, subsampling=subsampling)
    direction, v, h = randn(*x.shape, seed=1), randn(*x.shape, seed=2), 1e-7
    leaf = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(operator(leaf), leaf, v)
    slope = (v * (operator.soft(x + h * direction) - operator.soft(x - h * direction))).sum() / (2 * h)
    assert gradient.isfinite().all() and gradient.norm() > 0.1
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-3)


def test_jpeg_explains_its_data() -> None:
    """A(A^+ y) = y but for clipping and rounding to 8 bits."""
    x = picture()
    operator = build_operator("jpeg", tuple(x.shape[1:]), quality=10)
    y = operator(x)
    assert (operator(operator.pinv(y)) - y).norm() < 0.1 * (y - x).norm()


@pytest.mark.parametrize(("channels", "quality", "subsampling"), CODECS)
def test_jpeg_projection_leaves_the_true_picture(channels: int, quality: int, subsampling: str) -> None:
    """Every coefficient of the true picture is in its cell; the cells of cut blocks are known less well."""
    x = 0.8 * picture(channels, 48, 64)  # no clipping
    operator = build_operator("jpeg", tuple(x.shape[1:]), quality=quality, subsampling=subsampling)
    x = (x * 127.5).round() / 127.5
    y = operator(x)
    kept = operator.project(x, y)
    assert (kept - x).norm() < (0.02 if quality < 90 else 0.3) * (y - x).norm()  # steps of 1 drown in rounding
    cut = x[..., :37, :50]
    odd = build_operator("jpeg", tuple(cut.shape[1:]), quality=quality, subsampling=subsampling)
    assert (odd.project(cut, odd(cut)) - cut).norm() < 0.3 * (odd(cut) - cut).norm()


@pytest.mark.parametrize(("channels", "subsampling"), [(3, "4:2:0"), (3, "4:4:4"), (1, "4:2:0")])
def test_jpeg_projection_takes_the_nearest_picture_that_explains_y(channels: int, subsampling: str) -> None:
    """A picture between the true one and y is in the cells already; one far off lands on their edge, half way to y."""
    x = 0.8 * picture(channels, 48, 64)
    operator = build_operator("jpeg", tuple(x.shape[1:]), quality=20, subsampling=subsampling)
    y = operator(x)
    between = 0.3 * x + 0.7 * y
    assert (operator.project(between, y) - between).norm() < 0.05 * (y - x).norm()
    far = torch.zeros_like(x)
    moved = operator.project(far, y)
    assert (operator.project(moved, y) - moved).norm() < 0.05 * (moved - far).norm()
    assert (moved - y).norm() < 0.5 * (far - y).norm()
    inside = moved + 0.2 * (y - moved)  # off the edge, where rounding decides
    assert (operator(inside) - y).norm() < 0.1 * (far - y).norm()


@pytest.mark.parametrize(("quality", "subsampling"), [(23, "4:2:0"), (77, "4:4:4")])
def test_jpeg_as_another_file(quality: int, subsampling: str) -> None:
    path = str(Path(FILES.name, f"compressed{quality}.jpg"))
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(path, quality=quality, subsampling=subsampling)
    x = picture()
    operator = build_operator("jpeg", tuple(x.shape[1:]), tables_from=path)
    assert operator.subsampling == subsampling
    expected = pillow(x, quality=quality, subsampling=subsampling)
    torch.testing.assert_close(operator(x), expected, rtol=0, atol=1e-12)


def test_jpeg_of_a_grey_file() -> None:
    path = str(Path(FILES.name, "grey.jpg"))
    Image.fromarray(np.zeros((20, 30), dtype=np.uint8)).save(path, quality=35)
    x = picture(1)
    operator = build_operator("jpeg", tuple(x.shape[1:]), tables_from=path)
    torch.testing.assert_close(operator(x), pillow(x, quality=35), rtol=0, atol=1e-12)


def test_jpeg_refuses_other_subsampling() -> None:
    path = str(Path(FILES.name, "wide.jpg"))
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(path, subsampling="4:2:2")
    with pytest.raises(ValueError, match="colours subsampled other than 4:4:4 or 4:2:0"):
        build_operator("jpeg", SHAPE, tables_from=path)


def turned_file(orientation: int, height: int, width: int, subsampling: str = "4:2:0") -> str:
    path = str(Path(FILES.name, f"turned{orientation}_{height}x{width}.jpg"))
    pixels = ((picture(3, height, width)[0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, quality=8, subsampling=subsampling, exif=exif)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
def test_jpeg_as_a_turned_file(orientation: int, subsampling: str) -> None:
    """Its picture is already compressed: the same blocks and steps, upright, change it by far less than others do."""
    path = turned_file(orientation, 32, 48, subsampling)
    x = load_image(path).tensor[None]
    operator = build_operator("jpeg", tuple(x.shape[1:]), tables_from=path)
    expected = build_operator("jpeg", SHAPE, quality=8, subsampling=subsampling).tables
    assert torch.equal(operator.tables, expected.mT if orientation > 4 else expected)
    change = (operator(x) - x).norm()
    other = JPEG(operator.image_shape, tables=operator.tables.mT, subsampling=operator.subsampling)
    shifted = torch.roll(operator(torch.roll(x, (3, 3), (2, 3))), (-3, -3), (2, 3))
    assert change < 0.5 * (other(x) - x).norm() and change < 0.5 * (shifted - x).norm()


@pytest.mark.parametrize(("orientation", "height", "width"), [(3, 32, 40), (3, 24, 48), (6, 24, 48), (8, 32, 40)])
def test_jpeg_refuses_turned_cut_blocks(orientation: int, height: int, width: int) -> None:
    path = turned_file(orientation, height, width)
    with pytest.raises(ValueError, match=rf"EXIF orientation {orientation}.* blocks of 16 x 16.*or give the quality"):
        build_operator("jpeg", SHAPE, tables_from=path)


def test_jpeg_refuses_the_tables_of_cmyk(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16)).save(tmp_path / "inks.jpg")
    with pytest.raises(ValueError, match=r"inks.jpg' holds CMYK colours.*give the quality: jpeg\(quality=\.\.\.\)"):
        build_operator("jpeg", SHAPE, tables_from=str(tmp_path / "inks.jpg"))


def test_jpeg_takes_cut_blocks_that_stay_at_the_end() -> None:
    for orientation, height, width in [(1, 25, 41), (5, 25, 41), (6, 32, 41), (8, 25, 48)]:
        operator = build_operator("jpeg", SHAPE, tables_from=turned_file(orientation, height, width))
        assert operator.data_shape == SHAPE


def test_jpeg_without_table_0_gives_the_sentence() -> None:
    """The number of each table, after the marker and the length, becomes 1 or 2; the frame's header is left alone."""
    path = Path(turned_file(1, 16, 16))
    data = bytearray(path.read_bytes())
    for number, start in enumerate([i for i in range(len(data)) if data[i : i + 4] == b"\xff\xdb\x00\x43"], start=1):
        data[start + 4] = number
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"has quantisation tables \[1, 2\] but no table 0; save it again"):
        build_operator("jpeg", SHAPE, tables_from=str(path))
