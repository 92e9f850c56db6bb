"""The state of one day while it is read: finished ranges on disk, and counters shared by all threads."""

import shutil
import tempfile
import threading
from datetime import date
from pathlib import Path

import polars as pl

from apeagent_pipeline.chain.answers import Header
from apeagent_pipeline.chain.events import RAW_SWAPS_SCHEMA


class Parts:
    """The finished ranges of one day, each a file, in a folder that belongs to the day's last block.

    A chain that was reorganised has another last block, so ranges of two forks cannot mix.
    """

    def __init__(self, root: Path | None, day: date, last: Header) -> None:
        self._folder = root / f"{day}-{last.hash.removeprefix('0x')[:16]}" if root else None

    def read(self, first: int, last: int) -> pl.DataFrame | None:
        """The swaps of a range that an earlier run finished, or None."""
        if self._folder is None:
            return None
        try:
            swaps = pl.read_parquet(self._folder / f"{first}-{last}.parquet")
        except (OSError, pl.exceptions.PolarsError):
            return None
        return swaps if swaps.schema == RAW_SWAPS_SCHEMA else None

    def write(self, first: int, last: int, swaps: pl.DataFrame) -> None:
        """Keep the swaps of a range."""
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".tmp", delete=False) as file:
            swaps.write_parquet(file)  # not synced: a part that a crash cut short is read from the chain again
        Path(file.name).replace(self._folder / f"{first}-{last}.parquet")

    def remove(self) -> None:
        """Forget them: the day is complete, or they are no good."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


class DayReading:
    """One day being read: its borders, and what all threads have read so far.

    Attributes:
        borders: Headers of its first and last block.
        blocks: Read so far.
        swaps: Found so far.
        replaced: Numbers of witnesses that have another hash now.
    """

    def __init__(self, day: date, borders: list[Header]) -> None:
        self.day = day
        self.borders = borders
        self.blocks = 0
        self.swaps = 0
        self.replaced: list[int] = []
        self._witnesses: dict[int, Header] = {}
        self._lock = threading.Lock()

    @property
    def witnesses(self) -> list[Header]:
        """The block of the last swap of each piece: on a chain that stood still all of them keep their hash."""
        return list(self._witnesses.values())

    def add(self, first: int, last: int, swaps: pl.DataFrame) -> None:
        """A range was read."""
        with self._lock:
            self.blocks += last - first + 1
            self.swaps += swaps.height
            if not swaps.is_empty():
                row = swaps.row(-1, named=True)
                number = row["block_number"]
                self._witnesses[number] = Header(number, int(row["block_timestamp"].timestamp()), row["block_hash"])

    def forget(self, first: int, last: int, swaps: pl.DataFrame) -> None:
        """A range will be read again."""
        with self._lock:
            self.blocks -= last - first + 1
            self.swaps -= swaps.height
            self._witnesses = {
                number: header for number, header in self._witnesses.items() if not first <= number <= last
            }
