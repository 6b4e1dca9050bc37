"""How well a prior knows the flow at every time: the velocity error that FLAIR weighs its regulariser with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from .files.atomic import atomic_write
from .linalg import dot
from .priors.base import Prior
from .priors.schedule import LinearFlow
from .rng import ImageRng, derive_seed

__all__ = ["CALIBRATION_SUFFIXES", "calibrate", "save_calibration"]

POINTS = 100  # of the uniform grid over t, as FLAIR's authors took
CALIBRATION_SUFFIXES = (".safetensors", ".json")


@torch.no_grad()
def calibrate(
    prior: Prior,
    pictures: Iterable[Tensor],
    *,
    seed: int = 0,
    batch_size: int = 8,
) -> Tensor:
    """Mean of |v_prior(z_t, t) - (eps - z_0)|^2 per latent entry at 100 uniform flow times from 1 to 0.

    The velocity is that of the rectified flow, noise end minus clean end, for a prior on any path: there z_t is taken
    at equal sigma/alpha.  Every picture has its own noise at every time, so that the result is the same at any batch
    size.

    Arguments:
        prior: the prior to measure, on the device wanted.
        pictures: clean pictures (C, H, W) in [-1, 1], of any sizes, such as a batch (B, C, H, W).
        seed: of the noise.
        batch_size: most rows that go through the network at once.

    Returns:
        The errors (100,) in float64, what `Prior.calibration` holds.

    Raises:
        ValueError: there are no pictures, or the error is not finite.
    """
    t = torch.linspace(1, 0, POINTS, dtype=torch.float64)
    total, n = torch.zeros_like(t), 0
    for n, picture in enumerate(pictures, start=1):
        z0 = prior.encode(picture[None])
        times = prior.schedule.time(LinearFlow().ratio(t)).to(z0)
        for k in torch.arange(POINTS).split(batch_size):
            eps = ImageRng(derive_seed(seed, n - 1, int(j)) for j in k).randn(
                z0.shape[1:], dtype=z0.dtype, device=z0.device
            )
            clean, noise = prior.predict(prior.at(times[k], z0.expand_as(eps), eps), times[k])
            error = (noise - clean) - (eps - z0)
            total[k] += (dot(error, error) / z0.numel()).double().cpu()
    if n == 0:
        raise ValueError("There are no pictures to calibrate the prior with; give at least one.")
    if not total.isfinite().all():
        raise ValueError("The prior's velocity is not finite at some times; try --dtype float32, or other pictures.")
    return total / n


def save_calibration(path: Path, error: Tensor, about: Mapping[str, str]) -> None:
    """Write the errors (100,) with what they were measured on; `load_prior` finds them in the prior's folder.

    Arguments:
        path: ends in .safetensors or .json.
        error: what `calibrate` returned.
        about: texts to keep with it.

    Raises:
        ValueError: the path ends otherwise.
    """
    if path.suffix == ".safetensors":
        atomic_write(path, save({"velocity_error": error.contiguous()}, dict(about)))
    elif path.suffix == ".json":
        atomic_write(path, (json.dumps({**about, "velocity_error": error.tolist()}, indent=2) + "\n").encode())
    else:
        raise ValueError(f"{path.name} is not a calibration file; name one ending in .safetensors or .json.")
