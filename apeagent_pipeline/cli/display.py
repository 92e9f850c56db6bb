"""Terminal output of the commands: progress bars, tables, and escaping of foreign text."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table

from apeagent_pipeline.cli.time_left import TimeLeft
from apeagent_pipeline.reporting.durations import in_words
from apeagent_pipeline.reporting.foreign_text import printable
from apeagent_pipeline.reporting.progress import Progress

if TYPE_CHECKING:
    from dagster import AssetExecutionContext

ERROR_CONSOLE = Console(stderr=True)

_SECONDS_BETWEEN_LINES = 15.0


class TerminalWatcher:
    """Shows one line with a live bar for each asset; without a terminal, a plain line every 15 seconds."""

    def __init__(self, console: Console) -> None:
        """Nothing is drawn before the first asset starts."""
        self.console = console
        self._bars = Bars(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("[dim]{task.fields[figures]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._current: TaskID | None = None
        self._left: TimeLeft | None = None

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Show from now on how much time is left, given the expected seconds of every asset that will be built."""
        self._left = TimeLeft(seconds)

    def __enter__(self) -> "TerminalWatcher":
        """Start drawing."""
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the finished lines on the screen."""
        self._finish()
        self._bars.stop()

    def started(self, context: "AssetExecutionContext") -> Progress:
        """See `watcher.Watcher`."""
        name = context.asset_key.to_user_string()
        self._finish()
        left = self._left
        if left is not None:
            left.started(name)
        task = self._current = self._bars.add_task(name, total=None, figures="", left=_left_in_words(left, 0, 0))
        begun = last = time.monotonic()
        if not self.console.is_terminal:
            self.console.print(f"▸ {name}")

        def progress(done: int, total: int, **metrics: float) -> None:
            nonlocal last
            figures = "  ".join(f"{key} {value:,.4g}" for key, value in metrics.items())
            remaining = _left_in_words(left, done, total)
            self._bars.update(task, completed=done, total=total, figures=figures, left=remaining)
            if not self.console.is_terminal and time.monotonic() - last > _SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                self.console.print(
                    f"  {name}: {done:,} of {total:,}, {last - begun:.0f} s{remaining and f', {remaining}'}  {figures}"
                )

        return progress

    def stored(self, asset: str, partition: str | None, rows: int | None) -> None:
        """See `watcher.Watcher`."""

    def _finish(self) -> None:
        if self._current is not None:
            total = self._bars.tasks[self._current].total or 1
            self._bars.update(self._current, total=total, completed=total, left="")
            self._current = None


def _left_in_words(left: TimeLeft | None, done: int, total: int) -> str:
    """What is left of the current asset and of the whole run; empty where it is not known."""
    if left is None:
        return ""
    return f"{in_words(left.of_asset(done, total))} left, {in_words(left.of_run(done, total))} left of the run"


@contextlib.contextmanager
def quiet_console(log: Path) -> Iterator[Console]:
    """A console that stays readable: everything that libraries print meanwhile goes to ``log``.

    Dagster captures the standard streams of every step, and libraries write to them. So the console writes to copies of
    the original streams.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    log.parent.mkdir(parents=True, exist_ok=True)
    original_out, original_err = os.dup(1), os.dup(2)
    try:
        with log.open("ab") as sink, os.fdopen(original_out, "w", closefd=False) as screen:
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
            try:
                yield Console(file=screen)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os.dup2(original_out, 1)
                os.dup2(original_err, 2)
    finally:
        os.close(original_out)
        os.close(original_err)


def plain(text: object) -> str:
    """Foreign text for a console, with markup and terminal control characters escaped."""
    return escape(printable(str(text)))


def metrics_table(title: str, metrics: Mapping[str, float], intervals: Mapping[str, Sequence[float]]) -> Table:
    """Every metric of a report with its 95 % interval, if it has one."""
    table = Table("measure", "value", "95 % interval", title=title)
    for name, value in metrics.items():
        interval = intervals.get(name)
        table.add_row(name, f"{value:,.4g}", f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "")
    return table


def progress_bars(console: Console, *columns: ProgressColumn) -> Bars:
    """Bars with count and elapsed time, and ``columns`` after them."""
    return Bars(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), *columns,
        console=console,
    )  # fmt: skip


@contextlib.contextmanager
def bar(name: str) -> "Iterator[Progress]":
    """A progress bar for one task; without a terminal, a line every 15 seconds."""
    with progress_bars(ERROR_CONSOLE) as bars:
        task = bars.add_task(name, total=None)
        told = time.monotonic()

        def progress(done: int, total: int, **_: float) -> None:
            nonlocal told
            bars.update(task, completed=done, total=total)
            if not ERROR_CONSOLE.is_terminal and time.monotonic() - told > _SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                ERROR_CONSOLE.print(f"{name}: {done:,} of {total:,}")

        yield progress
