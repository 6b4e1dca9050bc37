"""Train the autoencoder of the bundled latent prior on a CPU: a small diffusers AutoencoderKL.

    python scripts/make_training_set.py --out training-set
    python scripts/train_autoencoder.py --data training-set --out natural-latent/vae --minutes 90

L1 + LPIPS (AlexNet, see scripts/fetch_lpips_trunk.py) + a small KL, on the crops of train_natural.py.  At the end the
standard deviation of the latents becomes the scaling factor of the config.  `--start FOLDER` goes on from weights.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from train_natural import Crops, Muon

from invsolve.metrics import lpips_network

WIDTHS = (32, 64, 128)  # two halvings
LATENT_CHANNELS = 8
LPIPS_WEIGHT = 0.5
KL_WEIGHT = 1e-6  # per latent entry, summed
WARM_UP = 100  # steps


def loss_of(autoencoder: AutoencoderKL, x: Tensor) -> Tensor:
    """L1 + LPIPS + KL of a batch (B, 3, H, W) in [-1, 1]."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = autoencoder.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist
        z = posterior.mean + posterior.std * torch.randn_like(posterior.mean)
        restored = autoencoder.decode(z).sample
        perceptual = lpips_network()(restored, x)
    distance = (restored.float() - x).abs().mean()
    return distance + LPIPS_WEIGHT * perceptual.float().mean() + KL_WEIGHT * posterior.kl().float().sum() / len(x)


@torch.no_grad()
def finish(autoencoder: AutoencoderKL, crops: Crops, folder: Path) -> None:
    """Set the scaling factor from a batch of crops and save."""
    z = autoencoder.encode(crops.batch(64)).latent_dist.mode()
    autoencoder.register_to_config(scaling_factor=1 / float(z.std()), shift_factor=float(z.mean()))
    autoencoder.save_pretrained(folder)


def main() -> None:
    """Train for the given time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=0.01, help="of Muon")
    parser.add_argument("--lr-adam", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="start from the weights of this folder")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    torch.manual_seed(args.seed)
    if args.start:
        autoencoder = AutoencoderKL.from_pretrained(args.start, low_cpu_mem_usage=False)
    else:
        autoencoder = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(WIDTHS),
            up_block_types=("UpDecoderBlock2D",) * len(WIDTHS),
            block_out_channels=WIDTHS,
            layers_per_block=1,
            latent_channels=LATENT_CHANNELS,
            norm_num_groups=8,
            mid_block_add_attention=False,
        )
    autoencoder = autoencoder.to(memory_format=torch.channels_last).train()
    inner = [p for name, p in autoencoder.named_parameters() if p.ndim == 4 and min(p.shape[:2]) >= WIDTHS[0]]
    outer = [p for p in autoencoder.parameters() if all(p is not q for q in inner)]
    optimizers = [
        Muon(inner, args.lr, weight_decay=0.05),
        torch.optim.AdamW(outer, args.lr_adam, betas=(0.9, 0.99), weight_decay=0),
    ]
    rates = [args.lr, args.lr_adam]
    average = copy.deepcopy(autoencoder).requires_grad_(False)
    crops = Crops(args.data, args.seed)
    total, start, saved_at, step, recent = 60 * args.minutes, time.time(), 0.0, 0, []
    while (elapsed := time.time() - start) < total:
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / WARM_UP) * (1 - elapsed / total)
            optimizer.zero_grad(set_to_none=True)
        loss = loss_of(autoencoder, crops.batch(args.batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(autoencoder.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        recent.append(loss.item())
        keep = min(0.999, step / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in autoencoder.parameters()], 1 - keep)
        if elapsed - saved_at > 300:
            saved_at = elapsed
            finish(average, crops, args.out)
            print(f"{elapsed / 60:.0f} min  step {step}  median loss {np.median(recent):.4f}", flush=True)
            recent.clear()
    finish(average, crops, args.out)


if __name__ == "__main__":
    main()
