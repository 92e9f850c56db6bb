"""From the rows of a file to rows in one form, whatever the layout: typed, of one pool, each with its file and line.

Rows of other pools, chains, contracts and events are left out and counted before a value of theirs is judged. A value
that is wrong is reported; it is never replaced by a guess.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.chain.archive import values
from apeagent_pipeline.chain.archive.arithmetic import EXACT
from apeagent_pipeline.chain.archive.canonical import plain_integers, plain_numbers
from apeagent_pipeline.chain.archive.clock import ChainClock
from apeagent_pipeline.chain.archive.columns import Columns
from apeagent_pipeline.chain.archive.layouts import REQUIRED_COLUMNS, SWAP_COLUMNS
from apeagent_pipeline.chain.archive.problems import ArchiveError, Problems
from apeagent_pipeline.chain.archive.reading import Table
from apeagent_pipeline.chain.archive.streams import LINE
from apeagent_pipeline.chain.events import NULLABLE_COLUMNS, RAW_SWAPS_SCHEMA, SWAP_TOPIC, LogError, decode_swap_data

FILE = "_file"
NORMAL_SCHEMA = pl.Schema(
    {**RAW_SWAPS_SCHEMA, **dict.fromkeys(EXACT.values(), pl.Int128()), FILE: pl.Int32(), LINE: pl.Int64()}
)
"""RAW_SWAPS_SCHEMA, `EXACT`, and where a row stands. ``log_index`` is null where the file has none."""

_OF_TRANSACTION = (
    "block_number",
    "block_hash",
    "transaction_hash",
    "transaction_index",
    "log_index",
    "tx_from",
    "tx_to",
)
_SMALL_INTEGERS = {
    "block_number": (0, 10**15 - 1),
    "transaction_index": (0, 10**15 - 1),
    "log_index": (0, 10**15 - 1),
    "tick": (-999_999, 999_999),
    "fee": (0, 9_999_999),
}
"""Columns that need not be read as text where a file has them as integers, and what their rules allow."""
_TIME_EXPECTED = "seconds since 1970 or an ISO time with seconds in UTC"
_DATA = r"^0x[0-9a-f]{384}$"
_COMPARED = frozenset({"sender", "pool_id", "tx_from", "tx_to", "block_number", "transaction_hash", "log_index"})


def _lies_within(numbers: pl.Series, low: int, high: int) -> bool:
    if not numbers.dtype.is_integer():
        return False
    return low <= int(numbers.min()) and int(numbers.max()) <= high  # type: ignore[arg-type]


class FileReader:
    """Reads one file of an archive.

    Args:
        file: Named in errors.
        number: Of the file in the archive; stands in `FILE`.
        table: The opened file.
        pool: Rows of other pools are left out.
        clock: Of the pool's chain, where it is exact.
        blocks: Times of blocks, from a file beside the swaps: block number -> seconds.
        problems: Where wrong values are reported.
    """

    def __init__(
        self,
        file: Path,
        number: int,
        table: Table,
        *,
        pool: PoolSpec,
        clock: ChainClock | None,
        blocks: pl.DataFrame | None,
        problems: Problems,
    ) -> None:
        self.file = file
        self.columns = Columns(file, table.headers)
        self.left_out: Counter[str] = Counter()
        self.notices: set[str] = set()
        self._plain: set[str] = set()
        self._numbers: dict[str, pl.Series] = {}
        self._one_pool = False
        self.rewritten: dict[str, tuple[int, str, str]] = {}
        self.rows = 0
        self._number = number
        self._table = table
        self._pool = pool
        self._clock = clock
        self._blocks = blocks
        self._problems = problems
        if "block_timestamp" not in self.columns.found and clock is None and blocks is None:
            raise ArchiveError(
                f"{file} has no block time, and the blocks of chain {pool.chain_id} have no fixed time. Add a column "
                "block_timestamp, or put a file with the columns block_number,timestamp beside it"
            )

    def batches(self) -> Iterator[pl.DataFrame]:
        """The pool's swaps in NORMAL_SCHEMA, in the order of the file."""
        for batch in self._table.batches(self.columns.positions(), self._problems):
            kept = self._of_pool(self._filled(batch))
            if kept.height:
                yield self._typed(kept)

    def _filled(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Without rows of commas alone, as spreadsheets append them."""
        text = [name for name, kind in rows.schema.items() if kind == pl.String()]
        if len(text) == rows.width - 1 and (rows[text[0]].fill_null("") == "").any():
            blank = rows.select(pl.all_horizontal(pl.col(text).fill_null("") == "")).to_series()
            if blank.any():
                rows = self._keep(rows, ~blank, "that are blank")
        self.rows += rows.height
        return rows

    def _column(self, rows: pl.DataFrame, name: str) -> pl.Series:
        first, *others = (rows[f"c{at}"] for at in self.columns.found[name])
        if others and (name in _COMPARED or first.name != others[0].name):
            self._compare(rows, name)
        return first

    def _compare(self, rows: pl.DataFrame, name: str) -> None:
        at = self.columns.found[name]
        same_key = [other for other in at[1:] if self.columns.keys[other] == self.columns.keys[at[0]]]
        for other in at[1:] if name in _COMPARED else same_key:
            one, two = (self._canonical(rows[f"c{each}"], name) for each in (at[0], other))
            differs = one.ne_missing(two) & two.is_not_null()
            if differs.any():
                first = self.columns.headers[at[0]]
                second = self.columns.headers[other]
                raise ArchiveError(
                    f"{self.file}: the columns {first} and {second} could both be {name}, and they differ in "
                    f"{differs.sum()} rows (line {rows[LINE].filter(differs)[0]}: {one.filter(differs)[0]!r} and "
                    f"{two.filter(differs)[0]!r}). Remove or rename the wrong one: sender is the contract that "
                    "called the PoolManager (a router), tx_from the account that signed the transaction"
                    if name in {"sender", "tx_from"}
                    else f"{self.file}: the columns {first} and {second} could both be {name}, and they differ in "
                    f"{differs.sum()} rows; remove or rename one of them"
                )

    def _canonical(self, column: pl.Series, name: str) -> pl.Series:
        if name == "pool_id" and self._is_pool(column):
            return column
        text = values.as_text(column, name)
        # As a rule everything is plain: then one pass over the column is enough, here and in `_typed`.
        if (numbers := plain_numbers(text, name)) is not None:
            self._numbers[name] = numbers
        if numbers is not None or values.all_plain(text, name):
            if text.null_count() == 0 or name in NULLABLE_COLUMNS:
                self._plain.add(name)
            return text
        text = values.clean_text(text)
        if name == "chain_id":
            return values.chain_ids(text)
        return values.hex_values(text, name) if name in values.HEX_COLUMNS else values.integers(text, name)

    def _value(self, rows: pl.DataFrame, name: str) -> pl.Series:
        """The canonical text of a column; rewritten numbers are counted."""
        column = self._column(rows, name)
        if name in _SMALL_INTEGERS and len(column) and column.null_count() == 0:
            low, high = _SMALL_INTEGERS[name]
            numbers = plain_integers(column, pl.Int64) if column.dtype == pl.String() else column
            if numbers is not None and _lies_within(numbers, low, high):
                return numbers.cast(pl.Int64()).alias(name)
        self._plain.discard(name)  # Other columns may have been compared with this one.
        self._numbers.pop(name, None)
        canonical = self._canonical(column, name).alias(name)
        if name not in values.HEX_COLUMNS and column.dtype == pl.String() and name not in self._plain:
            changed = (column != canonical).fill_null(False)
            if changed.any():
                count, *example = self.rewritten.get(name, (0, column.filter(changed)[0], canonical.filter(changed)[0]))
                self.rewritten[name] = (count + changed.sum(), *example)
        return canonical

    def _of_pool(self, rows: pl.DataFrame) -> pl.DataFrame:
        found = self.columns.found
        if "removed" in found:
            rows = self._keep(rows, ~values.flags(self._column(rows, "removed")), "removed by a reorganisation")
        if "event" in found and rows.height:
            event = values.clean_text(values.as_text(self._column(rows, "event"), "event")).str.to_lowercase()
            swap = event.str.contains(r"^(\w*[._])?swap\b") | (event == SWAP_TOPIC)
            if swap.any() or not self.columns.is_general("event"):
                rows = self._keep(rows, swap.fill_null(False), "of other events")
        if self.columns.raw and rows.height:
            rows = self._with_topics(rows)
            topic = rows["topic0"] == SWAP_TOPIC
            rows = self._keep(rows, topic.fill_null(False), "of other events")
        if "contract" in found and rows.height:
            contract = values.hex_values(
                values.clean_text(values.as_text(self._column(rows, "contract"), "sender")), "sender"
            )
            ours = (contract == self._pool.pool_manager.lower()) | contract.is_null()
            if self.columns.raw or ours.any() or not self.columns.is_general("contract"):
                rows = self._keep(rows, ours, f"of other contracts than {self._pool.pool_manager}")
        pool = rows["topic1"] if self.columns.raw else self._column(rows, "pool_id")
        self._one_pool = self._is_pool(pool)
        if not self._one_pool and not self.columns.raw:
            pool = self._canonical(pool, "pool_id")
            self._one_pool = self._is_pool(pool)
        rows = rows.with_columns(pool.alias("pool_id"))
        if not self._one_pool:
            other = rows["pool_id"].str.contains(values.HASH) & (rows["pool_id"] != self._pool.pool_id.lower())
            rows = self._keep(rows, ~other.fill_null(False), "of other pools")
            self._one_pool = self._is_pool(rows["pool_id"])
        if "chain_id" in found and rows.height and not self._all_of_chain(rows):
            chain = self._value(rows, "chain_id")
            known = chain.str.contains(values.RULES["chain_id"][0]).fill_null(True)
            self._report(rows, ~known, "chain_id", "a chain id or the name of a chain")
            ours = (chain == str(self._pool.chain_id)).fill_null(True)
            rows = self._keep(rows, ours & known, "of other chains")
        return rows

    def _is_pool(self, column: pl.Series) -> bool:
        if column.dtype != pl.String() or column.null_count():
            return False
        return bool((column == self._pool.pool_id.lower()).all())

    def _all_of_chain(self, rows: pl.DataFrame) -> bool:
        chain = self._column(rows, "chain_id")
        if chain.dtype.is_integer():  # as 64 bits: a narrow type cannot be compared with a chain id that it cannot hold
            return bool((chain.cast(pl.Int64(), strict=False) == self._pool.chain_id).fill_null(False).all())
        return chain.dtype == pl.String() and bool((chain == str(self._pool.chain_id)).all())

    def _keep(self, rows: pl.DataFrame, mask: pl.Series, what: str) -> pl.DataFrame:
        if mask.all():
            return rows
        kept = rows.filter(mask)
        self.left_out[what] += rows.height - kept.height
        return kept

    def _with_topics(self, rows: pl.DataFrame) -> pl.DataFrame:
        found = self.columns.found
        if "topics" in found:
            text = values.as_text(self._column(rows, "topics"), "topics").str.to_lowercase()
            each = text.str.extract_all(r"[0-9a-f]{64}")
            topics = [("0x" + each.list.get(at, null_on_oob=True)).alias(f"topic{at}") for at in range(3)]
        else:
            topics = [
                values.hex_values(
                    values.clean_text(values.as_text(rows[f"c{found[f'topic{at}'][0]}"], "pool_id")), "pool_id"
                ).alias(f"topic{at}")
                for at in range(3)
            ]
        return rows.with_columns(*topics)

    def _typed(self, rows: pl.DataFrame) -> pl.DataFrame:
        self._plain.clear()
        self._numbers.clear()
        if self.columns.raw:
            rows = self._with_data(rows)
        columns = dict(self._raw_columns(rows) if self.columns.raw else self._decoded_columns(rows))
        for name in _OF_TRANSACTION:
            if name in self.columns.found:
                value = self._value(rows, name)
                if name in NULLABLE_COLUMNS and self.columns.is_general(name) and not self._any_right(value, name):
                    continue  # The header means something else.
                columns[name] = value
        good = pl.Series([True]).new_from_index(0, rows.height)
        required = {*REQUIRED_COLUMNS, "log_index"} if self._has_every(columns, "log_index") else set(REQUIRED_COLUMNS)
        for name, column in columns.items():
            pattern, expected = values.RULES[name]
            if column.dtype.is_integer() or name in self._plain or (name == "pool_id" and self._one_pool):
                continue
            wrong = ~column.str.contains(pattern)
            wrong = wrong.fill_null(name in required)
            if wrong.any():
                self._report(rows, wrong, name, expected)
                good &= ~wrong
        # As a rule they were read as numbers to see whether they are plain.
        exact = {
            own: self._numbers[name] if name in self._numbers else columns[name].cast(pl.Int128(), strict=False)
            for name, own in EXACT.items()
        }
        table = pl.DataFrame(columns | exact)
        if not good.all():
            table, rows = table.filter(good), rows.filter(good)
        table = table.with_columns(
            pl.col(name).cast(RAW_SWAPS_SCHEMA[name]) for name in columns if RAW_SWAPS_SCHEMA[name] != pl.String()
        )
        seconds = self._seconds(rows, table["block_number"])
        known = seconds.is_not_null()
        table = table.with_columns(
            (seconds * 1_000_000).cast(pl.Datetime("us", "UTC")).alias("block_timestamp"),
            pl.lit(self._pool.chain_id, pl.Int64()).alias("chain_id"),
            pl.lit(self._number, pl.Int32()).alias(FILE),
            rows[LINE],
        )
        if not known.all():
            table = table.filter(known)
        absent = [pl.lit(None, kind).alias(name) for name, kind in NORMAL_SCHEMA.items() if name not in table.columns]
        return table.with_columns(absent).select(NORMAL_SCHEMA.names())

    @staticmethod
    def _any_right(column: pl.Series, name: str) -> bool:
        return column.dtype.is_integer() or bool(column.str.contains(values.RULES[name][0]).any())

    @staticmethod
    def _has_every(columns: Mapping[str, pl.Series], name: str) -> bool:
        return name in columns and columns[name].null_count() < len(columns[name])

    def _pool_ids(self, rows: pl.DataFrame) -> pl.Series:
        # One text that all rows share is copied and written faster than one text a row.
        own = self._pool.pool_id.lower()
        return pl.Series([own]).new_from_index(0, rows.height) if self._one_pool else rows["pool_id"]

    def _decoded_columns(self, rows: pl.DataFrame) -> Iterator[tuple[str, pl.Series]]:
        yield "pool_id", self._pool_ids(rows)
        for name in SWAP_COLUMNS[1:]:
            yield name, self._value(rows, name)

    def _with_data(self, rows: pl.DataFrame) -> pl.DataFrame:
        column = rows[f"c{self.columns.found['data'][0]}"]
        if column.dtype == pl.Binary():
            data = "0x" + column.bin.encode("hex")
        else:
            text = values.clean_text(column.cast(pl.String())).str.to_lowercase()
            data = "0x" + text.str.extract(r"^(?:hexbytes\(['\"])?(?:0x|\\x)?([0-9a-f]*)(?:['\"]\))?$", 1)
        whole = data.str.contains(_DATA).fill_null(False)
        self._report(rows, ~whole, "data", "the six words of a Swap event (384 hex digits)")
        return rows.with_columns(data.alias("data")).filter(whole)

    def _raw_columns(self, rows: pl.DataFrame) -> Iterator[tuple[str, pl.Series]]:
        try:
            words = decode_swap_data(rows["data"])
        except LogError as error:
            raise ArchiveError(f"{self.file}: {error}") from None
        yield "pool_id", self._pool_ids(rows)
        yield "sender", values.hex_values(rows["topic2"], "sender")
        for name in words.columns:
            yield name, words[name]

    def _seconds(self, rows: pl.DataFrame, block_number: pl.Series) -> pl.Series:
        found = self.columns.found
        if "block_timestamp" in found and rows.height:
            column = rows[f"c{found['block_timestamp'][0]}"]
            self._compare(rows, "block_timestamp")
            if column.null_count() < len(column):
                seconds, naive = values.times(column)
                if seconds.null_count() == 0 or not values.all_zero(column):
                    if naive:
                        self.notices.add("times without a zone are taken as UTC")
                    self._report(rows, seconds.is_null(), "block_timestamp", _TIME_EXPECTED)
                    return seconds
        if self._blocks is not None:
            self.notices.add("block times come from the file of blocks beside the swaps")
            frame = block_number.alias("block_number").to_frame()
            joined = frame.join(self._blocks, on="block_number", how="left", maintain_order="left")["seconds"]
            self._report(rows, joined.is_null(), "block_number", "a block that the file of blocks has", block_number)
            return joined
        if self._clock is not None:
            self.notices.add("block times are computed from block numbers")
            return self._clock.seconds(block_number)
        self._report(rows, block_number.is_not_null(), "block_timestamp", "a block time")
        return block_number.cast(pl.Int64()).clear(len(block_number))

    def _report(
        self, rows: pl.DataFrame, wrong: pl.Series, name: str, expected: str, shown: pl.Series | None = None
    ) -> None:
        if not wrong.any():
            return
        at = wrong.arg_true()
        first = int(at[0])
        value: Any = None
        if shown is not None:
            value = shown[first]
        elif name in self.columns.found:
            value = rows[f"c{self.columns.found[name][0]}"][first]
        elif name in rows.columns:
            value = rows[name][first]
        value = "0x" + value.hex() if isinstance(value, bytes) else value
        self._problems.add_value(
            self.file,
            int(rows[LINE][first]),
            header=self.columns.header(name),
            value=value,
            expected=expected + values.hint(value),
            rows=len(at),
        )
