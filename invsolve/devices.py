"""The device that a name stands for, and the precision of networks there."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

import torch

__all__ = ["DTYPES", "find_device", "has_fast_bfloat16", "is_out_of_memory", "native_bfloat16", "parse_dtype"]

KINDS = ("cpu", "cuda", "xpu")  # those with float64, which the tables of operators need, and with data
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
CPUINFO = Path("/proc/cpuinfo")
VARIABLE = "INVSOLVE_DTYPE"  # of the environment: what "auto" takes on a CPU


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed; torch has an error of its own for accelerators only."""
    on_cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return on_cpu or isinstance(error, MemoryError | torch.OutOfMemoryError)


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


def parse_dtype(dtype: torch.dtype | str) -> torch.dtype | None:
    """The dtype that was asked for: a floating-point dtype of torch, or a name of DTYPES; None for "auto".

    Raises:
        ValueError: the name is unknown.
        TypeError: it is no floating-point dtype.
    """
    if isinstance(dtype, str):
        if dtype != "auto" and dtype not in DTYPES:
            raise ValueError(f"Unknown dtype {dtype!r}; choose one of auto, {', '.join(DTYPES)}.")
        return DTYPES.get(dtype)
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype must be a floating-point dtype such as torch.bfloat16, or its name, got {dtype!r}.")
    return dtype


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether networks are faster in bfloat16 there: on accelerators, and on CPUs with instructions for it.

    The environment variable INVSOLVE_DTYPE, float32 or bfloat16, decides it for the CPU, for example to get the same
    pictures on different machines.

    Raises:
        ValueError: INVSOLVE_DTYPE is something else.
    """
    if device.type != "cpu":
        return True
    wanted = os.environ.get(VARIABLE, "auto")
    if wanted not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"{VARIABLE} is {wanted!r} in the environment; set it to auto, float32 or bfloat16.")
    return native_bfloat16() if wanted == "auto" else wanted == "bfloat16"


@functools.cache
def native_bfloat16() -> bool:
    """Whether this CPU and this torch multiply bfloat16 natively, rather than by way of float32.

    It needs oneDNN, and AVX512-BF16 on x86 (every CPU with AMX has it) or BF16 on Arm.  Without oneDNN, as on Macs,
    convolutions in bfloat16 are slower than in float32.
    """
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # on x86 true also where it is emulated
    if not (torch.backends.mkldnn.is_available() and supported is not None and supported()):
        return False
    return platform.machine().lower() in ("aarch64", "arm64") or _has_avx512_bf16()


def _has_avx512_bf16() -> bool:
    """By torch, or by Linux where torch does not tell."""
    tell = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    if tell is not None:
        return bool(tell())
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:  # not Linux
        return False
    return any("avx512_bf16" in line.split() for line in lines if line.startswith("flags"))
