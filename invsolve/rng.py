"""Random numbers that belong to a picture, not to its batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from .counts import is_whole

__all__ = ["ImageRng", "derive_seed", "image_seeds"]


def derive_seed(run_seed: int, *parts: int | str) -> int:
    """A 63-bit seed for one (image, sample, …) of a run: the same for any batch size and any machine.

    Arguments:
        run_seed: the seed the user gave.
        parts: what identifies the draw, such as the image index and the sample index.
    """
    text = "/".join(str(part) for part in (run_seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def image_seeds(seed: int | Sequence[int], n: int) -> list[int]:
    """One seed for each of n images: those given, or from the seed of a run, which the first image keeps.

    Raises:
        ValueError: another number of seeds.
        TypeError: a seed is not an integer.
    """
    given = list(seed) if isinstance(seed, Sequence) else [seed]
    if not all(is_whole(one) for one in given):
        raise TypeError(f"A seed must be an integer, or a list of one for each image, got {seed!r}.")
    if isinstance(seed, Sequence):
        if len(given) != n:
            raise ValueError(f"There are {len(given)} seeds for {n} images; give one seed, or one for each image.")
        return [int(one) for one in given]
    return [int(given[0]), *(derive_seed(given[0], k) for k in range(1, n))]


class ImageRng:
    """One CPU generator per row of a batch.

    Row `b` of every draw comes from generator `b` alone, so a picture is the same whatever else is in its
    batch and whatever device the batch is on.

    Arguments:
        seeds: one seed per row, B in all.
    """

    def __init__(self, seeds: Iterable[int]) -> None:
        self.seeds = tuple(int(seed) for seed in seeds)
        if not all(0 <= seed < 2**63 for seed in self.seeds):
            raise ValueError(f"Seeds must be from 0 to 2^63 - 1, got {self.seeds}; derive_seed makes such numbers.")
        self._generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]

    def randn(self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """Standard normal numbers with shape (B, *shape); drawn in float32 and cast, the same for every dtype."""
        return self._draw(Tensor.normal_, shape).to(device=device, dtype=dtype)

    def randn_like(self, x: Tensor) -> Tensor:
        """Standard normal numbers with the shape (B, *), dtype and device of `x`."""
        self._check_rows(x)
        return self.randn(x.shape[1:], dtype=x.dtype, device=x.device)

    def rand(self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """Uniform numbers in [0, 1) with shape (B, *shape); drawn in float32 and cast, the same for every dtype."""
        return self._draw(Tensor.uniform_, shape).to(device=device, dtype=dtype)

    def poisson(self, rate: Tensor) -> Tensor:
        """Poisson counts with the given rates (B, *), each row from its own generator."""
        self._check_rows(rate)
        rates = rate.cpu().double()  # half precision cannot count beyond 2048
        rows = [torch.poisson(row, generator=g) for row, g in zip(rates, self._generators, strict=True)]
        return torch.stack(rows).to(rate.device)

    def _draw(self, fill: Callable[..., Tensor], shape: Sequence[int]) -> Tensor:
        """(B, *shape) on the CPU, filled row by row: one tensor for a thousand particles, not a thousand."""
        x = torch.empty(len(self.seeds), *shape, dtype=torch.float32)
        for row, generator in zip(x.unbind(), self._generators, strict=True):
            fill(row, generator=generator)
        return x

    def _check_rows(self, x: Tensor) -> None:
        if len(x) != len(self.seeds):
            raise ValueError(f"An ImageRng of {len(self.seeds)} seeds got a batch of {len(x)}; give one seed per row.")
