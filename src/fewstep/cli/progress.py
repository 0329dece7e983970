"""Progress on stderr: a bar on a terminal, a line now and then elsewhere, nothing for what is soon done."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Protocol

# Work that ends sooner shows nothing, and so does not pay for importing rich either.
_QUIET_SECONDS = 0.5
_LINE_SECONDS = 5.0


class Report(Protocol):
    """Told how far the work is; called from the thread that works."""

    def __call__(self, done: int, total: int) -> None:
        """Say that ``done`` of ``total`` parts are done."""


@contextlib.contextmanager
def progress(label: str, *, quiet: bool = False) -> Iterator[Report]:
    """Yield a function that shows progress on stderr, as a bar if that is a terminal and as lines if not."""
    start = time.monotonic()
    last_line = start
    with contextlib.ExitStack() as stack:
        bar = None

        def report(done: int, total: int) -> None:
            nonlocal bar, last_line
            now = time.monotonic()
            if quiet or (bar is None and now - start < _QUIET_SECONDS):
                return
            if sys.stderr.isatty():
                if bar is None:
                    bar = _bar(stack, label)
                bar(done, total)
            elif now - last_line >= _LINE_SECONDS or (done == total and last_line > start):
                last_line = now
                sys.stderr.write(f"fewstep: {label} {done}/{total}\n")
                sys.stderr.flush()

        yield report


def _bar(stack: contextlib.ExitStack, label: str) -> Report:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    display = stack.enter_context(Progress(*columns, console=Console(stderr=True), transient=True))
    task = display.add_task(label)

    def update(done: int, total: int) -> None:
        display.update(task, completed=done, total=total)

    return update
