"""An archive as the rest of the chain room sees it: a content hash, a span of days, and each day's swaps."""

import hashlib
import json
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.atomic_files import write_atomically
from apeagent_pipeline.chain.archive.day_store import DayFolder, DayStore
from apeagent_pipeline.chain.archive.files import ArchiveFiles, archive_files
from apeagent_pipeline.chain.archive.imported import DayNotes, Imported
from apeagent_pipeline.chain.archive.importing import Importer
from apeagent_pipeline.chain.archive.problems import ArchiveError
from apeagent_pipeline.chain.events import empty_raw_swaps

IMPORT_VERSION = 2
"""Part of the name of a cached import. Raised when the same files may give other swaps or another verdict."""


class SwapArchive:
    """All swaps of one pool in an archive, read and checked once.

    Args:
        path: A CSV, Parquet or JSON file, or a folder of such files.
        pool: Rows of other pools are left out.
        flips_signs: Whether the amounts have the pool's signs.
        cache: Folder that keeps the imported days (or the refusal) for other processes; None keeps them here only.
    """

    def __init__(self, path: Path, pool: PoolSpec, *, flips_signs: bool = False, cache: Path | None = None) -> None:
        self.path = path
        self.pool = pool
        self._flips = flips_signs
        self._cache = cache
        self._store = DayStore()

    @cached_property
    def _found(self) -> ArchiveFiles:
        return archive_files(self.path)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the archive, in the order of their paths.

        Raises:
            ArchiveError: if there are none, or one that may hold swaps cannot be read.
        """
        return self._found.tables

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over the contents of all files, whatever their names."""
        states = [(str(file.resolve()), file.stat()) for file in self.files]
        signature = json.dumps([(name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in states])
        name = hashlib.sha256(signature.encode()).hexdigest()
        known = self._cache / "hashes" / name if self._cache else None
        if known and known.is_file():
            return known.read_text()
        digests = []
        for file in self.files:
            with file.open("rb") as stream:
                digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
        found = hashlib.sha256("\n".join(digests).encode()).hexdigest()
        if known:
            write_atomically(known, found)
        return found

    @cached_property
    def _folder(self) -> Path | None:
        if self._cache is None:
            return None
        pool = hashlib.sha256(self.pool.model_dump_json().encode()).hexdigest()[:16]
        signs = "-pool-signs" if self._flips else ""
        return self._cache / f"v{IMPORT_VERSION}-{self.content_hash}-{pool}{signs}"

    @cached_property
    def imported(self) -> Imported:
        """What the import found out. Reads the archive if neither this process nor another has done so.

        Raises:
            ArchiveError: naming file, line, what was found and what was expected.
        """
        if self._folder is None:
            return Importer(self.path, self._found, self.pool, self._flips).run(self._store)
        report = self._folder / "import.json"
        if not report.is_file():
            self._import_into(self._folder, report)
        told = json.loads(report.read_text())
        if "refused" in told:
            raise ArchiveError(told["refused"].replace("{path}", str(self.path)))
        days = {date.fromisoformat(day): DayNotes(**notes) for day, notes in told["days"].items()}
        return Imported(told["layouts"], told["notices"], days)

    def _import_into(self, folder: Path, report: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        told: dict[str, Any]
        try:
            imported = Importer(self.path, self._found, self.pool, self._flips).run(DayFolder(folder))
        except ArchiveError as error:
            for part in folder.glob("*.arrow"):
                part.unlink(missing_ok=True)
            told = {"refused": str(error).replace(str(self.path), "{path}")}
        else:
            days = {str(day): vars(notes) for day, notes in imported.days.items()}
            told = {"layouts": imported.layouts, "notices": imported.notices, "days": days}
        write_atomically(report, json.dumps(told))

    @cached_property
    def swaps(self) -> pl.DataFrame:
        """Every swap of the pool: RAW_SWAPS_SCHEMA, each once, sorted by (block_number, log_index).

        ``log_index`` is the position within the block where the archive has none.

        Raises:
            ArchiveError: as `imported`.
        """
        return pl.concat([empty_raw_swaps(), *(self._rows(day) for day in sorted(self.imported.days))])

    def _rows(self, day: date) -> pl.DataFrame:
        if not self.imported.days[day].swaps:
            return empty_raw_swaps()
        if self._folder is None:
            return self._store.rows(day)
        return DayFolder(self._folder).rows(day)

    def span(self) -> tuple[date, date]:
        """First and last UTC day with a swap."""
        days = self.imported.days
        return min(days), max(days)

    def read_day(self, day: date) -> pl.DataFrame:
        """The swaps of one UTC day; typed and empty where a day inside the archive's span has none.

        Raises:
            ArchiveError: if the day lies outside the archive's span.
        """
        first, last = self.span()
        if not first <= day <= last:
            raise ArchiveError(f"the swap archive {self.path} holds {first} to {last}; {day} lies outside")
        return self._rows(day)

    def notes(self, day: date) -> DayNotes:
        """What the import found out about a day; empty outside the span."""
        return self.imported.days.get(day, DayNotes())
