"""The operators by name, for recipes and the command line."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from .base import Operator, Shape
from .blur import blur, blur_kernel, blur_motion, blur_shake, blur_uniform
from .color import Grayscale
from .identity import Identity
from .inpaint import inpaint, inpaint_box, inpaint_brush, inpaint_random
from .jpeg import jpeg
from .resize import downsample, downsample_bicubic

__all__ = ["OPERATORS", "build_operator", "operator_fields"]

# Each row takes an image_shape and keyword-only fields of simple types.
OPERATORS: dict[str, Callable[..., Operator]] = {
    "identity": Identity,
    "inpaint": inpaint,
    "inpaint-box": inpaint_box,
    "inpaint-random": inpaint_random,
    "inpaint-brush": inpaint_brush,
    "blur": blur,
    "blur-uniform": blur_uniform,
    "blur-motion": blur_motion,
    "blur-shake": blur_shake,
    "blur-kernel": blur_kernel,
    "downsample": downsample,
    "downsample-bicubic": downsample_bicubic,
    "grayscale": Grayscale,
    "jpeg": jpeg,
}


def operator_fields(name: str) -> dict[str, inspect.Parameter]:
    """The fields of a row of OPERATORS with their types (as types, not strings) and defaults.

    Raises:
        ValueError: if there is no such row.
    """
    if name not in OPERATORS:
        raise ValueError(f"There is no operator {name!r}{_closest(name, OPERATORS)}; choose one of {_list(OPERATORS)}.")
    parameters = dict(inspect.signature(OPERATORS[name], eval_str=True).parameters)
    del parameters["image_shape"]
    return parameters


def build_operator(name: str, image_shape: Shape, /, **fields: Any) -> Operator:
    """The operator of a row of OPERATORS; `spec` on it holds the name and all fields, defaults included.

    Arguments:
        name: row of OPERATORS.
        image_shape: (C, H, W) of the pictures it takes.
        fields: its parameters, see `operator_fields`.

    Raises:
        ValueError: if the row does not exist, or does not take these fields or values.
    """
    parameters = operator_fields(name)
    for field in fields:
        if field not in parameters:
            raise ValueError(f"{name} has no field {field!r}{_closest(field, parameters)}; {_describe(parameters)}.")
    defaults = {key: p.default for key, p in parameters.items() if p.default is not inspect.Parameter.empty}
    values = {**defaults, **fields}
    if missing := [key for key in parameters if key not in values]:
        raise ValueError(f"{name} needs a value for {_list(missing)}; {_describe(parameters)}.")
    operator = OPERATORS[name](image_shape, **values)
    operator.spec = {"name": name, **{key: values[key] for key in parameters}}
    return operator


def _list(names: Any) -> str:
    return ", ".join(names)


def _closest(name: str, names: Any) -> str:
    match = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


def _describe(parameters: dict[str, inspect.Parameter]) -> str:
    if not parameters:
        return "it has none"
    # str(Parameter) is "sigma: float = 2.0"; the type is the reader's, the default too
    return "its fields are " + _list(
        key if p.default is inspect.Parameter.empty else f"{key}={p.default!r}" for key, p in parameters.items()
    )
