"""The files that a restoration of one picture becomes."""

from __future__ import annotations

import glob
from collections.abc import Container, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .encode import encode_picture, spread_picture
from .images import Picture
from .provenance import is_edited, provenance_of

if TYPE_CHECKING:
    from ..result import Result

__all__ = ["encode_result", "further_pictures", "record_of", "stale_pictures"]


def encode_result(result: Result, output: Path, picture: Picture, made: dict[str, Any]) -> dict[Path, bytes]:
    """The files of the best estimate, and for several samples of each of them and of their spread.

    Arguments:
        result: of one measurement.
        output: where the best estimate goes.
        picture: that was read.
        made: the provenance.
    """
    samples = result.samples[0]  # (S, C, H, W)
    if len(samples) == 1:
        return {output: encode_picture(output, samples[0], picture, made)}
    *sample_paths, std_path = further_pictures(output, len(samples))
    content = f"mean of {len(samples)} samples"
    files = {output: encode_picture(output, result.mean[0], picture, made | {"content": content})}
    for s, (path, sample) in enumerate(zip(sample_paths, samples, strict=True)):
        content = f"sample {s + 1} of {len(samples)}"
        files[path] = encode_picture(path, sample, picture, made | {"content": content})
    plain = replace(picture, alpha=None, icc=None, exif=None, xmp=None)  # a map of numbers, not of colours
    content = f"standard deviation of {len(samples)} samples, white = the largest"
    files[std_path] = encode_picture(std_path, spread_picture(result.std[0]), plain, made | {"content": content})
    return files


def record_of(output: Path) -> Path:
    """The record of a picture, beside it."""
    return output.with_name(f"{output.stem}.json")


def further_pictures(output: Path, samples: int) -> list[Path]:
    """The pictures that go with the mean of several samples: each of them, and their spread."""
    if samples == 1:
        return []
    digits = max(2, len(str(samples)))
    names = [f"{output.stem}_sample{s + 1:0{digits}d}.png" for s in range(samples)]
    return [output.with_name(name) for name in (*names, f"{output.stem}_std.png")]


def stale_pictures(output: Path, new: Container[Path]) -> list[Path]:
    """Samples and spreads of this picture that an earlier run wrote, as they say themselves, and this one does not."""
    folder, stem = output.parent, glob.escape(output.stem)
    found = [path for ending in ("_sample*.png", "_std.png") for path in folder.glob(stem + ending)]
    return [path for path in found if path not in new and _is_further(provenance_of(path)) and not is_edited(path)]


def _is_further(made: Mapping[str, Any]) -> bool:
    """Whether a file was written beside a mean; the one picture of a run with one sample has the content "sample"."""
    content = str(made.get("content", ""))
    return made.get("tool") == "restore" and content.startswith(("sample ", "standard deviation of "))
