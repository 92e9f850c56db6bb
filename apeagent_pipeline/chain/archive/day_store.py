"""Rows sorted into days, in memory while they are few and on disk afterwards."""

import tempfile
from datetime import date
from pathlib import Path
from typing import Protocol

import polars as pl

from apeagent_pipeline.atomic_files import replacing

_ROWS_IN_MEMORY = 1 << 20


class KeptDays(Protocol):
    """Where days go that were checked."""

    def put(self, day: date, rows: pl.DataFrame) -> None:
        """Keep the rows of a day, instead of others that it may have."""

    def rows(self, day: date) -> pl.DataFrame:
        """The rows of a day that has some."""
        ...


class DayFolder:
    """Days in files of a folder.

    Args:
        folder: That exists.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, day: date, rows: pl.DataFrame) -> None:
        """Write the rows of a day."""
        with replacing(self._folder / f"{day}.arrow") as temporary:
            rows.write_ipc(temporary)

    def rows(self, day: date) -> pl.DataFrame:
        """Read the rows of a day that has some."""
        return pl.read_ipc(self._folder / f"{day}.arrow")


class DayStore:
    """Collects rows in any order and gives them back a day at a time.

    Args:
        folder: Where rows that do not fit in memory go; a temporary folder if None.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._temporary = None if folder else tempfile.TemporaryDirectory(prefix="apeagent-archive-")
        self._folder = folder or Path(self._temporary.name if self._temporary else "")
        self._held: dict[date, list[pl.DataFrame]] = {}
        self._written: dict[date, list[Path]] = {}
        self._rows = 0

    def add(self, rows: pl.DataFrame) -> None:
        """Keep rows of any days."""
        days = rows["block_timestamp"].dt.date()
        if days.is_sorted():
            runs = days.rle().struct.unnest()
            for length, day, end in zip(runs["len"], runs["value"], runs["len"].cum_sum(), strict=True):
                self._held.setdefault(day, []).append(rows.slice(end - length, length))
        else:
            parts = rows.with_columns(days.alias("_day")).partition_by("_day", as_dict=True, include_key=False)
            for (day,), part in parts.items():
                self._held.setdefault(day, []).append(part)
        self._rows += rows.height
        if self._rows > _ROWS_IN_MEMORY:
            self._write()

    def put(self, day: date, rows: pl.DataFrame) -> None:
        """Keep the rows of a day, instead of others that it may have."""
        self.forget(day)
        self._held[day] = [rows]
        self._rows += rows.height
        if self._rows > _ROWS_IN_MEMORY:
            self._write()

    def _write(self) -> None:
        for day, parts in self._held.items():
            paths = self._written.setdefault(day, [])
            path = self._folder / f"{day}-{len(paths)}.arrow"
            pl.concat(parts).write_ipc(path)
            paths.append(path)
        self._held.clear()
        self._rows = 0

    def days(self) -> list[date]:
        """All days with rows, sorted."""
        return sorted({*self._held, *self._written})

    def rows(self, day: date) -> pl.DataFrame:
        """The rows of a day that has some."""
        written = [pl.read_ipc(path) for path in self._written.get(day, [])]
        # In one piece: each step of the checks would otherwise join the pieces for itself.
        return pl.concat([*written, *self._held.get(day, [])], rechunk=True)

    def forget(self, day: date) -> None:
        """Free the rows of a day."""
        for path in self._written.pop(day, []):
            path.unlink()
        self._rows -= sum(part.height for part in self._held.pop(day, []))
