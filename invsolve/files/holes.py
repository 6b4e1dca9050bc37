"""Mask pictures: white where a picture has a hole, black where it is kept.

A photograph given as a mask would be cut at mid grey and would hide half of the picture without a word, so that a mask
must be nearly two-valued.  Grey is expected along the edge of a hole, where a brush is soft, lines are smoothed, or a
JPEG file rings; it is not expected anywhere else.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from .images import MAX_PIXELS, load_image

__all__ = ["hidden_share", "load_mask", "mask_notes"]

# Chosen on masks and photographs from several libraries, see tests/test_holes.py: the masks have at most 0.32 and 0.09
# of the two shares below, the photographs at least 0.54 of the first or 0.4 of the second.
BLACK, WHITE = 0.15, 0.85  # of the range: between them a pixel is grey
MOST_GREY = 0.4  # of the pixels
MOST_FAR = 0.2  # grey pixels far from every edge, as a share of the smaller of the two parts
EDGE = 4, 64  # an edge is 4 pixels wide on either side, or 1/64 of the shorter side

ALMOST_ALL = 0.95  # of the picture
ALMOST_NONE = 10  # pixels


def load_mask(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read a mask picture: (H, W) bool, True where it is white, that is where the picture has a hole.

    The mean over the channels is cut at 127.5 of 255.

    Raises:
        ValueError: it has transparent pixels, no hole, nothing but holes, or is not nearly black and white.
    """
    picture = load_image(path, max_pixels)
    if not picture.is_opaque:
        raise ValueError(f"The mask {path} has transparent pixels; save it opaque, white = hole and black = keep.")
    level = (picture.tensor.mean(dim=0) + 1) / 2
    holes = level > 0.5
    if not holes.any():
        raise ValueError(f"The mask {path} has no hole; paint what is to be filled in white on black.")
    if holes.all():
        raise ValueError(f"The mask {path} is white everywhere; white = hole, so paint what is to be kept in black.")
    grey = (level > BLACK) & (level < WHITE)
    part = grey.double().mean().item()
    if part > MOST_GREY or _is_far_from_edges(grey, holes):
        raise ValueError(
            f"{path} is no mask: {100 * part:.3g} % of its pixels are grey, and a mask is black and white, grey only "
            "along edges; paint what is to be filled in white and the rest in black."
        )
    return holes


def hidden_share(data_mask: Tensor | None) -> float | None:
    """The hidden share of the data, 0 to 1, or None where all were measured.

    Arguments:
        data_mask: of an operator; 1 where an entry was measured.
    """
    if data_mask is None or bool(data_mask.all()):
        return None
    return 1 - data_mask.double().mean().item()


def mask_notes(data_mask: Tensor | None) -> list[str]:
    """What speaks against a mask, as sentences: it hides almost everything or almost nothing."""
    share = hidden_share(data_mask)
    if data_mask is None or share is None:
        return []
    if share > ALMOST_ALL:
        return [f"The mask hides {100 * share:.1f} % of the picture; white = hole, so invert it if black is the hole."]
    count = int((data_mask == 0).sum())
    if count < ALMOST_NONE:
        return [f"The mask hides {count} of {data_mask.numel()} pixels; check that it is the right one."]
    return []


def _is_far_from_edges(grey: Tensor, holes: Tensor) -> bool:
    """Whether there is more grey, away from where `holes` begin and end, than the edges of holes explain; (H, W)."""
    least, part = EDGE
    reach = 2 * max(least, min(grey.shape) // part) + 1
    near = _dilated(holes, reach) & _dilated(~holes, reach)
    smaller = min(int(holes.sum()), int((~holes).sum()))
    return int((grey & ~near).sum()) > MOST_FAR * smaller


def _dilated(mask: Tensor, size: int) -> Tensor:
    """True where any pixel of the `size` x `size` around is True; (H, W), in a time that does not depend on `size`."""
    from scipy.ndimage import maximum_filter

    return torch.from_numpy(maximum_filter(mask.numpy(), size=size, mode="nearest"))
