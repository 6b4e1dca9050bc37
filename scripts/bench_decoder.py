"""Memory and time of a gradient through the decoder of Stable Diffusion's size, with checkpoints and tiles.

    python scripts/bench_decoder.py --size 512

One picture, random weights (83.7 million, float32): what the process adds at its peak over the weights, and seconds.
Each way runs in a process of its own, so that freed memory of one does not hide what another needs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from typing import Any

import torch
from bench_solvers import peak_memory
from diffusers import AutoencoderKL

from invsolve.priors import GaussianPrior, LatentPrior, PowerLaw

WAYS: dict[str, dict[str, Any]] = {
    "whole": {},
    "checkpoints": {"checkpoint": True},
    "tiles of 256 with checkpoints": {"checkpoint": True, "tile": 256},
}


def measure(size: int, width: int, checkpoint: bool = False, tile: int | None = None) -> tuple[float, float]:
    """Peak memory in MiB and seconds of one gradient."""
    torch.manual_seed(0)
    coder = AutoencoderKL(
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    )
    prior = LatentPrior(coder, GaussianPrior(PowerLaw()), tile=tile)
    if checkpoint:
        coder.enable_gradient_checkpointing()

    def gradient() -> None:
        z = torch.randn(1, 4, size // 8, size // 8, requires_grad=True)
        torch.autograd.grad(prior.decode(z).square().mean(), z)

    start = time.perf_counter()
    memory = peak_memory(gradient, torch.device("cpu"))
    return memory, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="of the picture, in pixels")
    parser.add_argument("--width", type=int, default=128, help="channels of the decoder's last level")
    args = parser.parse_args()
    print("| decoder gradient | peak, MiB | bytes per pixel | of whole | s |\n|---|---|---|---|---|")
    whole = None
    for name, fields in WAYS.items():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            memory, seconds = pool.apply(measure, (args.size, args.width), fields)
        whole = whole or memory
        per_pixel = memory * 2**20 / args.size**2
        print(f"| {name} | {memory:.0f} | {per_pixel:.0f} | {memory / whole:.2f} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
