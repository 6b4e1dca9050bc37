"""The command line: `invsolve restore`, `degrade`, `demo`, `validate`, `calibrate`, `fit`, `prior`, `list` and `info`.

Whatever goes wrong for a reason the user can change ends as one sentence and exit code 2, at one place: `_Group`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import __version__
from ..allocator import keep_memory
from ..errors import is_expected, one_line, sentence
from .calibrate import calibrate_prior
from .command import add_command, console_of
from .degrade import degrade_files
from .demo import show_demo
from .fit import fit_flow
from .info import describe_entry, list_entries
from .prior import convert_prior, pull_prior
from .restore import restore_files
from .validate import validate_samplers

__all__ = ["app", "main"]


class _Group(TyperGroup):
    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _one_sentence():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _one_sentence():
            return super().invoke(ctx)


@contextmanager
def _one_sentence() -> Iterator[None]:
    """What the user can change ends as one line that begins with "Error:" and exit code 2."""
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message") and type(error).__name__ != "NoArgsIsHelpError":  # of click's parser
            text = one_line(f"{error.format_message().rstrip('.')}; see --help.")
        elif is_expected(error):
            text = sentence(error)
        else:
            raise
        console_of(stderr=True).print(f"Error: {text}")
        raise typer.Exit(2) from None


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Solve imaging inverse problems with pretrained generative priors.",
)


prior_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Priors of the model hub.")
app.add_typer(prior_app, name="prior")

COMMANDS: dict[str, Callable[..., int | None]] = {
    "restore": restore_files,
    "degrade": degrade_files,
    "demo": show_demo,
    "validate": validate_samplers,
    "calibrate": calibrate_prior,
    "fit": fit_flow,
    "list": list_entries,
    "info": describe_entry,
}
for _name, _run in COMMANDS.items():
    add_command(app, _name, _run)
PRIOR_COMMANDS: dict[str, Callable[..., int | None]] = {"pull": pull_prior, "convert": convert_prior}
for _name, _run in PRIOR_COMMANDS.items():
    add_command(prior_app, _name, _run)


def _version(wanted: bool) -> None:
    if wanted:
        console_of().print(f"invsolve {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    pass


class _ToConsole(logging.Handler):
    """What invsolve logs, as lines beside the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        console_of(stderr=True).print(one_line(record.getMessage()))


def main() -> None:
    """Entry point of the `invsolve` script."""
    keep_memory()
    log = logging.getLogger("invsolve")
    log.handlers, log.propagate = [_ToConsole()], False
    log.setLevel(logging.INFO)
    app()
