"""The picture size behind a measurement, for callers that hold only the measurement."""

from __future__ import annotations

from typing import Any

from ..spec import parse_spec
from .base import Shape
from .table import OPERATORS, operator_fields

__all__ = ["bordered_shape", "image_shape_of"]


def image_shape_of(name: str, data_shape: Shape, **fields: Any) -> Shape:
    """The image_shape (C, H, W) whose measurement under the named operator has `data_shape`.

    Arguments:
        name: row of OPERATORS.
        data_shape: (C, H, W) of the measurement.
        fields: the operator's fields; those left out have their defaults.

    Raises:
        ValueError: if there is no such row, its fields are wrong, or the operator gives no data of this shape.
    """
    name, given = parse_spec({"name": name, **fields}, OPERATORS, "operator")
    values = {key: given.get(key, field.default) for key, field in operator_fields(name).items()}
    rule = getattr(OPERATORS[name], "image_shape_of", None)
    shape: Shape = data_shape if rule is None else rule(data_shape, **values)
    return shape


def bordered_shape(name: str, shown_shape: Shape, **fields: Any) -> Shape:
    """The image_shape (C, H, W) whose pictures have `shown_shape` without the border that the operator adds to them.

    Arguments:
        name: row of OPERATORS.
        shown_shape: (C, H, W) of the restored picture.
        fields: the operator's fields; those left out have their defaults.

    Raises:
        ValueError: if there is no such row, or its fields are wrong.
    """
    return (
        image_shape_of(name, shown_shape, **fields) if getattr(OPERATORS[name], "adds_border", False) else shown_shape
    )
