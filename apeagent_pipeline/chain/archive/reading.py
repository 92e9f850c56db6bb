"""Opening a file of any supported kind as a table: its headers, and its rows in batches.

The kind is told by the content, not by the name. Text is read as text, so that every value can be judged, and named, as
it stands in the file.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from apeagent_pipeline.chain.archive.csv_table import CsvTable
from apeagent_pipeline.chain.archive.json_table import JsonTable
from apeagent_pipeline.chain.archive.layouts import NESTED_KEYS, key
from apeagent_pipeline.chain.archive.problems import ArchiveError, Problems
from apeagent_pipeline.chain.archive.streams import LINE, first_words, open_stream

BATCH_ROWS = 1 << 17
_HEAD_BYTES = 1 << 20
_FOREIGN = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook: unpack it, or export the swaps as CSV or Parquet",
    b"\xd0\xcf\x11\xe0": "an Excel workbook: export the swaps as CSV or Parquet from their source",
    b"SQLite format 3": "a SQLite database: export its table as CSV",
    b"ARROW1": "an Arrow file: write it as Parquet",
    b"%PDF": "a PDF document",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: run git lfs pull",
    b"<!DOCTYPE": "a web page, not the file itself: download the raw file",
    b"<html": "a web page, not the file itself: download the raw file",
}


class Table(Protocol):
    """A table in a file.

    Attributes:
        headers: As they stand in the file. A member of an object is named ``object.member``.
        notices: What was put right while opening.
    """

    headers: list[str]
    notices: list[str]

    def batches(self, columns: Sequence[int], problems: Problems) -> Iterator[pl.DataFrame]:
        """Rows of some columns, named by their position, with the line (or row) number in `LINE`."""
        ...


def open_table(file: Path) -> Table | None:
    """Open a file; None where it is an empty one.

    Raises:
        ArchiveError: if it is not a table of a supported kind.
    """
    try:
        with open_stream(file) as stream:
            head = stream.read(_HEAD_BYTES)
    except (OSError, pa.ArrowException, EOFError) as error:
        raise ArchiveError(f"{file} cannot be read: {first_words(error)}") from error
    if head.startswith(b"PAR1") or (file.suffix.lower() in {".parquet", ".pq", ".parq"} and b"\0" in head[:64]):
        return ParquetTable(file)
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise ArchiveError(f"{file} is {what}")
    if not head.strip(b"\xef\xbb\xbf \r\n\t"):
        return None
    notices = []
    if file.suffix.lower() in {".parquet", ".pq", ".parq"}:
        notices.append(f"{file.name} is named like a Parquet file but holds text")
    if head.lstrip(b"\xef\xbb\xbf \r\n\t")[:1] in {b"{", b"["}:
        return JsonTable(file, notices)
    return CsvTable(file, head, notices)


class ParquetTable:
    """Apache Parquet."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.notices: list[str] = []
        if file.suffix.lower() not in {".parquet", ".pq", ".parq"}:
            self.notices.append(f"{file.name} is a Parquet file")
        try:
            rows, group, schema = _size_and_schema(file)
        except (
            pa.ArrowException,
            OSError,
            ValueError,
            pl.exceptions.PolarsError,
            pl.exceptions.PanicException,
        ) as error:
            raise ArchiveError(f"{file} is not a readable Parquet file: {first_words(error)}") from error
        if rows > file.stat().st_size:
            # Every swap has hashes of its own, which do not shrink; a file of equal rows can claim any number of them.
            raise ArchiveError(f"{file} claims {rows} rows in {file.stat().st_size} bytes, which cannot be swaps")
        self._own = list(schema.names)
        # Batches that end where the groups of the file end need not be put together.
        self._rows_a_batch = group if BATCH_ROWS // 4 <= group <= BATCH_ROWS else BATCH_ROWS
        self._plain = {at for at, kind in enumerate(schema.types) if any(is_plain(kind) for is_plain in _PLAIN)}
        self._nested = [
            (at, member.name)
            for at, kind in enumerate(schema.types)
            if pa.types.is_struct(kind) and key(self._own[at]) in NESTED_KEYS
            for member in kind
        ]
        self.headers = [*self._own, *(f"{self._own[at]}.{member}" for at, member in self._nested)]

    def batches(self, columns: Sequence[int], problems: Problems) -> Iterator[pl.DataFrame]:
        """Rows of some columns, each with a type of its own.

        Raises:
            ArchiveError: if the content is damaged.
        """
        own = len(self._own)
        needed = sorted({at if at < own else self._nested[at - own][0] for at in columns})
        try:
            row = 1
            for batch in self._batches(needed):
                yield batch.with_columns(pl.int_range(row, row + batch.height, dtype=pl.Int64()).alias(LINE))
                row += batch.height
        except (
            pa.ArrowException,
            OSError,
            ValueError,
            KeyError,
            pl.exceptions.PolarsError,
            pl.exceptions.PanicException,
        ) as error:
            raise ArchiveError(f"{self.file} is not a readable Parquet file: {first_words(error)}") from error

    def _batches(self, needed: Sequence[int]) -> Iterator[pl.DataFrame]:
        if self._plain.issuperset(needed):
            scan = pl.scan_parquet(self.file).select(pl.nth(at).alias(f"c{at}") for at in needed)
            scan = scan.with_columns(_WIDE.cast(pl.String()))
            for batch in scan.collect_batches(chunk_size=self._rows_a_batch, maintain_order=True):
                # In one piece: each step would otherwise join the pieces for itself.
                yield batch.rechunk()
            return
        own = len(self._own)
        parents = {parent for parent, _ in self._nested}
        for batch in self._arrow_batches([self._own[at] for at in needed]):
            flat = {}
            for at in needed:
                column = batch.column(batch.schema.get_field_index(self._own[at]))
                if at not in parents:
                    flat[f"c{at}"] = column
                    continue
                for number, (parent, member) in enumerate(self._nested):
                    if parent == at:
                        flat[f"c{own + number}"] = column.field(member)
            yield _to_polars(pa.table(flat))

    def _arrow_batches(self, columns: list[str]) -> Iterator[Any]:
        try:
            parquet = pq.ParquetFile(self.file)
        except pa.ArrowNotImplementedError:
            wide = pl.read_parquet(self.file, columns=columns)
            yield from wide.with_columns(_WIDE.cast(pl.String())).to_arrow().to_batches(BATCH_ROWS)
            return
        yield from parquet.iter_batches(BATCH_ROWS, columns=columns)


_PLAIN = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_integer,
    pa.types.is_boolean,
    pa.types.is_float32,
    pa.types.is_float64,
    pa.types.is_timestamp,
)
"""Types that polars reads by itself, and twice as fast as Arrow does. Both give the same values."""

_WIDE = pl.selectors.by_dtype(pl.Int128(), pl.UInt128())
"""Integers of 128 bits, which polars writes and Arrow does not know."""


def _size_and_schema(file: Path) -> tuple[int, int, Any]:
    """Number of rows, of those in the first group, and types."""
    try:
        parquet = pq.ParquetFile(file)
    except pa.ArrowNotImplementedError:
        empty = pl.DataFrame(schema=pl.read_parquet_schema(file)).with_columns(_WIDE.cast(pl.String()))
        return pl.scan_parquet(file).select(pl.len()).collect().item(), 0, empty.to_arrow().schema
    group = parquet.metadata.row_group(0).num_rows if parquet.num_row_groups else 0
    return parquet.metadata.num_rows, group, parquet.schema_arrow


def _to_polars(table: pa.Table) -> pl.DataFrame:
    for at, field in enumerate(table.schema):
        kind = field.type
        if pa.types.is_decimal(kind):
            target: Any = pa.large_string()
        elif pa.types.is_fixed_size_binary(kind):
            target = pa.large_binary()
        elif pa.types.is_dictionary(kind):
            target = kind.value_type
        elif pa.types.is_nested(kind):
            table = table.set_column(at, field.name, _joined(table.column(at)))
            continue
        else:
            continue
        table = table.set_column(at, field.name, table.column(at).cast(target))
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _joined(column: Any) -> Any:
    values = column.to_pylist()
    shown = [
        None
        if value is None
        else ",".join(v.hex() if isinstance(v, bytes) else str(v) for v in value)
        if isinstance(value, list)
        else str(value)
        for value in values
    ]
    return pa.array(shown, pa.large_string())
