"""Text such as "blur(sigma=2)" to a name and typed fields, and back."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

__all__ = ["Field", "format_spec", "parse_level", "parse_sigma", "parse_spec", "spec_fields", "split_spec"]

OFFICIAL = "official"  # in place of a field: the settings of the authors' code
SHOWN = 80  # characters of a wrong value in a message
MAX_LENGTH = 2000  # a spec is typed by hand; longer text is a mistake, and the parser's recursion is bounded


@dataclass(frozen=True)
class Field:
    """One field of a table entry; `default` is inspect.Parameter.empty if it has to be given."""

    name: str
    type: Any
    default: Any
    bounds: str = ""  # of a number, in words

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is inspect.Parameter.empty

    def __str__(self) -> str:
        text = f"{self.name}: {_type_name(self.type)}" + (f" {self.bounds}" if self.bounds else "")
        return text if self.required else f"{text} = {self.default!r}"


def parse_spec(
    spec: str | Mapping[str, Any], table: Mapping[str, Callable[..., Any]], kind: str
) -> tuple[str, dict[str, Any]]:
    """The name and the fields of a spec, with the types that the table's entry asks for.

    Arguments:
        spec: "blur", "blur(sigma=2, boundary='zero')" with literal values (a bare word is a text), or
            {"name": "blur", "sigma": 2}.
        table: names and the functions or dataclasses behind them; their annotations are the types.
        kind: what the table holds, for messages: "operator", "solver", …

    Raises:
        ValueError: the text cannot be read, or a name, a field or a value is not one of the table's.
    """
    if isinstance(spec, str):
        name, values = split_spec(spec, kind)
    elif isinstance(spec.get("name"), str):
        name, values = spec["name"], {key: value for key, value in spec.items() if key != "name"}
    else:
        raise ValueError(f'The {kind} given as a mapping needs "name", got {dict(spec)!r}.')
    if name not in table:
        raise ValueError(f"Unknown {kind} {name!r}{_hint(name, table)}; choose one of {', '.join(table)}.")
    fields = {field.name: field for field in spec_fields(table[name])}
    if kind == "solver" and OFFICIAL in values:
        values = _official(name, values, table)
    known = f"its fields are {', '.join(map(str, fields.values()))}" if fields else "it has no fields"
    for key in values:
        if key not in fields:
            raise ValueError(f"{kind} {name} has no field {key!r}{_hint(key, fields)}; {known}.")
    missing = [field.name for field in fields.values() if field.required and field.name not in values]
    if missing:
        raise ValueError(f"{kind} {name} needs {', '.join(missing)}; {known}.")
    return name, {key: _convert(value, fields[key], f"{kind} {name}") for key, value in values.items()}


def _official(name: str, values: Mapping[str, Any], table: Mapping[str, Callable[..., Any]]) -> dict[str, Any]:
    """The values of a solver with the settings of its authors' code, under those that are given."""
    published = getattr(table[name], "published", {})
    if values[OFFICIAL] is not True or not published:
        having = ", ".join(key for key, entry in table.items() if getattr(entry, "published", {}))
        raise ValueError(f"solver {name} has no official settings of its own; these have: {having}.")
    return {**published, **{key: value for key, value in values.items() if key != OFFICIAL}}


def split_spec(spec: str, kind: str) -> tuple[str, dict[str, Any]]:
    """The name and the values in a text, not yet compared with a table.

    Raises:
        ValueError: the text cannot be read.
    """
    match = re.fullmatch(r"\s*([A-Za-z][\w-]*)\s*(\(.*\))?\s*", spec, re.DOTALL) if len(spec) <= MAX_LENGTH else None
    example = (
        f"write NAME or NAME(field=value, ...), for example {'blur(sigma=2)' if kind == 'operator' else 'name(x=1)'}"
    )
    if match is None:
        raise ValueError(f"Cannot read the {kind} {_short(spec)}; {example}.")
    try:
        call = ast.parse(f"f{match[2] or '()'}", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"Cannot read the {kind} {_short(spec)}; {example}.") from None
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
        raise ValueError(f"Cannot read the {kind} {_short(spec)}; {example}.")
    official = kind == "solver" and [getattr(arg, "id", None) for arg in call.args] == [OFFICIAL]
    if (call.args and not official) or any(keyword.arg is None for keyword in call.keywords):
        raise ValueError(f"The fields of the {kind} {_short(spec)} must be named; {example}.")
    fields = {str(keyword.arg): _literal(keyword.value, kind, spec) for keyword in call.keywords}
    if len(fields) < len(call.keywords):
        raise ValueError(f"A field of the {kind} {_short(spec)} is given twice; leave one out.")
    return match[1], {OFFICIAL: True} | fields if official else fields


def format_spec(name: str, fields: Mapping[str, Any]) -> str:
    """The text that `parse_spec` reads as this name and these fields."""
    values = ", ".join(f"{key}={value!r}" for key, value in fields.items())
    return f"{name}({values})" if values else name


def spec_fields(entry: Callable[..., Any]) -> list[Field]:
    """The fields of a function or dataclass that a spec can set: those of simple types."""
    # A dataclass has its annotations on the class, any other class on its constructor.
    plain_class = isinstance(entry, type) and not dataclasses.is_dataclass(entry)
    hints = typing.get_type_hints(getattr(entry, "__init__") if plain_class else entry, include_extras=True)  # noqa: B009
    fields = []
    for parameter in inspect.signature(entry).parameters.values():
        hint, bounds = hints.get(parameter.name, str), ""
        if typing.get_origin(hint) is typing.Annotated:
            hint, *extras = typing.get_args(hint)
            bounds = str(extras[0])
        fields.append(Field(parameter.name, hint, parameter.default, bounds))
    return [field for field in fields if field.name != "image_shape" and _is_simple(field.type)]


def parse_sigma(text: str) -> float | Literal["auto"]:
    """The noise level of a command line: "0.1" in [-1, 1] units, "25/255" in grey levels of 8 bits, or "auto".

    Raises:
        ValueError: none of the three, negative, or larger than the range of a picture.
    """
    return "auto" if text.strip() == "auto" else parse_level(text, "--sigma", ", or auto")


def parse_level(text: str, name: str, otherwise: str = "") -> float:
    """A noise level as a number in [-1, 1] units.

    Arguments:
        text: "0.1" in [-1, 1] units, or "25/255" in grey levels of 8 bits.
        name: what messages call it.
        otherwise: what else may be written, for messages.

    Raises:
        ValueError: it is none, negative, or larger than the range of a picture.
    """
    number, grey_levels, rest = text.partition("/255")
    try:
        sigma = float(number) * (2 / 255 if grey_levels else 1)
    except ValueError:
        sigma = math.nan
    if rest.strip() or not math.isfinite(sigma):
        raise ValueError(
            f"{name} {text} is not a noise level; write 0.1 (in units of the [-1, 1] picture) or '25/255' (25 grey "
            f"levels of an 8-bit picture, which is 0.196 in [-1, 1] units){otherwise}."
        )
    if sigma < 0:
        raise ValueError(f"{name} must not be negative, got {text}; use 0 for a picture without noise.")
    if sigma > 2:
        raise ValueError(
            f"{name} {text} is more than the whole range of a [-1, 1] picture; for grey levels of 8 bits write "
            f"'{number.strip()}/255'."
        )
    return sigma


def _literal(node: ast.expr, kind: str, spec: str) -> Any:
    if isinstance(node, ast.Name):
        return {"true": True, "false": False, "none": None}.get(node.id, node.id)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError):
        text = ast.get_source_segment(f"f{spec[spec.index('(') :]}", node) or ""
        raise ValueError(
            f"Cannot read {_short(text)} in the {kind} {_short(spec)}; values are numbers, True, False, None, "
            "'quoted text' or one word."
        ) from None


def _short(value: Any) -> str:
    """A value as it is written, cut where it fills the screen."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return "a very long number"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _convert(value: Any, field: Field, owner: str) -> Any:
    # A text is not turned into True or 3 behind the user's back, nor True into 1.0.
    adapter: TypeAdapter[Any] = TypeAdapter(field.type, config=ConfigDict(strict=True, allow_inf_nan=False))
    if isinstance(value, list):
        value = tuple(value)  # JSON and YAML know only lists
    try:
        return adapter.validate_python(value)
    except ValidationError:
        infinite = isinstance(value, float) and math.isinf(value) and field.type in (float, int)
        wanted = "finite" if infinite else _type_name(field.type)
        raise ValueError(f"{field.name} of {owner} must be {wanted}, got {_short(value)}.") from None


def _is_simple(annotation: Any) -> bool:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, tuple):
        return all(_is_simple(part) for part in typing.get_args(annotation) if part is not Ellipsis)
    return typing.get_origin(annotation) is Literal or annotation in (int, float, str, bool, type(None))


def _type_name(annotation: Any) -> str:
    if typing.get_origin(annotation) is Literal:
        return " or ".join(repr(value) for value in typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(_type_name(part) for part in typing.get_args(annotation))
    if annotation is type(None):
        return "None"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _hint(name: str, names: Iterable[str]) -> str:
    match = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""
