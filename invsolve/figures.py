"""Figures of results; matplotlib is imported when one is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["overview"]


def overview(sample: Tensor, mean: Tensor, std: Tensor, y: Tensor | None = None, truth: Tensor | None = None) -> Figure:
    """One row per measurement: data, first sample, mean, standard deviation and truth, as far as they are given.

    Arguments:
        sample: one of each measurement (B, C, H, W).
        mean: over the samples (B, C, H, W).
        std: standard deviation over the samples (B, C, H, W).
        y: measurements (B, c, h, w); shown if they look like pictures (one or three channels).
        truth: the true pictures (B, C, H, W).
    """
    from matplotlib.figure import Figure

    columns: list[tuple[str, Tensor]] = []
    if y is not None and y.ndim == 4 and y.shape[1] in (1, 3):
        columns.append(("measurement", y))
    columns += [("sample", sample), ("posterior mean", mean)]
    spread = std.square().mean(dim=1, keepdim=True).sqrt()
    if truth is not None:
        columns.append(("truth", truth))
    rows = len(sample)
    figure = Figure(figsize=(3 * (len(columns) + 1), 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, len(columns) + 1, squeeze=False)
    for b in range(rows):
        for axis, (title, pictures) in zip(axes[b], columns, strict=False):
            axis.imshow(_displayed(pictures[b]), interpolation="nearest", cmap="gray", vmin=0, vmax=1)
            axis.set_title(title)
        image = axes[b, -1].imshow(spread[b, 0].cpu(), interpolation="nearest", cmap="magma", vmin=0)
        axes[b, -1].set_title("standard deviation")
        figure.colorbar(image, ax=axes[b, -1], shrink=0.8)
        for axis in axes[b]:
            axis.set_axis_off()
    return figure


def _displayed(x: Tensor) -> Tensor:
    """(C, H, W) in [-1, 1] as (H, W[, 3]) in [0, 1]; non-finite values are shown as they are, blank."""
    picture = (x.detach().cpu().float() + 1) / 2
    picture = torch.where(picture.isfinite(), picture.clamp(0, 1), torch.nan)
    return picture[0] if len(picture) == 1 else picture.permute(1, 2, 0)
