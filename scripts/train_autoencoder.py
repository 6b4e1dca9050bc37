"""Train the autoencoder of the bundled latent prior: a small diffusers AutoencoderKL.

    python scripts/make_training_set.py --out training-set
    python scripts/train_autoencoder.py --data training-set --out natural-latent/vae --minutes 60

L1 + LPIPS (AlexNet, see scripts/fetch_lpips_trunk.py) + a small KL, on the crops and with the optimisers of
train_natural.py.  At the end the standard deviation of the latents becomes the scaling factor of the config.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from crops import Crops
from diffusers import AutoencoderKL
from torch import Tensor, nn
from training import add_arguments, autocast, train

from invsolve.metrics import lpips_network

WIDTHS = (32, 64, 128)  # two halvings
LATENT_CHANNELS = 8
LPIPS_WEIGHT = 0.5
KL_WEIGHT = 1e-6  # per latent entry, summed


def loss_of(autoencoder: AutoencoderKL, x: Tensor) -> Tensor:
    """L1 + LPIPS + KL of a batch (B, 3, H, W) in [-1, 1]."""
    with autocast(x.device):
        posterior = autoencoder.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist
        z = posterior.mean + posterior.std * torch.randn_like(posterior.mean)
        restored = autoencoder.decode(z).sample
        perceptual = lpips_network().to(x.device)(restored, x)
    distance = (restored.float() - x).abs().mean()
    return distance + LPIPS_WEIGHT * perceptual.float().mean() + KL_WEIGHT * posterior.kl().float().sum() / len(x)


def main() -> None:
    """Train for the given time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, minutes=60, crop=64, batch=8)
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    torch.manual_seed(args.seed)
    if args.start:
        autoencoder = AutoencoderKL.from_pretrained(args.start, low_cpu_mem_usage=False, use_safetensors=True)
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
    autoencoder = autoencoder.to(args.device, memory_format=torch.channels_last).train()
    crops = Crops(args.data, args.device)
    some = crops.batch(64, args.crop)

    @torch.no_grad()
    def save(average: nn.Module, folder: Path) -> None:
        """Write the weights, and as scaling factor what gives the latents of some crops the standard deviation 1."""
        assert isinstance(average, AutoencoderKL)
        z = average.encode(some).latent_dist.mode()
        average.register_to_config(scaling_factor=1 / float(z.std()), shift_factor=float(z.mean()))
        average.save_pretrained(folder)

    def is_inner(_: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim == 4 and min(parameter.shape[:2]) >= WIDTHS[0]

    train(autoencoder, is_inner, lambda: loss_of(autoencoder, crops.batch(args.batch, args.crop)), save, args, 0.05)


if __name__ == "__main__":
    main()
