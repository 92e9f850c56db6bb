"""How long work tells how far it is, without knowing who watches.

A domain function takes ``progress: Progress = silent`` and calls it after every unit of work. The Dagster layer passes
a function that writes to the run's log, the command line one that draws a bar.
"""

from typing import Protocol


class Progress(Protocol):
    """Called as ``progress(done, total, **metrics)``, for example ``progress(40, 600, loss=1.9)``."""

    def __call__(self, done: int, total: int, **metrics: float) -> None:
        """Tell that ``done`` of ``total`` units are finished; ``metrics`` are the newest figures to show beside."""
        ...


def silent(done: int, total: int, **metrics: float) -> None:
    """The progress that nobody watches."""


def part_of(progress: Progress, before: int, total: int) -> Progress:
    """The progress of one part of a longer work: ``before`` units are finished, ``total`` units there are in all."""
    whole = total

    def tell(done: int, total: int, **metrics: float) -> None:
        progress(before + done, whole, **metrics)

    return tell
