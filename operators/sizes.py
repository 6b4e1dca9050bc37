"""The picture size behind a measurement, for callers that hold only the measurement."""

from __future__ import annotations

from typing import Any

from .base import Shape
from .table import IMAGE_SHAPES, operator_fields

__all__ = ["image_shape_of"]


def image_shape_of(name: str, data_shape: Shape, **fields: Any) -> Shape:
    """The image_shape (C, H, W) whose measurement under the named operator has `data_shape`.

    Arguments:
        name: row of OPERATORS.
        data_shape: (C, H, W) of the measurement.
        fields: the operator's fields; those left out have their defaults.

    Raises:
        ValueError: if there is no such row, or the operator gives no data of this shape.
    """
    defaults = {key: field.default for key, field in operator_fields(name).items() if not field.required}
    rule = IMAGE_SHAPES.get(name)
    return data_shape if rule is None else rule(data_shape, **{**defaults, **fields})
