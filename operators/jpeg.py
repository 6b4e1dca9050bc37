"""JPEG compression: the true codec, with the gradient of a soft one."""

from __future__ import annotations

import io
from functools import cached_property
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from PIL import Image, JpegImagePlugin
from torch import Tensor

from ..files.decode import orientation_of
from .base import PinvOperator, Shape

__all__ = ["JPEG", "Subsampling", "jpeg", "quality_tables", "read_tables"]

Subsampling = Literal["4:4:4", "4:2:0"]

# Kornia scales its tables by 200 - 2 quality per cent from 50 up, so that this quality leaves ours as they are.
_UNSCALED_QUALITY = 50.0

# Spread of a photograph: of what its colours share, and of each by itself.
_TYPICAL_STD, _TYPICAL_COLOUR_STD, _TYPICAL_SLOPE = 0.5, 0.05, 1.5

_LARGEST_SIDE = 65500  # of libjpeg, in pixels


class JPEG(PinvOperator):
    """y = decode(encode(x)), pictures in and out: x is rounded to 8 bits, compressed and decompressed by libjpeg.

    The value is the true one.  Rounding has no useful gradient, so that the gradient is the one of Kornia's soft codec
    with the same tables, in which u is rounded to round(u) + (u - round(u))^3.

    y is itself a picture that explains the data, A^+ y = y: compressing it again changes it by little, namely by what
    clipping and rounding to 8 bits do to its coefficients.

    Arguments:
        image_shape: (C, H, W) with one or three channels.
        tables: quantisation steps of luma and chroma (2, 8, 8), 1 to 255, lowest frequency first.
        subsampling: `4:2:0` halves the resolution of the colours, `4:4:4` keeps it.

    References:
        Differentiable JPEG: the devil is in the details, C. Reich et al., 2024, arXiv 2309.06978 (the soft codec).

    Raises:
        ValueError: if an argument is not as above.
    """

    fields: ClassVar[tuple[str, ...]] = ("tables", "subsampling")
    tables: Tensor

    def __init__(self, image_shape: Shape, *, tables: Tensor, subsampling: Subsampling = "4:2:0") -> None:
        super().__init__(image_shape)
        if self.image_shape[0] not in (1, 3):
            raise ValueError(f"JPEG takes pictures of 1 or 3 channels, got image_shape {self.image_shape}.")
        if max(self.image_shape) > _LARGEST_SIDE:
            raise ValueError(
                f"JPEG takes pictures of at most {_LARGEST_SIDE} pixels a side, got image_shape {self.image_shape}; "
                f"cut it into tiles."
            )
        if tables.shape != (2, 8, 8) or tables.min() < 1 or tables.max() > 255:
            raise ValueError(f"JPEG expects tables (2, 8, 8) with values 1 to 255, got {tuple(tables.shape)}.")
        if subsampling not in get_args(Subsampling):
            raise ValueError(f"subsampling is one of {', '.join(get_args(Subsampling))}, got {subsampling!r}.")
        self.subsampling: Subsampling = subsampling
        self.register_buffer("tables", tables.to(torch.float64))

    @cached_property
    def data_shape(self) -> tuple[int, ...]:
        return self.image_shape

    def forward(self, x: Tensor) -> Tensor:
        y = torch.stack([self._compress(picture) for picture in _to_bytes(x)]).to(x) / 127.5 - 1
        if torch.is_grad_enabled() and x.requires_grad:
            soft = self.soft(x)
            y = y + (soft - soft.detach())  # adds exactly 0, and the gradient
        return y

    def pinv(self, y: Tensor) -> Tensor:
        return y

    @cached_property
    def picture_error(self) -> float:  # type: ignore[override]
        """Root mean square of A(x) - x on a random texture with the spread of a photograph, in [-1, 1] units.

        As a picture, y is about this noisy: a solver that starts from y need not start at a higher noise level.  The
        texture's amplitudes fall as f^-1.5, which gives the errors of photographs from quality 5 to 80 within a tenth.
        """
        channels, side = self.image_shape[0], 128
        white = torch.randn(channels + 1, side, side, generator=torch.Generator().manual_seed(0))
        frequency = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.fftfreq(side)[None])
        fields = torch.fft.ifft2(torch.fft.fft2(white) / frequency.clamp_min(1 / side) ** _TYPICAL_SLOPE).real
        fields = fields / fields.std(dim=(1, 2), keepdim=True)
        x = (_TYPICAL_STD * fields[0] + _TYPICAL_COLOUR_STD * fields[1:]).clamp(-1, 1)[None]
        y = JPEG((channels, side, side), tables=self.tables.cpu(), subsampling=self.subsampling)(x)
        return float((y - x).square().mean().sqrt())

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """Every DCT coefficient of x moved into its quantisation cell, at most half a step from the coefficient of y.

        What y's file holds is found again from its pixels: decoding spreads the half-size colours with the triangle
        filter of libjpeg, which is undone here, and the rest is rounding.  Up to that rounding and to clipping the true
        picture is not moved, and x + A^+ y - A^+ A x, which would copy y's blocks, is not its equal.
        """
        from kornia.color import rgb_to_ycbcr, ycbcr_to_rgb

        def planes(picture: Tensor) -> Tensor:  # luma and colours as libjpeg sees them, around 0
            unit = (picture + 1) / 2
            return 255 * (unit if len(picture[0]) == 1 else rgb_to_ycbcr(unit)) - 255 / 2

        halved = self.image_shape[0] == 3 and self.subsampling == "4:2:0"
        old, data = planes(x), planes(y)
        luma, chroma = self.tables.to(x)
        moved = [old[:, :1] + _to_cells(old[:, :1] - 0.5, data[:, :1] - 0.5, luma)]  # luma is around 128, not 127.5
        if halved:
            shift = _to_cells(_halve(old[:, 1:]), _undo_triangle(_halve(data[:, 1:])), chroma)
            shift = shift.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)
            moved.append(old[:, 1:] + shift[..., : x.shape[-2], : x.shape[-1]])
        elif len(x[0]) == 3:
            moved.append(old[:, 1:] + _to_cells(old[:, 1:], data[:, 1:], chroma))
        both = [(p + 255 / 2) / 255 for p in (torch.cat(moved, dim=1), old)]
        new, before = both if len(x[0]) == 1 else [ycbcr_to_rgb(p) for p in both]
        return x + 2 * (new - before)

    def soft(self, x: Tensor) -> Tensor:
        """The differentiable codec whose gradient `forward` has: (B, *image_shape) in [-1, 1] to the same."""
        from kornia.color import rgb_to_ycbcr, ycbcr_to_rgb
        from kornia.enhance import jpeg_codec_differentiable as codec

        x = (x + 1) / 2
        channels, height, width = self.image_shape
        luma, chroma = self.tables.to(x.dtype)
        quality = x.new_full((1,), _UNSCALED_QUALITY)
        if channels == 3 and self.subsampling == "4:2:0":
            return 2 * codec(x, quality, luma, chroma) - 1
        # Kornia's codec halves the colours; each plane by itself, as a grey picture, is not touched by that.
        planes = x if channels == 1 else rgb_to_ycbcr(x)
        grey = planes.reshape(-1, 1, height, width).expand(-1, 3, -1, -1)  # (B C, 3, H, W)
        tables = torch.stack([luma, chroma, chroma][:channels]).repeat(len(x), 1, 1)  # (B C, 8, 8)
        coded = codec(grey, quality, tables, chroma)[:, 0].reshape(x.shape)
        return 2 * (coded if channels == 1 else ycbcr_to_rgb(coded)) - 1

    def _compress(self, picture: Tensor) -> Tensor:
        """Through libjpeg and back: (C, H, W) uint8 to the same, on the CPU."""
        grey = len(picture) == 1
        pixels = picture[0] if grey else picture.permute(1, 2, 0)
        tables = self.tables.to("cpu", torch.int64).flatten(1).tolist()[: 1 if grey else 2]
        file = io.BytesIO()
        Image.fromarray(pixels.numpy()).save(file, "JPEG", qtables=tables, subsampling=self.subsampling)
        file.seek(0)
        with JpegImagePlugin.JpegImageFile(file) as decoded:  # Image.open would doubt a large picture
            values = torch.from_numpy(np.array(decoded))
        return values[None] if grey else values.permute(2, 0, 1)


def jpeg(
    image_shape: Shape, *, quality: int | None = None, subsampling: Subsampling = "4:2:0", tables_from: str = ""
) -> JPEG:
    """JPEG at a quality, or as another file was compressed; one of the two must be known, since a guess does harm.

    Arguments:
        image_shape: (C, H, W) with one or three channels.
        quality: libjpeg's scale, from 1 (worst) to 100.
        subsampling: `4:2:0` halves the resolution of the colours, `4:4:4` keeps it.
        tables_from: path of a JPEG file, which is read for its tables and its subsampling.

    Raises:
        ValueError: if neither or both of quality and tables_from are given, the quality is not in 1 … 100, or the file
            is not a JPEG of a supported kind.
    """
    if tables_from and quality is not None:
        raise ValueError(f"jpeg got quality={quality} and tables_from={tables_from!r}; give one of the two.")
    if tables_from:
        tables, subsampling = read_tables(tables_from)
        return JPEG(image_shape, tables=tables, subsampling=subsampling)
    if quality is None:
        raise ValueError(
            "jpeg got no quality, and only a JPEG file that is restored brings its own; give the quality that the "
            "picture was once saved with, such as jpeg(quality=30), or that JPEG file, jpeg(tables_from='photo.jpg')."
        )
    return JPEG(image_shape, tables=quality_tables(quality), subsampling=subsampling)


def quality_tables(quality: int) -> Tensor:
    """The quantisation steps (2, 8, 8) of luma and chroma that libjpeg uses at a quality from 1 to 100.

    Raises:
        ValueError: if the quality is not in 1 … 100.
    """
    if not 1 <= quality <= 100:
        raise ValueError(f"quality is a number from 1 (worst) to 100, got {quality}.")
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", quality=quality)
    file.seek(0)
    with JpegImagePlugin.JpegImageFile(file) as picture:
        return _tables(picture)


def read_tables(path: str) -> tuple[Tensor, Subsampling]:
    """The quantisation steps (2, 8, 8) and the subsampling with which a JPEG file was written, as seen upright.

    The table of a grey file stands for both; its subsampling, which it does not have, is given as 4:4:4.  A file whose
    EXIF orientation lays it on its side has its tables transposed, as its picture is.

    Raises:
        ValueError: if it is not a JPEG file, its colours are subsampled in another way, or its blocks do not begin at
            the upper left corner of the upright picture.
    """
    try:
        with Image.open(path) as picture:
            if not isinstance(picture, JpegImagePlugin.JpegImageFile):
                raise ValueError(f"{path!r} is a {picture.format} file; tables_from takes the path of a JPEG file.")
            if picture.mode == "CMYK":
                raise ValueError(
                    f"{path!r} holds CMYK colours, whose tables are not those of the picture in RGB; give the quality: "
                    "jpeg(quality=...)."
                )
            code = 0 if picture.mode == "L" else JpegImagePlugin.get_sampling(picture)
            tables, size, orientation = _tables(picture), picture.size, orientation_of(picture)
    except OSError as error:
        raise ValueError(f"Cannot read {path!r} ({error}); tables_from takes the path of a JPEG file.") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path!r} has more pixels than can be restored; make the picture smaller.") from error
    if code not in (0, 2):
        raise ValueError(f"{path!r} has colours subsampled other than 4:4:4 or 4:2:0; save it again with one of them.")
    block = 8 if code == 0 else 16  # pixels a side; the last block of a row or column may be cut
    right_first, bottom_first = orientation in (2, 3, 7, 8), orientation in (3, 4, 6, 7)
    if (right_first and size[0] % block) or (bottom_first and size[1] % block):
        raise ValueError(
            f"{path!r} is turned by its EXIF orientation {orientation}, and {size[0]} x {size[1]} pixels are not whole "
            f"blocks of {block} x {block}, so that upright its blocks begin inside the picture; turn it losslessly "
            "(jpegtran), remove the orientation, or give the quality: jpeg(quality=...)."
        )
    return tables.mT if orientation in (5, 6, 7, 8) else tables, "4:4:4" if code == 0 else "4:2:0"


def _to_cells(planes: Tensor, data: Tensor, table: Tensor) -> Tensor:
    """What to add to planes (B, C, H, W) so that their DCT coefficients lie in the cells of those of `data`."""
    height, width = planes.shape[-2:]
    old, target = _dct(planes), _dct(data)
    target = table * (target / table).round()
    change = torch.clamp(old, target - table / 2, target + table / 2) - old
    basis = _dct_basis(planes)
    blocks = basis.mT @ change @ basis  # (B, C, rows, columns, 8, 8)
    return blocks.transpose(-3, -2).flatten(-4, -3).flatten(-2, -1)[..., :height, :width]


def _dct(planes: Tensor) -> Tensor:
    """Coefficients of the 8 x 8 blocks (B, C, rows, columns, 8, 8); the last row and column are repeated to fill."""
    height, width = planes.shape[-2:]
    full = torch.nn.functional.pad(planes, (0, -width % 8, 0, -height % 8), mode="replicate")
    blocks = full.unfold(-2, 8, 8).unfold(-2, 8, 8)
    basis = _dct_basis(planes)
    return basis @ blocks @ basis.mT


def _dct_basis(like: Tensor) -> Tensor:
    """The orthonormal DCT-II of length 8 as a matrix."""
    n = torch.arange(8, device=like.device, dtype=torch.float64)
    basis = torch.cos(torch.pi / 8 * n[:, None] * (n + 0.5)) / 2
    basis[0] /= 2**0.5
    return basis.to(like)


def _halve(planes: Tensor) -> Tensor:
    """Means of 2 x 2 pixels; an odd last row or column is repeated."""
    height, width = planes.shape[-2:]
    full = torch.nn.functional.pad(planes, (0, width % 2, 0, height % 2), mode="replicate")
    return torch.nn.functional.avg_pool2d(full, 2)


def _undo_triangle(planes: Tensor) -> Tensor:
    """Undo (1/8, 3/4, 1/8) along both axes: libjpeg's enlargement by 3/4 and 1/4, followed by the mean of two."""
    for axis in (-1, -2):
        n = planes.shape[axis]
        index = torch.arange(n, device=planes.device)
        spread = 0.75 * torch.eye(n, dtype=torch.float64, device=planes.device)
        for step in (-1, 1):
            spread[index, (index + step).clamp(0, n - 1)] += 0.125
        planes = torch.tensordot(planes, torch.linalg.inv(spread).to(planes), dims=([axis], [1])).movedim(-1, axis)
    return planes


def _tables(picture: JpegImagePlugin.JpegImageFile) -> Tensor:
    steps = picture.quantization  # {0: luma, 1: chroma}
    if 0 not in steps:
        raise ValueError(
            f"The JPEG file has quantisation tables {sorted(steps)} but no table 0; save it again, or give the "
            "quality: jpeg(quality=...)."
        )
    both = [steps[0], steps.get(1, steps[0])]
    return torch.tensor(both, dtype=torch.float64).reshape(2, 8, 8)


def _to_bytes(x: Tensor) -> Tensor:
    """[-1, 1] to 0 … 255 on the CPU, rounded and clipped."""
    return ((x.detach() + 1) * 127.5).round().clamp(0, 255).to("cpu", torch.uint8)
