"""Train the bundled prior `natural` on a CPU: a rectified flow on pixels.

    python scripts/make_training_set.py --out training-set
    python scripts/train_natural.py --data training-set --out priors/natural --minutes 120

The training can be stopped and continued (`--resume`): the folder `OUT.state` holds the optimiser.  The recipe:
EDM's loss (Karras et al., arXiv 2206.00364) over log-normal noise levels, random crops of every picture at six
scales, Muon (orthogonalised momentum) for the inner convolutions and Adam for the rest, learning rates that fall
linearly to zero over the given time, an exponential moving average of the weights.  No picture of scikit-image or
scikit-learn is seen.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file
from torch import Tensor, nn
from training import Crops, add_arguments, ahead, train

from invsolve.priors.network import ResidualUNet

LOG_SIGMA = (-1.6, 1.3)  # mean and standard deviation of log(sigma/alpha)
SIGMA_RANGE = (0.005, 80.0)


def flow_loss(
    residual: Callable[[Tensor, Tensor], Tensor], x: Tensor, data_std: float, mean: float, spread: float
) -> Tensor:
    """EDM's loss: mean squared error of F, which weighs every noise level alike at the start.

    Arguments:
        residual: F of `ResidualUNet`.
        x: clean pictures or latents (B, C, H, W).
        data_std: d of `ResidualUNet`.
        mean: of log(sigma/alpha).
        spread: its standard deviation.
    """
    sigma = torch.exp(mean + spread * torch.randn(len(x))).clamp(*SIGMA_RANGE)
    t = (sigma / (1 + sigma)).reshape(-1, 1, 1, 1)
    n = (t**2 + data_std**2 * (1 - t) ** 2).sqrt()
    x_t = (1 - t) * x + t * torch.randn_like(x)
    target = (x - data_std**2 * (1 - t) / n**2 * x_t) * n / (data_std * t)
    with torch.autocast("cpu", torch.bfloat16):
        f = residual((x_t / n).contiguous(memory_format=torch.channels_last), sigma.log())
    return (f.float() - target).square().mean()


def is_inner(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon trains it: the convolutions between hidden channels."""
    return parameter.ndim == 4 and not name.startswith("conv_")


def save(network: nn.Module, folder: Path) -> None:
    """Write the weights as a diffusers pipeline folder."""
    assert isinstance(network, ResidualUNet)
    network.save_pretrained(folder / "unet")
    FlowMatchEulerDiscreteScheduler(shift=1.0).save_pretrained(folder / "scheduler")


def build(parser: argparse.ArgumentParser, args: argparse.Namespace, **config: float) -> ResidualUNet:
    """The network of the options, from the weights of --start if given; blocks they lack begin as the identity."""
    network = ResidualUNet(widths=tuple(args.widths), blocks=tuple(args.blocks), **config)
    if args.start:
        weights = load_file(args.start / "unet" / "diffusion_pytorch_model.safetensors")
        if extra := network.load_state_dict(weights, strict=False).unexpected_keys:
            parser.error(f"{args.start} has weights that this network lacks ({extra[0]}, ...); give more --blocks.")
    return network.to(memory_format=torch.channels_last).train()


def main() -> None:
    """Train for the given time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, minutes=120, crop=128, batch=6)
    parser.add_argument("--widths", type=int, nargs="+", default=(64, 128, 192))
    parser.add_argument("--blocks", type=int, nargs="+", default=(4, 4, 4))
    parser.add_argument("--log-sigma", type=float, nargs=2, default=LOG_SIGMA, metavar=("MEAN", "STD"))
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    torch.manual_seed(args.seed)
    network = build(parser, args)
    crops = Crops(args.data, args.crop, args.seed)
    draw = ahead(lambda: crops.batch(args.batch))
    residual = torch.compile(network.residual, dynamic=False)
    data_std = float(network.config["data_std"])
    train(network, is_inner, lambda: flow_loss(residual, draw(), data_std, *args.log_sigma), save, args, 0.2)


if __name__ == "__main__":
    main()
