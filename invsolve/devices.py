"""The device that a name stands for."""

from __future__ import annotations

import torch

__all__ = ["find_device"]

KINDS = ("cpu", "cuda", "xpu")  # those with float64, which the tables of operators need, and with data


def find_device(name: str | torch.device) -> torch.device:
    """The device of that name, such as "cuda:1"; "auto" is CUDA if there is one, else the CPU.

    Raises:
        ValueError: it is not available, or of a kind that is not supported.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = str(name).partition(":")[0]
    if kind not in KINDS:
        raise ValueError(f"The device {str(name)!r} is not supported; use one of auto, {', '.join(KINDS)}.")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):  # torch's ways to say that it has none
        raise ValueError(
            f"The device {str(name)!r} is not available here; use cpu, or auto for the best one."
        ) from None
    return device
