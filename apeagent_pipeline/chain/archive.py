"""Swaps from a file that somebody else wrote: CSV or Parquet, one file or a folder of them.

Two sets of column names are understood: RAW_SWAPS_SCHEMA's own, and those of the published collector scripts
(``router_address``, ``original_sender``, ``timestamp`` in seconds). Such archives repeat rows and are not sorted; both
is repaired. A row that is wrong is never repaired: nothing is read from an archive that has one.
"""

import csv
import hashlib
import io
import logging
from datetime import date
from functools import cached_property
from pathlib import Path

import polars as pl

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.chain.errors import ChainError
from apeagent_pipeline.chain.events import RAW_SWAPS_SCHEMA, SWAP_KEY, contradicting_ticks

_SUFFIXES = (".csv", ".parquet")
_RENAMED = {"router_address": "sender", "original_sender": "tx_from", "timestamp": "block_timestamp"}
_REQUIRED = (
    "pool_id",
    "block_number",
    "block_timestamp",
    "transaction_hash",
    "sender",
    "amount0",
    "amount1",
    "sqrt_price_x96",
    "liquidity",
    "tick",
    "fee",
)
_HASH = r"^(0[xX])?[0-9a-fA-F]{64}$"
_ADDRESS = r"^(0[xX])?[0-9a-fA-F]{40}$"
_TICK = r"^(0|-?[1-9]\d{0,5})$"
_PIPS = r"^(0|[1-9]\d{0,6})$"
_NATURAL = r"^(0|[1-9]\d{0,14})$"
_SECONDS = r"^[1-9]\d{8,10}$"
_ISO_TIME = r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d"
# Column -> (pattern of the text, what a reader of the error message should find there).
_RULES = {
    "chain_id": (_NATURAL, "a chain id"),
    "pool_id": (_HASH, "a pool id, 64 hex digits"),
    "block_number": (_NATURAL, "a block number"),
    "block_hash": (_HASH, "a block hash, 64 hex digits"),
    "block_timestamp": (f"{_SECONDS}|{_ISO_TIME}", "seconds since 1970 or an ISO time in UTC"),
    "transaction_hash": (_HASH, "a transaction hash, 64 hex digits"),
    "transaction_index": (_NATURAL, "a transaction index"),
    "log_index": (_NATURAL, "a log index"),
    "sender": (_ADDRESS, "an address, 40 hex digits"),
    "amount0": (r"^(0|-?[1-9]\d{0,38})$", "an integer of raw token0 units"),
    "amount1": (r"^(0|-?[1-9]\d{0,38})$", "an integer of raw token1 units"),
    "sqrt_price_x96": (r"^[1-9]\d{0,48}$", "a positive integer of at most 160 bits"),
    "liquidity": (r"^(0|[1-9]\d{0,38})$", "an integer that is not negative"),
    "tick": (_TICK, "a tick"),
    "fee": (_PIPS, "a fee in hundredths of a basis point"),
    "tx_from": (_ADDRESS, "an address, 40 hex digits"),
    "tx_to": (_ADDRESS, "an address, 40 hex digits"),
}
_HEX_COLUMNS = ("pool_id", "block_hash", "transaction_hash", "sender", "tx_from", "tx_to")
_SHOWN_PROBLEMS = 5
_SHOWN_CHARACTERS = 80

_log = logging.getLogger(__name__)


class ArchiveError(ChainError):
    """An archive cannot be used; the message names file, lines, what was found and what was expected."""


class SwapArchive:
    """All swaps of one pool in an archive, read and checked once.

    Args:
        path: A ``.csv`` or ``.parquet`` file, or a folder of such files (read in the order of their names).
        pool: Rows of other pools are left out.
    """

    def __init__(self, path: Path, pool: PoolSpec) -> None:
        self.path = path
        self.pool = pool

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The files of the archive.

        Raises:
            ArchiveError: if there are none.
        """
        if self.path.is_dir():
            found = tuple(sorted(file for file in self.path.iterdir() if file.suffix.lower() in _SUFFIXES))
            for file in found:
                if not file.is_file() or not file.resolve().is_relative_to(self.path.resolve()):
                    raise ArchiveError(f"{file} is not a file of the archive's own folder; remove it from there")
            if not found:
                raise ArchiveError(f"the swap archive folder {self.path} holds no .csv or .parquet file")
            return found
        if not self.path.is_file():
            raise ArchiveError(
                f"the swap archive {self.path} does not exist; set APEAGENT_SWAPS_ARCHIVE to a CSV or Parquet file or "
                "to a folder of them"
            )
        if self.path.suffix.lower() not in _SUFFIXES:
            raise ArchiveError(f"the swap archive {self.path} must end in .csv or .parquet")
        return (self.path,)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over the contents of all files, whatever their names."""
        digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in self.files]
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()

    @cached_property
    def swaps(self) -> pl.DataFrame:
        """Every swap of the pool: RAW_SWAPS_SCHEMA, each once, sorted by (block_number, log_index).

        ``log_index`` is the position within the block in file order where the archive has none.

        Raises:
            ArchiveError: naming file and line of what is wrong.
        """
        rows = pl.concat([_read_file(file, number) for number, file in enumerate(self.files)], how="diagonal")
        self._check_rows(rows)
        ours = (pl.col("pool_id") == self.pool.pool_id.lower()) & (
            pl.col("chain_id").cast(pl.Int64()).fill_null(self.pool.chain_id) == self.pool.chain_id
        )
        total = rows.height
        rows = rows.filter(ours)
        if rows.is_empty():
            raise ArchiveError(
                f"the swap archive {self.path} holds no swap of the pool {self.pool.pool_id} on chain "
                f"{self.pool.chain_id} ({total} rows of other pools); check APEAGENT_POOL_ID"
            )
        if rows.height < total:
            _log.warning("%s: %d rows of other pools are left out", self.path, total - rows.height)
        content = [name for name in rows.columns if name not in {"_file", "_line"}]
        distinct = rows.unique(content, keep="first", maintain_order=True)
        if distinct.height < rows.height:
            _log.info("%s: %d exact duplicates are left out", self.path, rows.height - distinct.height)
        return self._in_schema(distinct)

    def _in_schema(self, rows: pl.DataFrame) -> pl.DataFrame:
        in_order = rows.with_columns(pl.col("block_number").cast(pl.Int64())).sort("block_number", maintain_order=True)
        if in_order["log_index"].null_count() == in_order.height:
            in_order = in_order.with_columns(pl.int_range(pl.len()).over("block_number").alias("log_index"))
        seconds = pl.col("block_timestamp").str.to_integer(dtype=pl.Int64(), strict=False) * 1_000_000
        written = pl.col("block_timestamp").str.to_datetime(time_unit="us", time_zone="UTC", strict=False)
        table = in_order.with_columns(
            pl.col("chain_id").fill_null(str(self.pool.chain_id)),
            pl.coalesce(seconds.cast(pl.Datetime("us", "UTC")), written).alias("block_timestamp"),
        )
        table = table.cast({name: RAW_SWAPS_SCHEMA[name] for name in RAW_SWAPS_SCHEMA if name != "block_timestamp"})
        table = table.sort(SWAP_KEY, maintain_order=True)
        self._refuse(table, pl.col("log_index").is_null(), "has no log_index although other rows have one")
        self._refuse(table, pl.col("block_timestamp").is_null(), "has an impossible time")
        self._refuse(
            table, ~pl.struct(SWAP_KEY).is_first_distinct(), "has the block and log_index of another, different row"
        )
        unsteady = pl.any_horizontal((pl.col("block_hash", "block_timestamp").n_unique() > 1).over("block_number"))
        self._refuse(table, unsteady, "has another time or hash than other rows of the same block")
        backwards = pl.col("block_timestamp") < pl.col("block_timestamp").shift(1)
        self._refuse(table, backwards.fill_null(False), "lies in a later block but at an earlier time than another row")
        wrong_tick = pl.Series(contradicting_ticks(table))
        self._refuse(table, wrong_tick, "has a tick that contradicts its sqrt_price_x96, or an impossible price")
        return table.select(RAW_SWAPS_SCHEMA.names())

    def _check_rows(self, rows: pl.DataFrame) -> None:
        problems: list[str] = []
        for name, (pattern, expected) in _RULES.items():
            wrong = ~pl.col(name).str.contains(pattern)
            if name in _REQUIRED:
                wrong = wrong.fill_null(True)
            found = rows.filter(wrong).select("_file", "_line", name).head(_SHOWN_PROBLEMS)
            for file, line, value in found.iter_rows():
                shown = "nothing" if value is None else repr(value[:_SHOWN_CHARACTERS])
                problems.append(f"{self.files[file]} line {line}: {name} is {shown}, expected {expected}")
        self._raise_problems(problems)

    def _refuse(self, table: pl.DataFrame, broken: pl.Expr | pl.Series, what: str) -> None:
        found = table.filter(broken).select("_file", "_line").head(_SHOWN_PROBLEMS)
        self._raise_problems([f"{self.files[file]} line {line} {what}" for file, line in found.iter_rows()])

    def _raise_problems(self, problems: list[str]) -> None:
        if problems:
            more = ", and more" if len(problems) > _SHOWN_PROBLEMS else ""
            listed = "; ".join(problems[:_SHOWN_PROBLEMS])
            raise ArchiveError(f"the swap archive is malformed: {listed}{more}. Correct or remove these lines.")

    def span(self) -> tuple[date, date]:
        """First and last UTC day with a swap."""
        days = self.swaps["block_timestamp"].dt.date()
        return days[0], days[-1]

    def read_day(self, day: date) -> pl.DataFrame:
        """The swaps of one UTC day; typed and empty where a day inside the archive's span has none.

        Raises:
            ArchiveError: if the day lies outside the archive's span.
        """
        first, last = self.span()
        if not first <= day <= last:
            raise ArchiveError(f"the swap archive {self.path} holds {first} to {last}; {day} lies outside")
        return self.swaps.filter(pl.col("block_timestamp").dt.date() == day)


def _read_file(file: Path, number: int) -> pl.DataFrame:
    # Everything as text, so that each value can be judged, and named, as it stands in the file.
    table = _read_csv(file) if file.suffix.lower() == ".csv" else _read_parquet(file)
    given = [name for name in table.columns if name != "_line"]
    table = table.rename(
        {old: new for old, new in _RENAMED.items() if old in table.columns and new not in table.columns}
    )
    missing = [name for name in _REQUIRED if name not in table.columns]
    if missing:
        inverse = {new: old for old, new in _RENAMED.items()}
        wanted = [f"{name} (or {inverse[name]})" if name in inverse else name for name in missing]
        raise ArchiveError(f"{file} lacks the columns {', '.join(wanted)}; it has {', '.join(given)[:500]}")
    absent = [pl.lit(None, pl.String()).alias(name) for name in RAW_SWAPS_SCHEMA if name not in table.columns]
    hex_text = [
        ("0x" + pl.col(name).str.to_lowercase().str.strip_prefix("0x")).alias(name)
        for name in _HEX_COLUMNS
        if name in table.columns
    ]
    return (
        table.with_columns(hex_text)
        .with_columns(absent)
        .select(
            *RAW_SWAPS_SCHEMA.names(),
            pl.lit(number).alias("_file"),
            (pl.col("_line") if "_line" in table.columns else pl.int_range(1, pl.len() + 1)).alias("_line"),
        )
    )


def _read_csv(file: Path) -> pl.DataFrame:
    text = file.read_bytes().rstrip() + b"\n"
    if not text.strip():
        raise ArchiveError(f"{file} is empty; expected a header line and one line a swap")
    _check_line_lengths(file, text)
    try:
        table = pl.read_csv(io.BytesIO(text), infer_schema=False)
        return table.select(_known(table)).with_row_index("_line", offset=2)
    except pl.exceptions.PolarsError as error:
        raise ArchiveError(f"{file} is not a readable CSV file: {_first_words(error)}") from error


def _check_line_lengths(file: Path, text: bytes) -> None:
    # A CSV reader pads a short line and complains about a long one without its number; the number is what helps.
    try:
        lines = csv.reader(io.StringIO(text.decode("utf-8-sig")), strict=True)
        width = len(next(lines))
        for number, line in enumerate(lines, start=2):
            if len(line) != width:
                raise ArchiveError(f"{file} line {number} has {len(line)} values, expected {width} as in its header")
    except (UnicodeDecodeError, csv.Error) as error:
        raise ArchiveError(f"{file} is not a readable CSV file: {_first_words(error)}") from None


def _read_parquet(file: Path) -> pl.DataFrame:
    try:
        # polars panics at some broken files, with an error that is no Exception.
        rows = pl.scan_parquet(file).select(pl.len()).collect().item()
        if rows > file.stat().st_size:
            # Every swap has hashes of its own, which do not shrink; a file of equal rows can claim any number of them.
            raise ArchiveError(f"{file} claims {rows} rows in {file.stat().st_size} bytes: these are no swaps")
        table = pl.read_parquet(file)
        return _as_text(file, table.select(_known(table)))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        raise ArchiveError(f"{file} is not a readable Parquet file: {_first_words(error)}") from error


def _known(table: pl.DataFrame) -> list[str]:
    known = {*RAW_SWAPS_SCHEMA, *_RENAMED}
    return [name for name in table.columns if name in known]


def _first_words(error: BaseException) -> str:
    return str(error)[:300]


def _as_text(file: Path, table: pl.DataFrame) -> pl.DataFrame:
    inexact = [name for name, kind in table.schema.items() if kind.is_float()]
    if inexact:
        raise ArchiveError(f"{file}: the columns {inexact} hold floating-point numbers, which lose digits of a swap")
    times = [pl.col(name).dt.epoch("s") for name, kind in table.schema.items() if isinstance(kind, pl.Datetime)]
    return table.with_columns(times).cast(pl.String())
