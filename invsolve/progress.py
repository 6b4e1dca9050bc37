"""The progress bar of the command line, with the time left."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .solve import Estimate

__all__ = ["StepBar"]


class StepBar:
    """A bar over the steps of all pictures; an Observer.  It shows on a terminal only, and on standard error.

    Arguments:
        pictures: the number of steps of each picture.
        output: where other lines are printed; on the same terminal, they go above the bar.
        errors: where the bar is.
    """

    def __init__(self, pictures: Sequence[int], output: Console, errors: Console) -> None:
        self.ahead, self.finished = list(pictures), 0
        self.progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=errors,
            disable=not errors.is_terminal,
            transient=True,
            redirect_stdout=output.is_terminal,  # a pipe gets its lines as ever
        )
        self.task = self.progress.add_task("", total=sum(self.ahead))

    def __enter__(self) -> StepBar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(  # an Observer that needs only to know that it is called
        self,
        step: int,  # noqa: ARG002
        steps: int,  # noqa: ARG002
        rows: Sequence[tuple[int, int]],  # noqa: ARG002
        estimate: Estimate,  # noqa: ARG002
    ) -> None:
        """Count one step."""
        self.progress.advance(self.task)

    def done(self, *, ran: bool) -> None:
        """A picture is over; one that did not run takes its steps with it, so that the time left stays true."""
        steps = self.ahead.pop(0)
        self.finished += steps if ran else 0
        self.progress.update(self.task, completed=self.finished, total=self.finished + sum(self.ahead))
