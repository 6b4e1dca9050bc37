"""Memory modes: what of a prior is where, in how many bits, and how much of a decoder's work is kept for its gradient.

    fast       network and autoencoder on the device, every activation kept
    balanced   the same weights; the decoder recomputes for its gradient, in overlapping tiles of 512 pixels
    low        as balanced, with the network in 8 or 4 bits if torchao or bitsandbytes is installed; else, on an
               accelerator, fetched from the main memory block by block, and then without a gradient
    auto       the first of the three that fits in what is free

The needs are calculated for one picture of the training size.  Not in them: activations of the network and of its
gradient, and text encoders, which are gone by then.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from .files import weights_variant

__all__ = ["Memory", "Mode", "free_memory", "plan_memory", "stored_parameters"]

Mode = Literal["auto", "fast", "balanced", "low"]
LOG = logging.getLogger("invsolve")
TILE = 512  # pixels
CPU = torch.device("cpu")
# Of the usual AutoencoderKL decoder (128, 256, 512, 512 channels) in float32, per pixel of the picture, by
# scripts/bench_decoder.py: what autograd keeps, and what it keeps and recomputes at its peak with checkpoints.
KEPT, RECOMPUTED = 24_000, 13_000
SHARE = 0.9  # of the free memory that may be planned with
BLOCKS = 0.1  # share of a network's weights that is on the device at a time when it comes block by block


@dataclass(frozen=True, kw_only=True)
class Memory:
    """A mode with its consequences.

    Arguments:
        mode: never auto.
        tile: side of the decoder's tiles in pixels; None for whole pictures.
        checkpoint: gradients recompute the decoder.
        bits: of the network's weights, 8 or 4; None as they are asked for.
        offload: the network comes from the main memory block by block.
        device: of what is not offloaded.
    """

    mode: Literal["fast", "balanced", "low"]
    tile: int | None = None
    checkpoint: bool = False
    bits: Literal[8, 4] | None = None
    offload: bool = False
    device: torch.device = CPU

    def quantisation(self) -> Any | None:
        """What diffusers is told about the bits."""
        from diffusers import BitsAndBytesConfig, TorchAoConfig

        if self.bits is None:
            return None
        if self.bits == 8:
            from torchao.quantization import Int8WeightOnlyConfig

            return TorchAoConfig(Int8WeightOnlyConfig())
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


def plan_memory(
    mode: str,
    *,
    network: int,
    autoencoder: int,
    itemsize: int,
    pixels: int,
    recomputes: bool = True,
    device: torch.device,
    free: int | None = None,
) -> Memory:
    """What a mode means for a prior, and for `auto` which one fits, which is logged.

    Arguments:
        mode: a `Mode`.
        network: number of parameters.
        autoencoder: number of parameters, which are in float32.
        itemsize: bytes per parameter of the network.
        pixels: of one picture.
        recomputes: whether the autoencoder can recompute its activations for the gradient.
        device: where to compute.
        free: bytes free there; by default what the device says.

    Raises:
        ValueError: the mode is unknown.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"Unknown memory mode {mode!r}; choose one of {', '.join(get_args(Mode))}.")
    bits = _bits(device)
    kept = KEPT if autoencoder else 0
    tiled = min(pixels, TILE**2) * (RECOMPUTED if recomputes else KEPT) if autoencoder else 0
    on_device = network * itemsize * BLOCKS if device.type != "cpu" else network * itemsize
    needs = {
        "fast": network * itemsize + 4 * autoencoder + pixels * kept,
        "balanced": network * itemsize + 4 * autoencoder + tiled,
        "low": (network * bits / 8 if bits else on_device) + 4 * autoencoder + tiled,
    }
    if mode == "auto":
        free = free_memory(device) if free is None else free
        fitting = [name for name, need in needs.items() if need <= SHARE * free]
        mode = fitting[0] if fitting else "low"
        about = f"Memory mode {mode}: about {_gb(needs[mode])} for a picture of {pixels**0.5:.0f}^2, {_gb(free)} free"
        about += " on the device." if fitting else "; it may not fit: restore smaller pictures or take a smaller prior."
        LOG.info(about)
    if mode == "fast":
        return Memory(mode="fast", device=device)
    if mode == "balanced":
        return Memory(mode="balanced", tile=TILE, checkpoint=True, device=device)
    offload = bits is None and device.type != "cpu"
    return Memory(mode="low", tile=TILE, checkpoint=True, bits=bits, offload=offload, device=device)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "xpu":
        return int(torch.xpu.mem_get_info(device)[0])
    import psutil  # a part of accelerate

    return int(psutil.virtual_memory().available)


def stored_parameters(folder: Path) -> int:
    """The number of parameters and buffers in the safetensors files of a folder; loading tells of damaged ones."""
    from safetensors import SafetensorError, safe_open

    count = 0
    variant = weights_variant(folder)
    paths = [path for path in folder.glob("*.safetensors") if (".fp16" in path.name) == (variant == "fp16")]
    for path in paths:
        with contextlib.suppress(SafetensorError), safe_open(path, "pt") as file:
            count += sum(torch.Size(file.get_slice(name).get_shape()).numel() for name in file.keys())  # noqa: SIM118
    return count


def _bits(device: torch.device) -> Literal[8, 4] | None:
    """The fewest bits that an installed library can do on the device."""
    if device.type == "cuda" and find_spec("bitsandbytes") is not None:
        return 4
    return 8 if find_spec("torchao") is not None else None


def _gb(n: float) -> str:
    return f"{n / 1e9:.1f} GB"
