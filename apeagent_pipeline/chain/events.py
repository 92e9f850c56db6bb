"""The Swap event: what a node answers, the table it becomes, and what must hold for every row.

Source: ``IPoolManager.sol`` of Uniswap v4-core,
``Swap(bytes32 indexed id, address indexed sender, int128 amount0, int128 amount1, uint160 sqrtPriceX96, uint128
liquidity, int24 tick, uint24 fee)``. Amounts are from the swapper's side: negative is paid in, positive received.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.amm.ticks import MAX_SQRT_PRICE, MIN_SQRT_PRICE, sqrt_price_at_tick, ticks_at_sqrt_prices
from apeagent_pipeline.chain.errors import ChainError

SWAP_TOPIC = "0x40e9cecb9f5f1f1c5b9c97dec2917b7ee92e57ba5563708daca94dd84ad7112f"
"""Keccak-256 of the event's signature."""

EVENT_COLUMNS: dict[str, pl.DataType] = {
    "chain_id": pl.Int64(),
    "pool_id": pl.String(),
    "block_number": pl.Int64(),
    "block_hash": pl.String(),
    "block_timestamp": pl.Datetime("us", "UTC"),
    "transaction_hash": pl.String(),
    "transaction_index": pl.Int64(),
    "log_index": pl.Int64(),
    "sender": pl.String(),
}
"""What every event of the pool has, swaps and liquidity changes alike: where it lies in the chain, and who called."""

RAW_SWAPS_SCHEMA = pl.Schema(
    {
        **EVENT_COLUMNS,
        "amount0": pl.String(),
        "amount1": pl.String(),
        "sqrt_price_x96": pl.String(),
        "liquidity": pl.String(),
        "tick": pl.Int32(),
        "fee": pl.Int32(),
        "tx_from": pl.String(),
        "tx_to": pl.String(),
    }
)
"""One row a swap. 256-bit values are decimal strings: no digit is lost and every reader understands them."""

COLUMN_DESCRIPTIONS = {
    "chain_id": "EIP-155 chain id",
    "pool_id": "Uniswap V4 pool id, 32 bytes hex",
    "block_number": "Block of the swap",
    "block_hash": "Hash of that block; null where the source does not give it",
    "block_timestamp": "Time of the block, UTC",
    "transaction_hash": "Hash of the transaction, hex",
    "transaction_index": "Position of the transaction in its block; null where the source does not give it",
    "log_index": "Position of the event in its block; with block_number the key of a swap",
    "sender": "Contract that called the PoolManager (a router, not the person)",
    "amount0": "Token0 in its smallest unit, decimal string; negative is paid in by the swapper",
    "amount1": "Token1 in its smallest unit, decimal string; negative is paid in by the swapper",
    "sqrt_price_x96": "Square root of the price after the swap, times 2^96, decimal string",
    "liquidity": "Liquidity in range after the swap, decimal string",
    "tick": "floor(log_1.0001(price in smallest units)) after the swap",
    "fee": "Fee of the swap in hundredths of a basis point",
    "tx_from": "Account that signed the transaction",
    "tx_to": "Contract that the transaction called",
}
"""What each column that this module adds means, with its unit; shown in the UI as the column schema."""

NULLABLE_COLUMNS = frozenset({"block_hash", "transaction_index", "tx_from", "tx_to"})
SWAP_KEY = ["block_number", "log_index"]

_LOG_FIELDS = (
    "address",
    "topics",
    "data",
    "blockNumber",
    "blockHash",
    "transactionHash",
    "transactionIndex",
    "logIndex",
)
_WORD_BYTES = 32
_DATA_TYPES = (("int128", 16), ("int128", 16), ("uint160", 20), ("uint128", 16), ("int24", 3), ("uint24", 3))
"""Type and bytes of each of the six words in the data of the event."""
_SLICE_ROWS = 1 << 14
_NO_SWAPS = RAW_SWAPS_SCHEMA.to_frame()
_UNKNOWN_PEOPLE = [pl.lit(None, pl.String()).alias(name) for name in ("tx_from", "tx_to")]
_DECIMAL = {"amount0": r"^(0|-?[1-9]\d*)$", "amount1": r"^(0|-?[1-9]\d*)$"} | {
    "sqrt_price_x96": r"^[1-9]\d*$",
    "liquidity": r"^(0|[1-9]\d*)$",
}


class LogError(ChainError):
    """A node answered with a log that was not asked for or is not a Swap event."""


class RawSwapsError(ChainError):
    """A table of raw swaps breaks one of its own rules."""


def empty_raw_swaps() -> pl.DataFrame:
    """A day without swaps: no rows, every column with its type."""
    return _NO_SWAPS.clone()


def decode_swap_logs(logs: Sequence[Mapping[str, Any]], pool: PoolSpec) -> pl.DataFrame:
    """Turn the answer of ``eth_getLogs`` into raw swaps, all logs at once.

    Args:
        logs: Log objects as JSON-RPC gives them, hex strings and all, in any order.
        pool: Whose logs were asked for.

    Returns:
        RAW_SWAPS_SCHEMA, in the order of the logs. ``block_timestamp`` is null where the node gives none with a log, or
        zero, which some nodes write for "not known"; ``tx_from`` and ``tx_to`` are null.

    Raises:
        LogError: if a log lacks a field, comes from another contract or pool, was removed by a reorganisation, or is
            not laid out as the event is.
    """
    # A slice at a time: the same swaps as Python objects and as text take many times their final size.
    slices = [_decode(logs[start : start + _SLICE_ROWS], pool) for start in range(0, len(logs), _SLICE_ROWS)]
    return pl.concat(slices) if slices else empty_raw_swaps()


def _decode(logs: Sequence[Mapping[str, Any]], pool: PoolSpec) -> pl.DataFrame:
    try:
        columns = {name: [log[name] for log in logs] for name in _LOG_FIELDS}
    except (KeyError, TypeError) as error:
        raise LogError(f"the node answered with a log without the field {error}") from None
    columns["blockTimestamp"] = [log.get("blockTimestamp") for log in logs]
    columns["removed"] = [bool(log.get("removed")) for log in logs]
    _check_topics(columns["topics"])
    topics = columns.pop("topics")
    columns |= {f"topic{i}": [topic[i] for topic in topics] for i in range(3)}
    try:
        table = pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String()) | {"removed": pl.Boolean()})
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError) as error:
        raise LogError(f"the node answered with a log whose fields are not hex strings: {str(error)[:200]}") from None
    table = table.with_columns(pl.exclude("removed").str.to_lowercase())
    _check_logs(table, pool)
    return table.select(*_placed(pool), *decode_swap_data(table["data"]), *_UNKNOWN_PEOPLE)


# Expressions are made once for each pool and day: with the hundreds of small ranges of a free tier, making them takes
# longer than evaluating them.


@lru_cache
def _placed(pool: PoolSpec) -> list[pl.Expr]:
    """EVENT_COLUMNS from the columns of logs."""
    return [
        pl.lit(pool.chain_id, pl.Int64()).alias("chain_id"),
        pl.lit(pool.pool_id.lower()).alias("pool_id"),
        _hex_integer("blockNumber").alias("block_number"),
        pl.col("blockHash").alias("block_hash"),
        (_hex_integer("blockTimestamp").replace(0, None) * 1_000_000)
        .cast(pl.Datetime("us", "UTC"))
        .alias("block_timestamp"),
        pl.col("transactionHash").alias("transaction_hash"),
        _hex_integer("transactionIndex").alias("transaction_index"),
        _hex_integer("logIndex").alias("log_index"),
        ("0x" + pl.col("topic2").str.tail(40)).alias("sender"),
    ]


def decode_swap_data(data: pl.Series) -> pl.DataFrame:
    """The six words in the data of Swap events.

    Args:
        data: ``0x`` and 384 hex digits each; the caller has checked that.

    Returns:
        ``amount0``, ``amount1``, ``sqrt_price_x96``, ``liquidity`` (decimal strings), ``tick`` and ``fee`` (Int32).

    Raises:
        LogError: if a word holds a value that its type cannot have.
    """
    words = _words(data)
    return pl.DataFrame(
        {
            "amount0": _decimal_strings(words, 0, signed=True),
            "amount1": _decimal_strings(words, 1, signed=True),
            "sqrt_price_x96": _decimal_strings(words, 2, signed=False),
            "liquidity": _decimal_strings(words, 3, signed=False),
            "tick": _small_integer(words, 4),
            "fee": _small_integer(words, 5),
        }
    )


def check_raw_swaps(df: pl.DataFrame, day: date) -> None:
    """Make sure that a table holds one UTC day of swaps, each once and in order.

    Raises:
        RawSwapsError: naming the rule that is broken and the first row that breaks it.
    """
    if df.schema != RAW_SWAPS_SCHEMA:
        differing = sorted(set(df.schema.items()) ^ set(RAW_SWAPS_SCHEMA.items()), key=str)
        raise RawSwapsError(
            f"raw swaps of {day} have other columns than RAW_SWAPS_SCHEMA: {differing or 'their order'}"
        )
    if df.is_empty():
        return
    rules = _row_rules(day)
    # In one pass: a range holds few swaps as a rule, and a query costs more than its rows.
    violated = df.select(broken.any().alias(what) for what, broken in rules.items()).row(0, named=True)
    for what in (what for what, is_broken in violated.items() if is_broken):
        _refuse(df, day, df.select(rules[what]).to_series(), what)
    _refuse(df, day, pl.Series(contradicting_ticks(df)), "a tick that contradicts its sqrt_price_x96")


@lru_cache
def _row_rules(day: date) -> dict[str, pl.Expr]:
    """What must not be, and the rows where it is."""
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    required = [name for name in RAW_SWAPS_SCHEMA if name not in NULLABLE_COLUMNS]
    moment = pl.col("block_timestamp")
    block_step, log_step = (pl.col(name).diff().fill_null(1) for name in SWAP_KEY)
    same_block = block_step == 0
    other_block_values = pl.any_horizontal(
        pl.col(name).ne_missing(pl.col(name).shift(1)) for name in ("block_hash", "block_timestamp")
    )
    return {
        f"a value missing in one of {required}": pl.any_horizontal(pl.col(required).is_null()),
        f"a block_timestamp outside the UTC day {day}": ~moment.is_between(
            start, start + timedelta(days=1), closed="left"
        ),
        "rows that are not sorted by (block_number, log_index)": (block_step < 0) | (same_block & (log_step < 0)),
        # From here on the rows are known to be sorted: what belongs together stands together.
        "the same (block_number, log_index) twice": same_block & (log_step == 0),
        "one block with two hashes or two timestamps": same_block & other_block_values,
        "a block older than the block before it": (moment < moment.shift(1)).fill_null(False),
        **{
            f"a {name} that is not a decimal integer": ~pl.col(name).str.contains(pattern)
            for name, pattern in _DECIMAL.items()
        },
    }


def contradicting_ticks(df: pl.DataFrame) -> np.ndarray:
    """Which rows have a tick that their square-root price cannot have, or an impossible price; bool [n].

    A swap that stops exactly on an initialised tick on its way down reports the tick below (``Pool.sol``), so both are
    right there.

    Args:
        df: With ``sqrt_price_x96`` (decimal strings) and ``tick``.
    """
    # Python integers are large: a slice at a time keeps a day of a million swaps small.
    slices = [_contradicting_ticks(part) for part in df.iter_slices(_SLICE_ROWS)]
    return np.concatenate(slices) if slices else np.zeros(0, dtype=bool)


def _contradicting_ticks(df: pl.DataFrame) -> np.ndarray:
    prices = np.array([int(value) for value in df["sqrt_price_x96"]], dtype=object)
    impossible = ((prices < MIN_SQRT_PRICE) | (prices >= MAX_SQRT_PRICE)).astype(bool)
    found = ticks_at_sqrt_prices(np.where(impossible, MIN_SQRT_PRICE, prices))
    given = df["tick"].to_numpy().astype(np.int64)
    wrong = impossible | (found != given)
    for row in np.flatnonzero(wrong & ~impossible & (found - 1 == given)):
        wrong[row] = prices[row] != sqrt_price_at_tick(int(found[row]))
    return wrong


def _refuse(df: pl.DataFrame, day: date, broken: pl.Series, what: str) -> None:
    if broken.any():
        rows = df.filter(broken)
        first = rows.row(0, named=True)
        shown = {name: first[name] for name in ("block_number", "log_index", "block_timestamp", "transaction_hash")}
        raise RawSwapsError(f"raw swaps of {day} contain {what}: {rows.height} rows, the first is {shown}")


def _check_topics(topics: Sequence[Any]) -> None:
    if any(not isinstance(topic, list) or len(topic) != 3 for topic in topics):
        raise LogError("the node answered with a log that has not three topics; a Swap event has id and sender indexed")


@lru_cache
def _log_rules(pool: PoolSpec) -> list[pl.Expr]:
    """For each rule that a log must keep, named by what a log that breaks it does: where it is broken."""
    rules = {
        f"comes from another contract than {pool.pool_manager}": pl.col("address") == pool.pool_manager.lower(),
        "is not a Swap event": pl.col("topic0") == SWAP_TOPIC,
        f"belongs to another pool than {pool.pool_id}": pl.col("topic1") == pool.pool_id.lower(),
        "was removed by a reorganisation": ~pl.col("removed"),
        "has no well-formed sender": pl.col("topic2").str.contains(r"^0x0{24}[0-9a-f]{40}$"),
        "does not carry six words of data": pl.col("data").str.contains(
            rf"^0x[0-9a-f]{{{2 * _WORD_BYTES * len(_DATA_TYPES)}}}$"
        ),
        "has a malformed number or hash": pl.all_horizontal(
            pl.col("blockNumber", "transactionIndex", "logIndex").str.contains(r"^0x[0-9a-f]{1,15}$"),
            pl.col("blockTimestamp").is_null() | pl.col("blockTimestamp").str.contains(r"^0x[0-9a-f]{1,9}$"),
            pl.col("blockHash", "transactionHash").str.contains(r"^0x[0-9a-f]{64}$"),
        ),
    }
    return [(~rule.fill_null(False)).alias(what) for what, rule in rules.items()]


def _check_logs(table: pl.DataFrame, pool: PoolSpec) -> None:
    # All rules in one pass over the table: most ranges hold few logs, and a query costs more than its rows.
    broken = table.select(_log_rules(pool))
    for what, is_broken in broken.select(pl.all().any()).row(0, named=True).items():
        if is_broken:
            rows = table.filter(broken[what])
            where = rows.select("blockNumber", "logIndex").row(0)
            raise LogError(
                f"the node answered with {rows.height} logs that do not belong in the answer: the log at "
                f"(block, index) {where} {what}"
            )


def _hex_integer(name: str) -> pl.Expr:
    return pl.col(name).str.strip_prefix("0x").str.to_integer(base=16, dtype=pl.Int64())


def _words(data: pl.Series) -> np.ndarray:
    # [n, 6, 32] bytes: one conversion for all logs, after the length of each has been checked.
    joined = bytes.fromhex("".join(data.str.slice(2).to_list()))
    words = np.frombuffer(joined, dtype=np.uint8).reshape(len(data), len(_DATA_TYPES), _WORD_BYTES)
    for number, (kind, width) in enumerate(_DATA_TYPES):
        # A value fills the end of its word; what stands before it is zero or repeats the sign.
        before, first = words[:, number, :-width], words[:, number, -width]
        filling = np.where(first >> 7, 0xFF, 0)[:, None] if kind.startswith("int") else 0
        if (before != filling).any():
            raise LogError(f"word {number} of a Swap event does not hold a value of {kind}")
    return words


def _decimal_strings(words: np.ndarray, word: int, *, signed: bool) -> list[str]:
    # The only values that fit no column type of numpy: cut the words apart and let Python convert them.
    column = words[:, word].tobytes()
    cuts = range(0, len(column), _WORD_BYTES)
    return [str(int.from_bytes(column[cut : cut + _WORD_BYTES], "big", signed=signed)) for cut in cuts]


def _small_integer(words: np.ndarray, word: int) -> np.ndarray:
    # int24 and uint24, with the filling before them, are also four-byte integers.
    return np.ascontiguousarray(words[:, word, -4:]).view(">i4")[:, 0].astype(np.int32)
