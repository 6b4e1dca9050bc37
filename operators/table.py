"""The operators by name, for recipes and the command line."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from ..spec import Field, parse_spec, spec_fields, split_spec
from ..tables import Table
from .base import Operator, Shape
from .blurs import blur, blur_kernel, blur_motion, blur_shake, blur_uniform, defocus
from .color import Grayscale
from .identity import Identity
from .inpaint import inpaint, inpaint_box, inpaint_brush, inpaint_random
from .jpeg import jpeg
from .resize import downsample, downsample_bicubic

__all__ = ["OPERATORS", "build_operator", "operator_fields"]

# Each row takes an image_shape and keyword-only fields of simple types.  One whose data have another shape than the
# picture has `image_shape_of(data_shape, **fields)`; see `sizes`.
_ROWS: dict[str, Callable[..., Operator]] = {
    "identity": Identity,
    "inpaint": inpaint,
    "inpaint-box": inpaint_box,
    "inpaint-random": inpaint_random,
    "inpaint-brush": inpaint_brush,
    "blur": blur,
    "blur-uniform": blur_uniform,
    "defocus": defocus,
    "blur-motion": blur_motion,
    "blur-shake": blur_shake,
    "blur-kernel": blur_kernel,
    "downsample": downsample,
    "downsample-bicubic": downsample_bicubic,
    "grayscale": Grayscale,
    "jpeg": jpeg,
}

OPERATORS: Table[Callable[..., Operator]] = Table("operator", _ROWS)


def operator_fields(name: str) -> dict[str, Field]:
    """The fields of a row of OPERATORS by name, with their types and defaults.

    Raises:
        ValueError: if there is no such row.
    """
    if name not in OPERATORS:
        raise ValueError(f"Unknown operator {name!r}; choose one of {', '.join(OPERATORS)}.")
    return {field.name: field for field in spec_fields(OPERATORS[name])}


def build_operator(name: str | Mapping[str, Any], image_shape: Shape, **fields: Any) -> Operator:
    """The operator of a row of OPERATORS; `spec` on it holds the name and all fields, defaults included.

    Arguments:
        name: row of OPERATORS, a text such as "blur(sigma=2)", or {"name": "blur", "sigma": 2}.
        image_shape: (C, H, W) of the pictures it takes.
        fields: its parameters, see `operator_fields`; a file may be given as a str or a Path.

    Raises:
        ValueError: if the row does not exist, does not take these fields, types or values, or one is given twice.
    """
    texts = {key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in fields.items()}
    if isinstance(name, str):
        row, written = split_spec(name, "operator")
        spec = {"name": row, **written}
    elif isinstance(name, Mapping):
        spec = dict(name)
    else:
        raise ValueError(f"An operator is built by its name, such as 'blur(sigma=2)', got {name!r}.")
    if twice := spec.keys() & texts.keys():
        both = ", ".join(sorted(twice))
        raise ValueError(f"operator {spec.get('name')} is given {both} in its text and as a field; leave one out.")
    name, given = parse_spec(spec | texts, OPERATORS, "operator")
    values = {key: given.get(key, field.default) for key, field in operator_fields(name).items()}
    operator = OPERATORS[name](image_shape, **values)
    operator.spec = {"name": name, **values}
    return operator
