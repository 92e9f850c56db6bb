"""A process that kills itself in the middle of an asset."""

import json
import os
import signal
from pathlib import Path
from typing import Any, Literal

import dagster as dg

from apeagent_pipeline.reporting.progress import Progress

Moment = Literal["working", "writing"]


class Killer:
    """A watcher that kills its own process: halfway through an asset's work, or when it has begun to write.

    Args:
        asset: Name of the asset; empty: nothing is killed.
        moment: When.
        told: File that gets a line for every step of progress.
    """

    def __init__(self, asset: str, moment: str, told: Path) -> None:
        """Nothing is killed yet."""
        self.asset, self.moment, self.told = asset, moment, told

    def started(self, context: dg.AssetExecutionContext) -> Progress:
        """Kill when the first file is written; or return a progress that kills halfway."""
        name = context.asset_key.to_user_string()
        if name == self.asset and self.moment == "writing":
            os.fsync = kill  # called when the first file of the artifact is written, under a name of its own

        def progress(done: int, total: int, **metrics: float) -> None:
            with self.told.open("a") as file:
                file.write(json.dumps([name, done]) + "\n")
            if name == self.asset and self.moment == "working" and done * 2 >= total:
                kill()

        return progress

    def stored(self, asset: str, partition: str | None, rows: int | None) -> None:
        """Nothing to do."""


def kill(*_: Any) -> None:
    """End this process as ``kill -9`` does."""
    os.kill(os.getpid(), signal.SIGKILL)
