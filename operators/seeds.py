"""Random numbers that belong to an operator: its mask or kernel, the same for the same seed."""

from __future__ import annotations

import torch

__all__ = ["seeded"]


def seeded(seed: int) -> torch.Generator:
    """A generator of its own on the CPU.

    Raises:
        ValueError: if the seed is negative or has more than 63 bits.
    """
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed is a whole number from 0 to 2^63 - 1, got {seed}; choose a smaller one, such as 0.")
    return torch.Generator().manual_seed(seed)
