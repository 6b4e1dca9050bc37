"""Random crops of the training pictures, gathered on the device from one pyramid of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["Crops"]

SHORT_SIDES = (200, 280, 400, 560, 800, 1100)  # every photograph at these sizes,
SHARP = 0.75  # but at most this share of its own: reduced pictures have no blur and no JPEG blocks
GAP = 1.1  # and at that size itself where it exceeds the last of these by this factor
SMALL = 400  # short side of the largest small scale: a crop of 256 pixels shows most of such a picture
STAMP_SIZE = 160
LIVELIER = 0.25  # share of the crops that are the livelier of two windows: photographs are mostly sky
STAMPED = 0.1  # share with a cut-out
PERMUTED = 0.1  # share with permuted colour channels


class Crops:
    """Random crops of the training pictures as batches (B, 3, side, side) in [-1, 1].

    All scales of all photographs lie in one tensor of bytes on the device, and crops are gathered from it by index.
    What is random is drawn by torch's generator of the CPU: a seed gives the same crops on every device.

    Arguments:
        folder: of make_training_set.py.
        device: where the pictures and the crops lie.

    Raises:
        FileNotFoundError: the folder has no photographs.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        Image.MAX_IMAGE_PIXELS = None  # our own download
        self.device = torch.device(device)
        files = sorted((folder / "photos").iterdir()) if (folder / "photos").is_dir() else []
        if not files:
            raise FileNotFoundError(
                f"{folder} holds no photos/*; make it with scripts/make_training_set.py --out {folder}."
            )
        self.sizes, pyramid = _pyramid(files, folder / "pyramid.pt")
        self.starts = 3 * (self.sizes.prod(1).cumsum(0) - self.sizes.prod(1))
        self.bytes = pyramid.to(self.device)
        self.stamps, self.stamp_sizes = _stamps(folder / "stamps")
        self.stamps = self.stamps.to(self.device)
        self._weights: dict[tuple[int, bool], Tensor] = {}

    def batch(self, n: int, side: int, *, small: bool = False) -> Tensor:
        """N crops.

        Arguments:
            n: how many.
            side: in pixels.
            small: only from small scales, where a crop shows the layout of its picture.
        """
        crops = self._windows(n, side, small)
        if len(rivals := self._some(n, LIVELIER)):
            pair = torch.stack([crops[rivals], self._windows(len(rivals), side, small)])
            first, second = (_liveliness(windows) for windows in pair)
            crops[rivals] = torch.where((first >= second)[:, None, None, None], *pair)
        if len(self.stamps) and len(stamped := self._some(n, STAMPED)):
            crops[stamped] = self._paste(crops[stamped])
        for i in self._some(n, PERMUTED).tolist():
            crops[i] = crops[i, torch.randperm(3).to(self.device)]
        return crops.float() / 127.5 - 1

    def _some(self, n: int, share: float) -> Tensor:
        """The indices of those crops of n that have a property of this share."""
        return (torch.rand(n) < share).nonzero()[:, 0].to(self.device)

    def _windows(self, n: int, side: int, small: bool) -> Tensor:
        """Windows of random pictures (N, 3, side, side) as bytes, mirrored and turned by quarters at random."""
        level = torch.multinomial(self._weight(side, small), n, replacement=True)
        height, width = self.sizes[level].unbind(1)
        rows, columns = (self._positions(size - side, side) for size in (height, width))
        rows, columns = 3 * width[:, None] * rows, 3 * columns + self.starts[level][:, None]  # in bytes
        turned = torch.rand(n, 1) < 0.5
        down, right = torch.where(turned, columns, rows), torch.where(turned, rows, columns)
        down, right = down.to(self.device), right.to(self.device)
        colours = torch.arange(3, device=self.device)[:, None, None]
        return self.bytes[down[:, None, :, None] + right[:, None, None, :] + colours]

    def _positions(self, room: Tensor, side: int) -> Tensor:
        """Consecutive positions (N, side) from a random start in 0 to room, forwards or backwards."""
        first = (torch.rand(len(room)) * (room + 1)).long()[:, None]
        along = torch.arange(side)
        return first + torch.where(torch.rand(len(room), 1) < 0.5, along, side - 1 - along)

    def _weight(self, side: int, small: bool) -> Tensor:
        """How often each level is drawn: those that hold a window of this side; small ones are denser."""
        if (side, small) not in self._weights:
            shortest = self.sizes.amin(1)
            fits = (shortest >= side) & (shortest <= SMALL) if small else shortest >= side
            if not fits.any():
                raise ValueError(f"No training picture holds a crop of {side} pixels; take smaller crops.")
            self._weights[side, small] = self.sizes.prod(1).double() ** 0.25 * fits
        return self._weights[side, small]

    def _paste(self, crops: Tensor) -> Tensor:
        """The crops with a random part of a random cut-out on top, mirrored at random."""
        n, side = len(crops), crops.shape[-1]
        chosen = torch.randint(len(self.stamps), (n,))
        room = (self.stamp_sizes[chosen] - side // 2).clamp(min=0)
        rows, columns = (self._positions(room[:, i], side).to(self.device) for i in range(2))
        stamps = self.stamps[chosen.to(self.device)]
        inside = ((rows < STAMP_SIZE)[:, :, None] & (columns < STAMP_SIZE)[:, None, :])[:, None]
        rows, columns = rows.clamp(max=STAMP_SIZE - 1), columns.clamp(max=STAMP_SIZE - 1)
        which = torch.arange(n, device=self.device)[:, None, None]
        part = stamps.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).float()
        alpha = part[:, 3:] / 255 * inside
        return (alpha * part[:, :3] + (1 - alpha) * crops + 0.5).to(torch.uint8)


def _pyramid(files: Sequence[Path], cache: Path) -> tuple[Tensor, Tensor]:
    """Heights and widths (L, 2) of all scales of the photographs, and their bytes (N,), one level after the other.

    Reducing takes minutes, and the cache keeps the result; it is made anew for other photographs or other scales.
    """
    key = repr([SHORT_SIDES, SHARP, GAP, *((file.name, file.stat().st_size) for file in files)])
    if cache.is_file():
        stored = torch.load(cache, weights_only=True, mmap=True)
        if stored["key"] == key:
            return stored["sizes"], stored["bytes"]
    sizes, levels = [], []
    for file in files:
        photo = Image.open(file).convert("RGB")
        for width, height in _scales(photo.size):
            level = photo.resize((width, height), Image.Resampling.LANCZOS)
            levels.append(torch.from_numpy(np.array(level).reshape(-1)))
            sizes.append((height, width))
    made = {"key": key, "sizes": torch.tensor(sizes), "bytes": torch.cat(levels)}
    torch.save(made, cache.with_suffix(".new"))
    cache.with_suffix(".new").replace(cache)
    return made["sizes"], made["bytes"]


def _scales(size: tuple[int, int]) -> list[tuple[int, int]]:
    """The sizes (width, height) at which a photograph of this size is used."""
    short = min(size)
    sides = [side for side in SHORT_SIDES if side <= SHARP * short] or [min(short, SHORT_SIDES[0])]
    if GAP * sides[-1] < SHARP * short < SHORT_SIDES[-1]:
        sides.append(int(SHARP * short))
    return [(round(size[0] * side / short), round(size[1] * side / short)) for side in sides]


def _stamps(folder: Path) -> tuple[Tensor, Tensor]:
    """All cut-outs (N, 4, STAMP_SIZE, STAMP_SIZE) as bytes, at the top left, and their heights and widths (N, 2)."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    stamps = torch.zeros(len(files), 4, STAMP_SIZE, STAMP_SIZE, dtype=torch.uint8)
    sizes = torch.zeros(len(files), 2, dtype=torch.int64)
    for i, file in enumerate(files):
        stamp = Image.open(file).convert("RGBA")
        stamp.thumbnail((STAMP_SIZE, STAMP_SIZE), Image.Resampling.LANCZOS)
        stamps[i, :, : stamp.height, : stamp.width] = torch.from_numpy(np.array(stamp)).permute(2, 0, 1)
        sizes[i] = torch.tensor([stamp.height, stamp.width])
    return stamps, sizes


def _liveliness(windows: Tensor) -> Tensor:
    """Mean difference (N,) of neighbours of every second pixel."""
    return windows[..., ::2, ::2].float().diff(dim=2).abs().mean(dim=(1, 2, 3))
