"""Random numbers that belong to a picture, not to its batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["ImageRng", "derive_seed"]


def derive_seed(run_seed: int, *parts: int | str) -> int:
    """A 63-bit seed for one (image, sample, …) of a run: the same for any batch size and any machine.

    Arguments:
        run_seed: the seed the user gave.
        parts: what identifies the draw, such as the image index and the sample index.
    """
    text = "/".join(str(part) for part in (run_seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class ImageRng:
    """One CPU generator per row of a batch.

    Row `b` of every draw comes from generator `b` alone, so a picture is the same whatever else is in its
    batch and whatever device the batch is on.

    Arguments:
        seeds: one seed per row, B in all.
    """

    def __init__(self, seeds: Iterable[int]) -> None:
        self.seeds = tuple(int(seed) for seed in seeds)
        self._generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]

    def randn(self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """Standard normal numbers with shape (B, *shape); drawn in float32 and cast, the same for every dtype."""
        rows = [torch.randn(tuple(shape), generator=generator) for generator in self._generators]
        return torch.stack(rows).to(device=device, dtype=dtype)

    def randn_like(self, x: Tensor) -> Tensor:
        """Standard normal numbers with the shape (B, *), dtype and device of `x`."""
        return self.randn(x.shape[1:], dtype=x.dtype, device=x.device)

    def rand(self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """Uniform numbers in [0, 1) with shape (B, *shape); drawn in float32 and cast, the same for every dtype."""
        rows = [torch.rand(tuple(shape), generator=generator) for generator in self._generators]
        return torch.stack(rows).to(device=device, dtype=dtype)

    def poisson(self, rate: Tensor) -> Tensor:
        """Poisson counts with the given rates (B, *), each row from its own generator."""
        rows = [torch.poisson(row, generator=g) for row, g in zip(rate.cpu(), self._generators, strict=True)]
        return torch.stack(rows).to(rate)
