"""Where the progress of a run goes: to the run's log, or to the terminal of ``apeagent demo``."""

import time
from typing import Protocol

import dagster as dg

from apeagent_pipeline.reporting.progress import Progress

_SECONDS_BETWEEN_LINES = 5.0


class Watcher(Protocol):
    """Receives the start of an asset, its progress, and the publication of its artifacts."""

    def started(self, context: dg.AssetExecutionContext) -> Progress:
        """Called when an asset starts; returns the function that receives its progress."""
        ...

    def stored(self, asset: str, partition: str | None, rows: int | None) -> None:
        """Called when an artifact is published."""
        ...


class LogWatcher:
    """Writes progress to the run's log, at most a line every five seconds."""

    def started(self, context: dg.AssetExecutionContext) -> Progress:
        """See `Watcher`."""
        name = context.asset_key.to_user_string()
        last = time.monotonic()

        def progress(done: int, total: int, **metrics: float) -> None:
            nonlocal last
            if done < total and time.monotonic() - last < _SECONDS_BETWEEN_LINES:
                return
            last = time.monotonic()
            figures = ", ".join(f"{key} {value:.4g}" for key, value in metrics.items())
            context.log.info(f"{name}: {done:,} of {total:,}" + (f" ({figures})" if figures else ""))

        return progress

    def stored(self, asset: str, partition: str | None, rows: int | None) -> None:
        """See `Watcher`. Dagster records this event itself."""
