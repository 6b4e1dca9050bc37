"""The operators by name, for recipes and the command line."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..operators import kernels
from ..spec import Field, parse_spec, spec_fields, split_spec
from .base import Operator, Shape
from .blurs import blur, blur_kernel, blur_motion, blur_shake, blur_uniform, defocus
from .color import Grayscale, coloured_shape
from .identity import Identity
from .inpaint import inpaint, inpaint_box, inpaint_brush, inpaint_random
from .jpeg import jpeg
from .resize import downsample, downsample_bicubic, enlarged_shape

__all__ = ["IMAGE_SHAPES", "KERNELS", "OPERATORS", "build_operator", "operator_fields"]

# Each row takes an image_shape and keyword-only fields of simple types.
OPERATORS: dict[str, Callable[..., Operator]] = {
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

# The kernels of the blurs, from all fields but `boundary`: the picture may be larger than the data by their reach.
KERNELS: dict[str, Callable[..., Tensor]] = {
    "blur": kernels.gaussian,
    "blur-uniform": kernels.uniform,
    "defocus": kernels.disk,
    "blur-motion": kernels.linear_motion,
    "blur-shake": kernels.camera_shake,
    "blur-kernel": lambda kernel: kernels.from_file(kernel),
}

# (data_shape, **fields) -> image_shape, for other rows whose data has another shape than the picture.
IMAGE_SHAPES: dict[str, Callable[..., Shape]] = {
    "downsample": enlarged_shape,
    "downsample-bicubic": enlarged_shape,
    "grayscale": coloured_shape,
}


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
