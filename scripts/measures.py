"""The numbers of a row of `compare.py`, per picture."""

from __future__ import annotations

from torch import Tensor

from invsolve import Problem
from invsolve.metrics import coverage, lpips, psnr, ssim
from invsolve.result import json_number


def measure(x: Tensor, truth: Tensor, problem: Problem) -> dict[str, list[float | None]]:
    """Metrics per picture."""
    x, truth = x.float(), truth.float()
    values = {
        "psnr": psnr(x, truth),
        "ssim": ssim(x.cpu(), truth.cpu()),
        "lpips": lpips(x, truth),
        "chi2": problem.chi2(x.to(problem.y)),
    }
    return per_picture(values)


def measure_spread(samples: Tensor, truth: Tensor) -> dict[str, list[float | None]]:
    """Root mean square of the standard deviation over samples (B, S, C, H, W), and 90 % pixel coverage, per picture."""
    spread = samples.var(dim=1).flatten(1).mean(dim=1).sqrt()
    return per_picture({"spread": spread, "coverage": coverage(samples, truth)})


def per_picture(values: dict[str, Tensor]) -> dict[str, list[float | None]]:
    """Numbers of (B,) tensors as JSON can hold them."""
    return {key: [json_number(float(v)) for v in value] for key, value in values.items()}
