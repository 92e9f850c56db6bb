"""Progress of long work, reported through a callback.

A domain function takes ``progress: Progress = silent`` and calls it after every unit of work. The Dagster layer passes
a callback that writes to the run's log; the command line passes one that draws a bar.
"""

from typing import Protocol


class Progress(Protocol):
    """Called as ``progress(done, total, **metrics)``, for example ``progress(40, 600, loss=1.9)``."""

    def __call__(self, done: int, total: int, **metrics: float) -> None:
        """Report that ``done`` of ``total`` units are finished; ``metrics`` are the newest figures, such as losses."""
        ...


def silent(done: int, total: int, **metrics: float) -> None:
    """Report nothing."""


def part_of(progress: Progress, before: int, total: int) -> Progress:
    """Progress of one part of longer work: ``before`` of all ``total`` units are finished when the part begins."""
    whole = total

    def report(done: int, total: int, **metrics: float) -> None:
        progress(before + done, whole, **metrics)

    return report
