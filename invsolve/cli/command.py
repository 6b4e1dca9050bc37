"""How a function becomes a command: its options are the fields of one dataclass."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console

__all__ = ["add_command", "console_of"]

HELP = "help"  # in the metadata of a field: that of an option


def console_of(*, stderr: bool = False) -> Console:
    """Plain text: file names are not markup, and lines are not cut for a pipe."""
    return Console(stderr=stderr, markup=False, highlight=False, soft_wrap=True)


def add_command(app: typer.Typer, name: str, run: Callable[..., int | None]) -> None:
    """Add a command to an app.

    Arguments:
        app: the app, or a group of commands.
        name: of the command.
        run: takes (options, console, errors): a frozen dataclass whose fields are annotated with what typer wants to
            know, and where to print results and errors.  Its docstring is the help of the command.  It returns how many
            inputs failed, if it has several; any makes the exit code 2.
    """
    kind = get_type_hints(run)["options"]
    parameters = list(_parameters(kind))

    def call(**values: Any) -> None:
        if run(_build(kind, values), console_of(), console_of(stderr=True)):
            raise typer.Exit(2)

    call.__doc__ = inspect.getdoc(run)
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app.command(name)(call)


def _parameters(kind: type[Any]) -> Iterator[inspect.Parameter]:
    """The options of a dataclass; a field that is one itself gives those of its fields that have a help."""
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from (p for p in _parameters(hints[field.name]) if hasattr(p.annotation, "__metadata__"))
            continue
        hint = hints[field.name]
        if HELP in field.metadata:
            hint = Annotated[hint, typer.Option(help=field.metadata[HELP])]
        missing = field.default is dataclasses.MISSING
        yield inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if missing else field.default,
            annotation=hint,
        )


def _build(kind: type[Any], values: dict[str, Any]) -> Any:
    """The dataclass of values by name; those of a dataclass inside it are among them."""
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind) if field.init]
    inner = {name: hints[name] for name in names if dataclasses.is_dataclass(hints[name])}
    built = {name: values[name] for name in names if name in values and name not in inner}
    return kind(**built, **{name: _build(part, values) for name, part in inner.items()})
