"""How far a command is, where somebody looks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

from medallion.logs import log_to

Advance: TypeAlias = Callable[[float, float], None]
"""Told how much is done, and of how much."""


class TimeColumn(ProgressColumn):
    """The time that is left; the time that it took, where it is over or nobody knows the end."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """Write hours, minutes and seconds."""
        known = task.total is not None and not task.finished
        seconds = task.time_remaining if known else task.finished_time or task.elapsed
        told = "-:--:--" if seconds is None else str(timedelta(seconds=int(seconds)))
        return Text(f"{told} left" if known else told, style="progress.remaining")


@contextmanager
def progress(console: Console, what: str, unit: str = "") -> Iterator[Advance]:
    """Show that something is under way, and how much time is left once it is told how far it is.

    Only on a terminal, and gone at the end: a log and a pipe get the outcome alone.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[told]}"),
        TimeColumn(),
    )
    quiet = not console.is_terminal
    try:
        with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
            task = bar.add_task(what, total=None, told="")
            # Rich has put its own in place, which writes events above the bar.
            log_to(sys.stderr)

            def advance(done: float, total: float) -> None:
                told = f"{done:,.0f} of {total:,.0f} {unit}"
                bar.update(task, completed=done, total=total, told=told)

            yield advance
    finally:
        log_to(sys.stderr)
