"""The picture size behind a measurement, for callers that hold only the measurement."""

from __future__ import annotations

from typing import Any

from .base import Shape

__all__ = ["image_shape_of"]


def image_shape_of(name: str, data_shape: Shape, **fields: Any) -> Shape:
    """The image_shape (C, H, W) whose measurement under the named operator has `data_shape`.

    Arguments:
        name: row of OPERATORS.
        data_shape: (C, H, W) of the measurement.
        fields: the operator's fields; `factor` matters for down-sampling.
    """
    channels, height, width = data_shape
    if name.startswith("downsample"):
        factor = int(fields.get("factor", 4))
        return channels, height * factor, width * factor
    if name == "grayscale":
        return 3, height, width
    return data_shape
