"""Train the bundled prior `natural-latent`: a rectified flow in the latents of its autoencoder.

    python scripts/make_training_set.py --out training-set
    python scripts/train_autoencoder.py --data training-set --out natural-latent/vae
    python scripts/train_latent_flow.py --data training-set --out natural-latent

The recipe of train_natural.py on latents: E(x) of the crops, shifted and scaled as the autoencoder's config says.
"""

from __future__ import annotations

import argparse

import torch
from crops import Crops
from diffusers import AutoencoderKL
from torch import Tensor
from train_natural import build, errors, flow_loss, is_inner, save
from training import add_arguments, autocast, train

from invsolve.priors import GaussianPrior, LatentPrior, PowerLaw

LOG_SIGMA = (-0.6, 1.4)  # latents have the standard deviation 1 and less redundancy than pixels: higher than on pixels


def main() -> None:
    """Train for the given time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, minutes=60, crop=128, batch=16)
    parser.add_argument("--widths", type=int, nargs="+", default=(96, 192))
    parser.add_argument("--blocks", type=int, nargs="+", default=(4, 4))
    parser.add_argument("--log-sigma", type=float, nargs=2, default=LOG_SIGMA, metavar=("MEAN", "STD"))
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    torch.manual_seed(args.seed)
    autoencoder = AutoencoderKL.from_pretrained(args.out / "vae", low_cpu_mem_usage=False, use_safetensors=True)
    coder = LatentPrior(autoencoder.to(args.device), GaussianPrior(PowerLaw()))  # for its `encode`
    network = build(args, channels=autoencoder.config.latent_channels, patch=1, data_std=1.0)
    crops = Crops(args.data, args.device)
    residual = torch.compile(network.residual, dynamic=False)

    @torch.no_grad()
    def latents() -> Tensor:
        """Shifted and scaled E(x) of a batch of crops."""
        with autocast(args.device):
            return coder.encode(crops.batch(args.batch, args.crop).contiguous(memory_format=torch.channels_last))

    train(network, is_inner, lambda: flow_loss(errors(residual, latents(), 1.0, *args.log_sigma)), save, args, 0.2)


if __name__ == "__main__":
    main()
