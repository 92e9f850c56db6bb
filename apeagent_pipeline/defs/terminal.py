"""Progress in a terminal: what ``apeagent demo`` and ``apeagent sync`` show while they run."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from apeagent_pipeline.reporting.progress import Progress

_SECONDS_BETWEEN_LINES = 15.0


class TerminalWatcher:
    """One line an asset with a live bar; where no terminal is attached, a plain line now and then."""

    def __init__(self, console: Console) -> None:
        """Draws nothing before the first asset starts."""
        self.console = console
        self._bars = Bars(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[figures]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._current: TaskID | None = None

    def __enter__(self) -> "TerminalWatcher":
        """Start drawing."""
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the finished lines on the screen."""
        self._finish()
        self._bars.stop()

    def started(self, context: dg.AssetExecutionContext) -> Progress:
        """See `watching.Watcher`."""
        name = context.asset_key.to_user_string()
        self._finish()
        task = self._current = self._bars.add_task(name, total=None, figures="")
        begun = last = time.monotonic()
        if not self.console.is_terminal:
            self.console.print(f"▸ {name}")

        def progress(done: int, total: int, **metrics: float) -> None:
            nonlocal last
            figures = "  ".join(f"{key} {value:,.4g}" for key, value in metrics.items())
            self._bars.update(task, completed=done, total=total, figures=figures)
            if not self.console.is_terminal and time.monotonic() - last > _SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                self.console.print(f"  {name}: {done:,} of {total:,}, {last - begun:.0f} s  {figures}")

        return progress

    def stored(self, asset: str, partition: str | None, rows: int | None) -> None:
        """See `watching.Watcher`."""

    def _finish(self) -> None:
        if self._current is not None:
            total = self._bars.tasks[self._current].total or 1
            self._bars.update(self._current, total=total, completed=total)
            self._current = None


@contextlib.contextmanager
def quiet_console(log: Path) -> Iterator[Console]:
    """A console that stays readable: whatever libraries print meanwhile goes to ``log``.

    Dagster captures the standard streams of every step and libraries write to them, so the console writes to copies
    of the original ones.
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
