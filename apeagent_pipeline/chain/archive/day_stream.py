"""Days that are checked while their archive is read, as long as its rows come in the order of the chain.

Then a day is complete with the first row of a later one: it is checked and kept at once, and its rows are not written
twice. The first row that is out of order ends this: the days that were checked are taken back, and all days are
checked when everything is read.
"""

from collections.abc import Callable, Mapping
from datetime import date

import numpy as np
import polars as pl

from apeagent_pipeline.chain.archive.arithmetic import exact_columns
from apeagent_pipeline.chain.archive.day_checks import DayChecks
from apeagent_pipeline.chain.archive.day_store import DayStore, KeptDays
from apeagent_pipeline.chain.archive.normalise import FILE, NORMAL_SCHEMA
from apeagent_pipeline.chain.archive.ordering import ascends
from apeagent_pipeline.chain.archive.streams import LINE
from apeagent_pipeline.chain.events import RAW_SWAPS_SCHEMA


class DayStream:
    """Takes the rows of an archive in the order of its files and gives each day to the checks once it is complete.

    Args:
        kept: Takes the days that were checked.
        new_checks: Makes checks that have seen no day.

    Attributes:
        checks: Of the days so far.
    """

    def __init__(self, kept: KeptDays, new_checks: Callable[[], DayChecks]) -> None:
        self.checks = new_checks()
        self._new_checks = new_checks
        self._kept = kept
        self._store = DayStore()
        self._places = DayStore()
        self._in_order = True
        self._last = (-1, -1)
        self._last_time: int | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no row was added."""
        return not self._store.days() and not self.checks.days

    def add(self, rows: pl.DataFrame) -> None:
        """Take rows, NORMAL_SCHEMA."""
        if self._in_order and not self._continues(rows):
            self._take_back()
        self._store.add(rows)
        if self._in_order:
            for day in self._store.days()[:-1]:
                self._check(day, None)

    def finish(self, ranks: Mapping[int, tuple[int, bool]]) -> None:
        """Check what was not, and the archive as a whole.

        Args:
            ranks: As `in_order` takes them.
        """
        for day in self._store.days():
            self._check(day, ranks)
        self.checks.finish()

    def _check(self, day: date, ranks: Mapping[int, tuple[int, bool]] | None) -> None:
        gathered = self._store.rows(day)
        # Rows in order are neither merged nor moved, so that the ranks of their files, not known yet, do not matter.
        known = {file: (file, False) for file in gathered[FILE].unique().to_list()} if ranks is None else ranks
        rows = self.checks.check(day, gathered, known)
        self._kept.put(day, rows.select(RAW_SWAPS_SCHEMA.names()))
        if self._in_order:
            self._places.put(day, rows.select(FILE, LINE))
        self._store.forget(day)

    def _continues(self, rows: pl.DataFrame) -> bool:
        if not rows.height:
            return True
        times = rows["block_timestamp"].cast(pl.Int64()).to_numpy()
        if not ascends(rows, self._last) or (np.diff(times, prepend=self._last_time or times[0]) < 0).any():
            return False
        self._last = rows["block_number"][-1], rows["log_index"][-1]
        self._last_time = int(times[-1])
        return True

    def _take_back(self) -> None:
        for day in self.checks.days:
            rows = self._kept.rows(day).hstack(self._places.rows(day)).with_columns(exact_columns())
            self._store.add(rows.select(NORMAL_SCHEMA.names()))
        self._places = DayStore()
        self.checks = self._new_checks()
        self._in_order = False
