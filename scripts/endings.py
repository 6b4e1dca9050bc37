"""How the scripts end when something is wrong that the user can change."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from invsolve.errors import is_expected, sentence


def run(parser: argparse.ArgumentParser, work: Callable[[argparse.Namespace], None]) -> None:
    """Do `work` with the arguments of the command line; one sentence and exit code 2 where they cannot be."""
    try:
        work(parser.parse_args())
    except Exception as error:
        if not is_expected(error):
            raise
        parser.exit(2, f"Error: {sentence(error)}\n")
