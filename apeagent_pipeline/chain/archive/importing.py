"""The import itself: every file once, then every day once."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.chain.archive import values
from apeagent_pipeline.chain.archive.arithmetic import exact_columns
from apeagent_pipeline.chain.archive.clock import exact_clock
from apeagent_pipeline.chain.archive.columns import header_keys
from apeagent_pipeline.chain.archive.day_checks import DayChecks
from apeagent_pipeline.chain.archive.day_store import KeptDays
from apeagent_pipeline.chain.archive.day_stream import DayStream
from apeagent_pipeline.chain.archive.files import ArchiveFiles, natural_order
from apeagent_pipeline.chain.archive.imported import Imported
from apeagent_pipeline.chain.archive.layouts import COLUMN_KEYS, COMPANIONS, key, unusable
from apeagent_pipeline.chain.archive.normalise import FileReader
from apeagent_pipeline.chain.archive.problems import ArchiveError, Problems
from apeagent_pipeline.chain.archive.reading import Table, open_table

_log = logging.getLogger(__name__)

_WAS_READ = " was read: "
_FEW_KNOWN_HEADERS = 3


class Importer:
    """Reads an archive.

    Args:
        path: Named in errors.
        found: Its files.
        pool: Whose swaps are wanted.
        flips: Whether the amounts have the pool's signs and are to be flipped.
    """

    def __init__(self, path: Path, found: ArchiveFiles, pool: PoolSpec, flips: bool) -> None:
        self._path = path
        self._files = natural_order(found.tables)
        self._skipped = found.skipped
        self._pool = pool
        self._flips = flips
        self._clock = exact_clock(pool.chain_id)
        self._problems = Problems(path)
        self._imported = Imported()
        self._ranks: dict[int, tuple[int, bool]] = {}

    def run(self, kept: KeptDays) -> Imported:
        """Read all files, and check and keep each day.

        Args:
            kept: Takes the swaps of each day, RAW_SWAPS_SCHEMA. Nothing it was given counts if an error is raised.

        Raises:
            ArchiveError: if anything is wrong with the archive.
        """
        days = self._read_files(kept)
        days.finish(self._ranks)
        days.checks.problems.raise_any()
        self._imported.days = days.checks.days
        self._imported.notices += days.checks.notices
        for notice in self._imported.notices:
            _log.log(logging.INFO if _WAS_READ in notice else logging.WARNING, "%s: %s", self._path, notice)
        return self._imported

    def _name(self, file: Path) -> str:
        return str(file.relative_to(self._path)) if file != self._path else file.name

    def _read_files(self, kept: KeptDays) -> DayStream:
        tables, blocks = self._open_files()
        readers = [
            FileReader(file, number, table, pool=self._pool, clock=self._clock, blocks=blocks, problems=self._problems)
            for number, (file, table) in enumerate(tables)
        ]
        files = [file for file, _ in tables]
        names = [self._name(file) for file in files]
        days = DayStream(kept, lambda: DayChecks(self._path, files, names, pool=self._pool, flips=self._flips))
        for number, reader in enumerate(readers):
            ascending = descending = 0
            for batch in reader.batches():
                steps = np.diff(batch["block_number"].to_numpy())
                ascending += int(np.count_nonzero(steps > 0))
                descending += int(np.count_nonzero(steps < 0))
                days.add(self._with_signs(batch))
            self._ranks[number] = (number, descending > ascending)
        self._tell_files(tables, readers)
        self._problems.raise_any()
        self._rank_files()
        if days.is_empty:
            self._refuse_empty(readers)
        return days

    def _open_files(self) -> tuple[list[tuple[Path, Table]], pl.DataFrame | None]:
        tables: list[tuple[Path, Table]] = []
        blocks: list[pl.DataFrame] = []
        notices = self._imported.notices
        for file in self._files:
            try:
                table = open_table(file)
            except ArchiveError as error:
                if file == self._path or not _is_side_file(file):
                    raise
                notices.append(f"{self._name(file)} is not read: {error}")
                continue
            if table is None:
                raise ArchiveError(
                    f"{file} is empty; expected a header line and one line a swap. Fetch it again or remove it"
                )
            if not table.headers:
                notices.append(f"{self._name(file)} holds no rows")
                continue
            keys = header_keys(table.headers)
            companion = unusable(keys, COMPANIONS) if len(self._files) > 1 else None
            if companion and companion.name == "blocks":
                blocks.append(self._read_blocks(file, table, keys))
            elif companion:
                notices.append(f"{self._name(file)} is not read: it holds {companion.name}")
            elif file != self._path and _is_side_file(file) and _known_headers(keys) < _FEW_KNOWN_HEADERS:
                notices.append(f"{self._name(file)} is not read: it holds no swaps")
            else:
                tables.append((file, table))
        notices += [f"{name} is not read: {why}" for name, why in self._skipped]
        if not tables:
            raise ArchiveError(f"the swap archive {self._path} holds no file of swaps; {'; '.join(notices)[:500]}")
        return tables, pl.concat(blocks).unique("block_number") if blocks else None

    def _read_blocks(self, file: Path, table: Table, keys: Sequence[str]) -> pl.DataFrame:
        number = next(at for name in ("number", "blocknumber") for at, k in enumerate(keys) if k == name)
        time = next(at for name in ("timestamp", "blocktimestamp") for at, k in enumerate(keys) if k == name)
        parts = []
        for batch in table.batches([number, time], self._problems):
            block = values.integers(
                values.clean_text(values.as_text(batch[f"c{number}"], "block_number")), "block_number"
            )
            seconds, _ = values.times(batch[f"c{time}"])
            parts.append(pl.DataFrame({"block_number": block.cast(pl.Int64(), strict=False), "seconds": seconds}))
        rows = pl.concat(parts) if parts else pl.DataFrame(schema={"block_number": pl.Int64(), "seconds": pl.Int64()})
        self._imported.layouts[self._name(file)] = "blocks"
        return rows.drop_nulls()

    def _with_signs(self, batch: pl.DataFrame) -> pl.DataFrame:
        if not self._flips:
            return batch
        return batch.with_columns(
            pl.when(pl.col(name).str.starts_with("-"))
            .then(pl.col(name).str.slice(1))
            .when(pl.col(name) == "0")
            .then(pl.col(name))
            .otherwise("-" + pl.col(name))
            .alias(name)
            for name in ("amount0", "amount1")
        ).with_columns(exact_columns())

    def _tell_files(self, tables: Sequence[tuple[Path, Table]], readers: Sequence[FileReader]) -> None:
        notices = self._imported.notices
        left_out: Counter[str] = Counter()
        for (file, table), reader in zip(tables, readers, strict=True):
            name = self._name(file)
            self._imported.layouts[name] = reader.columns.layout
            notices.append(f"{name}{_WAS_READ}{reader.columns.layout}, {reader.rows} rows")
            notices += [
                f"{name}: {count} values of {column} were rewritten, the first from {old!r} to {new!r}"
                for column, (count, old, new) in reader.rewritten.items()
            ]
            left_out.update(reader.left_out)
            notices += [told for told in table.notices if told not in notices]
            if not reader.rows:
                notices.append(f"{name} holds a header and no rows")
        for told in sorted({told for reader in readers for told in reader.notices}):
            if told.startswith("times without") and self._clock:
                continue  # Each is held against the chain's clock.
            notices.append(told)
        notices += [f"{count} rows {what} are left out" for what, count in left_out.items()]

    def _rank_files(self) -> None:
        last = len(self._ranks) - 1
        if self._ranks and all(backwards for _, backwards in self._ranks.values()):
            self._ranks = {number: (last - rank, backwards) for number, (rank, backwards) in self._ranks.items()}

    def _refuse_empty(self, readers: Sequence[FileReader]) -> None:
        total = sum((reader.left_out for reader in readers), Counter())
        told = ", ".join(f"{count} rows {what}" for what, count in total.items()) or "no rows at all"
        raise ArchiveError(
            f"the swap archive {self._path} holds no swap of the pool {self._pool.pool_id} on chain "
            f"{self._pool.chain_id} ({told}); check APEAGENT_POOL_ID, APEAGENT_POOL_KEY, APEAGENT_CHAIN_ID and "
            "APEAGENT_POOL_MANAGER"
        )


def _is_side_file(file: Path) -> bool:
    return any(suffix.lower() in {".txt", ".json"} for suffix in file.suffixes[-2:])


def _known_headers(keys: Sequence[str]) -> int:
    known = {k for found in COLUMN_KEYS.values() for k in found}
    return len(known.intersection(keys) | {k for k in keys if key(k) in known})
