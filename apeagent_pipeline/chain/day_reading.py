"""The state of one day while it is read: finished ranges on disk, and counters shared by all threads."""

import json
import shutil
import tempfile
import threading
from collections.abc import Collection, Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple, Self

import polars as pl

from apeagent_pipeline.chain.answers import Header
from apeagent_pipeline.chain.endpoint import Endpoint
from apeagent_pipeline.chain.events import RAW_SWAPS_SCHEMA, SWAP_KEY, empty_raw_swaps
from apeagent_pipeline.chain.liquidity import LIQUIDITY_SCHEMA, empty_liquidity

_WITNESS_BLOCKS = 500
"""Of so many blocks, one is asked for again at the end of the day."""


class PoolEvents(NamedTuple):
    """The events of one pool in a range of blocks, sorted by (block_number, log_index).

    Attributes:
        swaps: RAW_SWAPS_SCHEMA.
        changes: LIQUIDITY_SCHEMA.
    """

    swaps: pl.DataFrame
    changes: pl.DataFrame

    @classmethod
    def none(cls) -> Self:
        """No events."""
        return cls(empty_raw_swaps(), empty_liquidity())

    @classmethod
    def joined(cls, parts: Iterable["PoolEvents"]) -> Self:
        """All events of several ranges, each event once."""
        found: list[PoolEvents] = [cls.none(), *parts]
        return cls(_joined([part.swaps for part in found]), _joined([part.changes for part in found]))

    def between(self, first: int, last: int) -> "PoolEvents":
        """The events of a range, both ends included."""
        return PoolEvents(*(table.filter(pl.col("block_number").is_between(first, last)) for table in self))

    @property
    def total(self) -> int:
        """Swaps and changes together."""
        return self.swaps.height + self.changes.height

    def lacks(self, others: "PoolEvents") -> int:
        """How many of the other events are not among these."""
        return sum(
            theirs.select(SWAP_KEY).join(ours.select(SWAP_KEY), on=SWAP_KEY, how="anti").height
            for ours, theirs in zip(self, others, strict=True)
        )


def _joined(tables: Sequence[pl.DataFrame]) -> pl.DataFrame:
    filled = [table for table in tables if not table.is_empty()]
    if not filled:
        return tables[0]
    return pl.concat(filled).unique(maintain_order=True).sort(SWAP_KEY, maintain_order=True)


class Piece(NamedTuple):
    """One answered ``eth_getLogs`` request."""

    first: int
    last: int
    logs: int
    endpoint: Endpoint


class Part(NamedTuple):
    """A range that an earlier run finished, and the identities of the endpoints that its events came from."""

    events: PoolEvents
    endpoints: list[str]


class Parts:
    """The finished ranges of one day, each a file, in a folder that belongs to the day's last block.

    After a reorganisation the day has another last block, so ranges of two forks cannot mix. Each file says which
    endpoints its events came from: a range of an endpoint that is not in use any more is not taken.
    """

    def __init__(self, root: Path | None, day: date, last: Header) -> None:
        self._folder = root / f"{day}-{last.hash.removeprefix('0x')[:16]}" if root else None

    def read(self, first: int, last: int, endpoints: Collection[str]) -> Part | None:
        """The events of a range that an earlier run finished with some of these endpoints, or None."""
        if self._folder is None:
            return None
        path = self._folder / f"{first}-{last}.parquet"
        try:
            sources = json.loads(pl.read_parquet_metadata(path).get("endpoints", "[]"))
            table = pl.read_parquet(path)
            if not sources or not set(sources) <= set(endpoints):
                return None
            is_swap = pl.col("amount0").is_not_null()
            swaps = table.filter(is_swap).select(RAW_SWAPS_SCHEMA.names())
            changes = table.filter(~is_swap).select(LIQUIDITY_SCHEMA.names())
        except (OSError, ValueError, pl.exceptions.PolarsError):
            return None
        fits = swaps.schema == RAW_SWAPS_SCHEMA and changes.schema == LIQUIDITY_SCHEMA
        return Part(PoolEvents(swaps, changes), sources) if fits else None

    def write(self, first: int, last: int, events: PoolEvents, endpoints: Collection[str]) -> None:
        """Keep the events of a range."""
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        table = pl.concat([events.swaps, events.changes], how="diagonal")
        with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".tmp", delete=False) as file:
            # Not synced: a file that a crash cut short is read from the chain again.
            table.write_parquet(file, metadata={"endpoints": json.dumps(sorted(endpoints))})
        Path(file.name).replace(self._folder / f"{first}-{last}.parquet")

    def remove(self) -> None:
        """Delete them: the day is complete, or they cannot be relied on."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


class DayReading:
    """One day being read: its borders, and what all threads have read so far.

    Attributes:
        day: The UTC day.
        borders: Headers of its first and last block.
        blocks: Read so far.
        swaps: Found so far.
        replaced: Numbers of witnesses that have another hash now.
        pieces: Every request for logs that was answered, except in ranges that an earlier run finished.
    """

    def __init__(self, day: date, borders: list[Header]) -> None:
        self.day = day
        self.borders = borders
        self.blocks = 0
        self.swaps = 0
        self.replaced: list[int] = []
        self.pieces: list[Piece] = []
        self._witnesses: dict[int, Header] = {}
        self._lock = threading.Lock()

    @property
    def witnesses(self) -> list[Header]:
        """Blocks with swaps, at most one of 500. If the chain was not reorganised, all of them keep their hash."""
        return list(self._witnesses.values())

    def add(self, first: int, last: int, swaps: pl.DataFrame) -> None:
        """Count a range that was read."""
        with self._lock:
            self.blocks += last - first + 1
            self.swaps += swaps.height
            if not swaps.is_empty():
                row = swaps.row(-1, named=True)
                number = row["block_number"]
                self._witnesses[number // _WITNESS_BLOCKS] = Header(
                    number, int(row["block_timestamp"].timestamp()), row["block_hash"]
                )

    def forget(self, first: int, last: int, swaps: pl.DataFrame) -> None:
        """Take a range out of the counts: it will be read again."""
        with self._lock:
            self.blocks -= last - first + 1
            self.swaps -= swaps.height
            self._witnesses = {
                place: header for place, header in self._witnesses.items() if not first <= header.number <= last
            }
