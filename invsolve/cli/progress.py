"""The progress bar of the command line, with the time left."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ..solve import Estimate

__all__ = ["StepBar"]


class StepBar:
    """A bar over the batches of all pictures; an Observer.  It shows on a terminal only, and on standard error.

    Arguments:
        pictures: how many batches of samples each picture takes.
        output: where other lines are printed; on the same terminal, they go above the bar.
        errors: where the bar is.
    """

    def __init__(self, pictures: Sequence[int], output: Console, errors: Console) -> None:
        self.ahead, self.finished, self.batch = list(pictures), 0, 0
        self.progress = Progress(
            BarColumn(),
            TaskProgressColumn(),
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

    def __call__(
        self,
        step: int,
        steps: int,
        rows: Sequence[tuple[int, int]],  # noqa: ARG002
        estimate: Estimate,  # noqa: ARG002
    ) -> None:
        """Count one step of a batch; its first one says that another batch has begun."""
        self.batch += step == 1
        self.progress.update(self.task, completed=self.finished + self.batch - 1 + step / steps)

    def done(self, *, ran: bool) -> None:
        """A picture is over; one that did not run takes its batches with it, so that the time left stays true."""
        batches, self.batch = self.ahead.pop(0), 0
        self.finished += batches if ran else 0
        self.progress.update(self.task, completed=self.finished, total=self.finished + sum(self.ahead))
