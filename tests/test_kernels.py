"""Blur kernels and masks: their shapes, seeds and files."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from files import CORNER_KERNEL, FILES, KERNEL_FILE, save
from PIL import Image
from torch import Tensor

from invsolve.files.holes import load_mask
from invsolve.operators import (
    build_operator,
    kernels,
    masks,
)

KERNELS = {
    "gaussian": lambda: kernels.gaussian(1.3),
    "gaussian of 5": lambda: kernels.gaussian(25.0, size=5),
    "uniform": lambda: kernels.uniform(9),
    **{f"motion {a}": lambda a=a: kernels.linear_motion(15.0, a) for a in (0.0, 45.0, 90.0, 127.3)},
    "motion 1": lambda: kernels.linear_motion(1.0, 30.0),
    **{f"shake {s}, {i}": lambda s=s, i=i: kernels.camera_shake(31, s, i) for s in range(4) for i in (0.0, 0.5, 1.0)},
    "smallest shake": lambda: kernels.camera_shake(3, 0, 0.5),
    **{f"disk of {r}": lambda r=r: kernels.disk(r) for r in (0.3, 0.5, 0.8, 1.5, 6.25)},
}


def centre(kernel: Tensor) -> Tensor:
    """Centre of mass (row, column) from the middle pixel."""
    rows, columns = (torch.arange(n) - n // 2 for n in kernel.shape)
    return torch.stack(((kernel.sum(dim=1) * rows).sum(), (kernel.sum(dim=0) * columns).sum()))


@pytest.mark.parametrize("make", KERNELS.values(), ids=KERNELS)
def test_kernel_is_normalised_and_centred(make: Callable[[], Tensor]) -> None:
    kernel = make()
    assert kernel.dtype == torch.float64 and all(n % 2 == 1 for n in kernel.shape)
    assert (kernel >= 0).all() and abs(kernel.sum() - 1) < 1e-12
    assert centre(kernel).abs().max() < 1e-9


def test_gaussian_has_its_width() -> None:
    kernel = kernels.gaussian(1.7)
    offsets = torch.arange(len(kernel)) - len(kernel) // 2
    assert abs((kernel.sum(dim=0) * offsets**2).sum() - 1.7**2) < 1e-2
    assert kernels.gaussian(25.0, size=5).shape == (5, 5)


def covariance(kernel: Tensor) -> Tensor:
    """Second moments (2, 2) about the middle pixel, rows first."""
    rows, columns = (torch.arange(n, dtype=torch.float64) - n // 2 for n in kernel.shape)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    return torch.einsum("ipq,jpq,pq->ij", grid, grid, kernel)


@pytest.mark.parametrize(("angle", "direction"), [(0.0, (0, 1)), (90.0, (1, 0)), (30.0, (-0.5, math.sqrt(0.75)))])
def test_motion_has_its_direction_and_length(angle: float, direction: tuple[float, float]) -> None:
    """The covariance of a segment of length L along u is L^2 / 12 u u^T; sharing among pixels adds at most 1/4."""
    u = torch.tensor(direction, dtype=torch.float64)
    assert (covariance(kernels.linear_motion(21.0, angle)) - 21.0**2 / 12 * torch.outer(u, u)).abs().max() < 0.26


def test_shake_is_its_seed() -> None:
    kernel = kernels.camera_shake(31, 0, 0.5)
    assert torch.equal(kernel, kernels.camera_shake(31, 0, 0.5))
    assert (kernel - kernels.camera_shake(31, 1, 0.5)).abs().max() > 1e-3
    assert (kernel - kernel.flip(0, 1)).abs().max() > 1e-3  # not symmetric: tells convolution from correlation


def test_shake_bends_with_its_intensity() -> None:
    """The ratio of its widths is nearly 0 for a straight line."""

    def roundness(intensity: float) -> float:
        widths = torch.linalg.eigvalsh(covariance(kernels.camera_shake(31, 0, intensity)))
        return float(widths[0] / widths[1])

    assert roundness(0.0) < 0.01 < roundness(0.5)


def test_disk_covers_each_pixel_by_its_area() -> None:
    """Against counting points of a fine grid; the second moment of a disk is r^2 / 2, of a pixel 1 / 6."""
    for radius in (0.8, 1.5, 2.0, 3.3):
        kernel = kernels.disk(radius)
        reach, n = len(kernel) // 2, 400
        points = (np.arange(n) + 0.5) / n - 0.5
        for i in range(-reach, reach + 1):
            for j in range(-reach, reach + 1):
                inside = (i + points[:, None]) ** 2 + (j + points) ** 2 <= radius**2
                assert abs(float(kernel[i + reach, j + reach]) * math.pi * radius**2 - inside.mean()) < 2e-3
    assert kernels.disk(0.5).shape == (1, 1) and kernels.disk(0.51).shape == (3, 3)
    assert abs(float(covariance(kernels.disk(8.0)).trace()) - (8.0**2 / 2 + 1 / 6)) < 0.1


BLOCK = np.pad(np.full((2, 4), 255), ((3, 4), (2, 5)))  # 2 x 4 pixels, off the middle


def array_file(name: str, values: np.ndarray) -> str:
    path = str(Path(FILES.name, name))
    np.save(path, values)
    return path


def test_kernel_file_keeps_its_taps() -> None:
    """An even-sized kernel: half a pixel remains, which is told; nothing is interpolated."""
    kernel = kernels.from_file(save("block.png", BLOCK))
    assert kernel.shape == (3, 5)  # as small as an odd one can be
    assert kernel[kernel > 0].tolist() == [1 / 8] * 8
    assert kernels.offset(kernel) == pytest.approx((0.5, 0.5))
    (note,) = build_operator("blur-kernel", (1, 9, 9), kernel=save("block.png", BLOCK)).notes
    assert "0.50 rows below and 0.50 columns right of" in note
    assert build_operator("blur-kernel", (1, 9, 9), kernel=save("three.png", np.full((3, 3), 9))).notes == ()


def test_kernel_file_of_a_measured_kernel() -> None:
    """Asymmetric: moved by whole pixels so that the pixel next to the centre of mass is in the middle."""
    taps = torch.tensor(CORNER_KERNEL, dtype=torch.float64) / np.sum(CORNER_KERNEL)
    kernel = kernels.from_file(KERNEL_FILE)
    assert sorted(kernel[kernel > 0].tolist()) == sorted(taps[taps > 0].tolist())
    assert max(abs(c) for c in kernels.offset(kernel)) <= 0.5
    x = torch.zeros(1, 1, 11, 11).double()
    x[..., 5, 5] = 1  # a point becomes the kernel, as it was drawn
    blurred = build_operator("blur-kernel", (1, 11, 11), kernel=KERNEL_FILE, boundary="zero")(x)[0, 0]
    rows, columns = torch.nonzero(blurred.abs() > 1e-12, as_tuple=True)
    torch.testing.assert_close(
        blurred[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1], taps[1:4, 1:4], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("kind", ["npy", "npy of integers", "tif", "tif of 16 bits", "png of 16 bits", "colour png"])
def test_kernel_files_of_other_kinds(kind: str) -> None:
    taps = kernels.camera_shake(7, 2, 1.0).numpy()
    top = taps.max()
    path = str(Path(FILES.name, f"taps.{kind[:3]}"))
    if kind == "npy":
        path = array_file("taps.npy", 3 * taps.astype(np.float32))
    elif kind == "npy of integers":
        path = array_file("taps.npy", (taps / top * 1e6).round().astype(np.int64))
    elif kind == "tif":
        tifffile.imwrite(path, (7 * taps).astype(np.float32))  # taps above 1: no picture
    elif kind == "tif of 16 bits":
        tifffile.imwrite(path, (taps / top * 65535).round().astype(np.uint16))
    elif kind == "png of 16 bits":
        Image.fromarray((taps / top * 65535).round().astype(np.uint16)).save(path)
    else:
        path = save("colour.png", np.repeat((taps / top * 255).round()[..., None], 3, axis=2))
    kernel = kernels.from_file(path)
    tolerance = 0.003 if kind == "colour png" else 2e-5
    margins = [(n - 1) // 2 for n in np.subtract((7, 7), kernel.shape) + 1]  # without its black border
    kernel = torch.nn.functional.pad(kernel, (margins[1], margins[1], margins[0], margins[0]))
    assert kernel.shape == (7, 7) and np.abs(kernel.numpy() - taps).max() < tolerance * top


def array_header(text: str) -> str:
    """A NumPy file with that header."""
    path = Path(FILES.name, "header.npy")
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(64))
    return str(path)


def float_tiff(name: str, taps: np.ndarray, **options: Any) -> str:
    path = Path(FILES.name, name)
    tifffile.imwrite(path, taps.astype(np.float32), **{"photometric": "minisblack"} | options)
    return str(path)


def test_a_kernel_of_floats_is_turned_upright() -> None:
    taps = np.zeros((3, 5))
    taps[0, 0], taps[1, 2], taps[2, 1] = 3, 4, 1
    plain = kernels.from_file(float_tiff("plain.tif", taps))
    turned = kernels.from_file(float_tiff("turned.tif", np.rot90(taps), extratags=[(274, "H", 1, 6, True)]))
    torch.testing.assert_close(turned, plain, rtol=0, atol=1e-7)


def disk_picture(background: int) -> np.ndarray:
    picture = np.full((31, 31), background)
    rows, columns = np.ogrid[-15:16, -15:16]
    picture[rows**2 + columns**2 <= 36] = 255
    return picture


def bell(sigma: float, size: int) -> np.ndarray:
    taps = kernels.gaussian(sigma, size)
    return (255 * taps / taps.max()).numpy().round()


BAD_KERNELS = {
    "inverted": (lambda: save("inverted.png", 255 - disk_picture(0)), "border of the kernel .* is not black.*invert"),
    "grey": (lambda: save("grey.png", disk_picture(20)), "is not black: it has 8 % .* subtract the background"),
    "inverted motion": (lambda: save("m.png", 255 - 255 * np.eye(9)), "is not black: it has 100 %"),
    "noisy grey": (
        lambda: save("noisy.png", disk_picture(20) + np.random.default_rng(0).integers(-5, 1, (31, 31))),
        "is not black",
    ),
    "faintly inverted": (lambda: save("faint.png", 255 - disk_picture(0) // 12), "is not black: it has 100 %"),
    "light grey": (lambda: save("light.png", np.maximum(disk_picture(0), 230)), "is not black: it has 90 %"),
    "uneven grey": (
        lambda: save("ramp.png", np.maximum(disk_picture(0), np.linspace(20, 200, 31)[None])),
        "is not black: it has 43 %",
    ),
    "inverted and tight": (lambda: save("tight.png", 255 - disk_picture(0)[9:22, 9:22]), "is not black: it has 100 %"),
    "inverted gaussian": (lambda: save("hollow.png", 255 - bell(3, 15)), "is not black"),
    "inverted line": (lambda: save("line.png", np.array([[255, 255, 0, 0, 255, 255, 255]])), "is not black"),
    "inverted, one black row": (
        lambda: save("row.png", np.vstack([np.zeros((1, 31)), 255 - disk_picture(0)])),
        "is not black",
    ),
    "black": (lambda: save("black.png", np.zeros((3, 3))), "is black"),
    "negative": (lambda: array_file("negative.npy", -np.ones((3, 3))), "sum to -9; .* more than 0"),
    "nan": (lambda: array_file("nan.npy", np.full((3, 3), np.nan)), "must hold finite real ones"),
    "complex": (lambda: array_file("complex.npy", np.ones((3, 3), complex)), "must hold finite real ones"),
    "line": (lambda: array_file("line.npy", np.ones(3)), r"of shape \(3,\); it must"),
    "objects": (lambda: array_file("objects.npy", np.array([[{}]], dtype=object)), "Cannot read the array"),
    "hostile header": (
        lambda: array_header("{'descr': '<f8', 'fortran_order': False, 'shape': (1" + "0" * 30 + ", 3), }"),
        "Cannot read the array",
    ),
    "open header": (lambda: array_header("(" * 64), "Cannot read the array"),
    "several pages": (lambda: float_tiff("pages.tif", np.ones((2, 5, 5))), "holds 2 pictures"),
    "white is zero": (lambda: float_tiff("white.tif", np.ones((5, 5)), photometric="miniswhite"), "black = 0"),
    "no array": (lambda: str(Path(save("x.png", BLOCK)).rename(Path(FILES.name, "x.npy"))), "Cannot read the array"),
    "no file": (lambda: "absent.npy", "Cannot read the array"),
}


@pytest.mark.parametrize(("make", "sentence"), BAD_KERNELS.values(), ids=BAD_KERNELS)
def test_bad_kernel_file_gives_the_sentence(make: Callable[[], str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        kernels.from_file(make())


EDGES = np.array([1, 0, 0, 0, 1])
GOOD_KERNELS = {
    "box": np.full((9, 9), 255),
    "tight gaussian": bell(1.5, 5),
    "line": np.array([[100, 255, 100]]),
    "even line": np.array([[128, 255, 255, 255, 128]]),
    "wide gaussian": bell(20, 31),
    "box with half covered edges": np.pad(np.full((22, 22), 255), 1, constant_values=128),
    "thick motion": np.vstack([np.full((1, 12), v) for v in (128, 255, 128)]),
    "dusty box": np.where(np.arange(81).reshape(9, 9) == 40, 250, 255),
    "box with one half covered side": np.pad(np.full((5, 5), 255), ((0, 0), (0, 1)), constant_values=128),
    "box without corners": np.pad(np.full((3, 3), 255), 1, constant_values=255) * (1 - np.outer(EDGES, EDGES)),
    "line with a bright end": np.array([[100, 100, 100, 100, 200]]),
    "ramp of two rows": np.array([[100, 100, 100, 100, 100], [100, 100, 100, 100, 200]]),
    "echo": np.array([[255, 0, 0, 0, 120]]),
    "tight motion": 255 * np.eye(9),
    "tight disk": disk_picture(0)[9:22, 9:22],
    "dark noise": disk_picture(0) + np.random.default_rng(0).integers(0, 2, (31, 31)) * (disk_picture(0) == 0),
}


@pytest.mark.parametrize("picture", GOOD_KERNELS.values(), ids=GOOD_KERNELS)
def test_kernels_that_reach_their_border_are_read(picture: np.ndarray) -> None:
    kernel = kernels.from_file(save("good.png", picture))
    assert abs(kernel.sum() - 1) < 1e-12


def test_centred_kernel_file_is_not_changed() -> None:
    cross = np.array([[0, 0, 0, 0, 0], [0, 0, 90, 0, 0], [0, 60, 200, 60, 0], [0, 0, 90, 0, 0], [0, 0, 0, 0, 0]])
    expected = torch.from_numpy(cross[1:4, 1:4] / cross.sum())  # without its black border
    torch.testing.assert_close(kernels.from_file(save("cross.png", cross)), expected, rtol=0, atol=1e-12)


def test_kernel_file_of_16_bits_keeps_its_precision() -> None:
    path = Path(FILES.name, "deep.png")
    Image.fromarray(np.array([[300, 1000, 300]], dtype=np.uint16)).save(path)
    (row,) = kernels.from_file(str(path))
    torch.testing.assert_close(row, torch.tensor([300.0, 1000.0, 300.0]).double() / 1600)


def test_mask_file_is_read_as_the_command_line_reads_it() -> None:
    """By the mean of the channels, not by luma, which differs for green and blue; and upright."""
    colours = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (9, 12, 1)).repeat(3, axis=2)
    colours[0, :3] = [[0, 255, 0], [150, 0, 240], [128, 127, 127]]
    for orientation in range(1, 9):
        path = str(Path(FILES.name, f"colours{orientation}.png"))
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(colours).save(path, exif=exif)
        assert torch.equal(masks.from_file(path) == 0, load_mask(path))
    assert masks.from_file(str(Path(FILES.name, "colours1.png")))[0, :3].tolist() == [1, 0, 1]
    assert masks.from_file(path).shape == (12, 9)


def test_too_large_a_picture_gives_the_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's guard against bombs, here of 50 pixels, raises an exception of its own."""
    path = str(Path(FILES.name, "large.jpg"))
    Image.fromarray(np.zeros((16, 16), dtype=np.uint8)).save(path)
    operator = build_operator("jpeg", (1, 16, 16), quality=10)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    for name, fields in [
        ("jpeg", {"tables_from": path}),
        ("inpaint", {"mask": path}),
        ("blur-kernel", {"kernel": path}),
    ]:
        with pytest.raises(ValueError, match=r"has more pixels than can be .*; make the picture smaller"):
            build_operator(name, (1, 16, 16), **fields)
    assert operator(torch.zeros(1, 1, 16, 16)).isfinite().all()  # a picture in memory is no bomb


@pytest.mark.parametrize("mask", [masks.random, masks.brush])
def test_mask_is_its_seed(mask: Callable[..., Tensor]) -> None:
    assert torch.equal(mask((40, 31), 0.3, 0), mask((40, 31), 0.3, 0))
    assert not torch.equal(mask((40, 31), 0.3, 0), mask((40, 31), 0.3, 1))


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.7])
def test_mask_hides_its_fraction(fraction: float) -> None:
    assert (masks.random((40, 31), fraction, 0) == 0).sum() == round(fraction * 40 * 31)
    dab = math.pi * (0.05 * 96) ** 2 / (96 * 128)
    hidden = 1 - float(masks.brush((96, 128), fraction, 0).mean())
    assert fraction <= hidden < fraction + dab


def test_brush_strokes_are_thick() -> None:
    """Nearly every hidden pixel has a hidden neighbour on the same row, unlike in a random mask."""

    def lonely(observed: Tensor) -> float:
        hidden = torch.nn.functional.pad(1 - observed, (1, 1))
        return float((hidden[:, 1:-1] * (1 - hidden[:, :-2]) * (1 - hidden[:, 2:])).sum() / hidden.sum())

    assert lonely(masks.brush((96, 96), 0.25, 0)) < 0.05 < 0.5 < lonely(masks.random((96, 96), 0.25, 0))


def test_masks_leave_global_randomness_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    masks.brush((16, 16), 0.3, 0), masks.random((16, 16), 0.3, 0), kernels.camera_shake(5, 0, 0.5)
    assert torch.equal(torch.get_rng_state(), before[0]) and (np.random.get_state()[1] == before[1]).all()
