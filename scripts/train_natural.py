"""Train the bundled prior `natural`: a rectified flow on pixels.

    python scripts/make_training_set.py --out training-set --photos FOLDER
    python scripts/train_natural.py --data training-set --out natural-2 --start priors/natural --minutes inf
    python scripts/train_natural.py --data training-set --out natural-2 --minutes inf --resume
    python scripts/train_natural.py --data training-set --out natural-2 --start natural-1 --minutes 10 \
        --device cuda --batch 48 --large 8 --lr 0.004 --compile

The second line starts from the weights of a smaller network: levels and attention that it lacks begin as the identity.
The third goes on after a stop, and training.py says how to finish.  The last one is ten minutes of an accelerator: it
brings back `natural-2/unet`, whose weights are those of a network in half precision, as everywhere.

The recipe: the mean over the crops of the logarithm of EDM's error (Karras et al., arXiv 2206.00364), so that easy and
hard crops count alike; crops of all scales with log-normal noise levels, and larger crops of small scales with high
ones, where the network learns how pictures are laid out; Muon (orthogonalised momentum) for the inner convolutions and
Adam for the rest; an exponential moving average of the weights.  The log has the PSNR of one network call on the
validation photographs.  No picture of scikit-image or scikit-learn is seen.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import torch
from crops import Crops
from denoise_table import denoise, noisy
from diffusers import FlowMatchEulerDiscreteScheduler
from endings import run
from growing import grow
from pictures import validation
from safetensors.torch import load_file
from torch import Tensor, nn
from training import add_arguments, autocast, train

from invsolve.metrics import psnr
from invsolve.priors import load_prior
from invsolve.priors.network import ResidualUNet

LOG_SIGMA = (-1.6, 1.2)  # mean and standard deviation of log(sigma/alpha)
LARGE_LOG_SIGMA = (0.7, 1.2)  # of the large crops
SIGMA_RANGE = (0.005, 80.0)
VALIDATION_LEVELS = (15, 25, 50)  # of noise, in grey levels of 8 bits
FLOOR = 1e-3  # of the error of a crop, whose variance is about 1: black skies are no more worth than this
WEIGHTS = "diffusion_pytorch_model.safetensors"


def errors(
    residual: Callable[[Tensor, Tensor], Tensor], x: Tensor, data_std: float, mean: float, spread: float
) -> Tensor:
    """EDM's error of every picture (B,): mean squared error of F, whose target has variance 1 at every noise level.

    Arguments:
        residual: F of `ResidualUNet`.
        x: clean pictures or latents (B, C, H, W).
        data_std: d of `ResidualUNet`.
        mean: of log(sigma/alpha).
        spread: its standard deviation.  The noise levels of a batch are spread evenly over the distribution.
    """
    shares = (torch.randperm(len(x)) + torch.rand(len(x))) / len(x)
    sigma = torch.exp(mean + spread * torch.special.ndtri(shares)).clamp(*SIGMA_RANGE).to(x.device)
    t = (sigma / (1 + sigma)).reshape(-1, 1, 1, 1)
    n = (t**2 + data_std**2 * (1 - t) ** 2).sqrt()
    x_t = (1 - t) * x + t * torch.randn_like(x)
    target = (x - data_std**2 * (1 - t) / n**2 * x_t) * n / (data_std * t)
    with autocast(x.device):
        f = residual((x_t / n).contiguous(memory_format=torch.channels_last), sigma.log())
    return (f.float() - target).square().mean(dim=(1, 2, 3))


def flow_loss(*of_errors: Tensor) -> Tensor:
    """The mean logarithm of the errors of all pictures."""
    return (torch.cat(of_errors) + FLOOR).log().mean()


def is_inner(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon trains it: the convolutions between hidden channels."""
    return parameter.ndim == 4 and not name.startswith("conv_")


def save(network: nn.Module, folder: Path) -> None:
    """Write the weights in half precision as a diffusers pipeline folder."""
    assert isinstance(network, ResidualUNet)
    copy.deepcopy(network).half().save_pretrained(folder / "unet")
    FlowMatchEulerDiscreteScheduler(shift=1.0).save_pretrained(folder / "scheduler")


def build(args: argparse.Namespace, **config: float) -> ResidualUNet:
    """The network of the options, from the weights of --start if given; what they lack begins as the identity."""
    network = ResidualUNet(widths=tuple(args.widths), blocks=tuple(args.blocks), **config)
    if args.start:
        grow(network, load_file(args.start / "unet" / WEIGHTS))
    return network.to(args.device, memory_format=torch.channels_last).train()


def validate(folder: Path, pictures: Tensor) -> str:
    """The mean PSNR of one call of a stored network on pictures with noise."""
    prior = load_prior(folder, "float32")
    levels = [2 * level / 255 for level in VALIDATION_LEVELS]
    values = [float(psnr(denoise(prior, noisy(pictures, s), s), pictures).mean()) for s in levels]
    named = zip(VALIDATION_LEVELS, values, strict=True)
    return "validation " + "  ".join(f"sigma {level}: {value:.3f} dB" for level, value in named)


def work(args: argparse.Namespace) -> None:
    """Train for the given time."""
    torch.set_flush_denormal(True)
    torch.manual_seed(args.seed)
    network = build(args, attention_heads=args.heads)
    crops, kept = Crops(args.data, args.device), validation(args.data)
    residual = torch.compile(network.residual, dynamic=False) if args.compile else network.residual
    data_std = float(network.config["data_std"])

    def loss() -> Tensor:
        parts = [errors(residual, crops.batch(args.batch, args.crop), data_std, *args.log_sigma)]
        if args.large:
            large = crops.batch(args.large, 2 * args.crop, small=True)
            parts.append(errors(residual, large, data_std, *LARGE_LOG_SIGMA))
        return flow_loss(*parts)

    train(network, is_inner, loss, save, args, 0.2, lambda folder: validate(folder, kept))


def main() -> None:
    """Train for the given time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, minutes=120, crop=128, batch=6)
    parser.add_argument(
        "--large", type=int, default=1, help="crops of twice the side in every batch, from small scales"
    )
    parser.add_argument("--widths", type=int, nargs="+", default=(64, 128, 192, 256))
    parser.add_argument("--blocks", type=int, nargs="+", default=(4, 4, 4, 4))
    parser.add_argument("--heads", type=int, default=4, help="of the self-attention at the bottom; 0 for none")
    parser.add_argument("--log-sigma", type=float, nargs=2, default=LOG_SIGMA, metavar=("MEAN", "STD"))
    parser.add_argument("--compile", action="store_true", help="with torch.compile: minutes at the start")
    run(parser, work)


if __name__ == "__main__":
    main()
