"""The ModifyLiquidity event: its table, and how a node's logs become that table.

Source: ``IPoolManager.sol`` of Uniswap v4-core, ``ModifyLiquidity(bytes32 indexed id, address indexed sender, int24
tickLower, int24 tickUpper, int256 liquidityDelta, bytes32 salt)``.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.amm.ticks import MAX_TICK, MIN_TICK
from apeagent_pipeline.chain.events import EVENT_COLUMNS, SWAP_KEY, LogError, RawSwapsError

LIQUIDITY_TOPIC = "0xf208f4912782fd25c7f114ca3723a2d5dd6f3bcc3ac8db5af63baa85f711d5ec"
"""Keccak-256 of the event's signature."""

LIQUIDITY_SCHEMA = pl.Schema(
    {
        **EVENT_COLUMNS,
        "tick_lower": pl.Int32(),
        "tick_upper": pl.Int32(),
        "liquidity_delta": pl.String(),
        "salt": pl.String(),
    }
)
"""One row a change of a position. ``liquidity_delta`` is a decimal string: a 256-bit integer loses no digit."""

COLUMN_DESCRIPTIONS = {
    "tick_lower": "Lowest tick of the position",
    "tick_upper": "First tick above the position",
    "liquidity_delta": "Liquidity that was added to the position, decimal string; negative: taken away",
    "salt": "Tells positions of one owner and the same ticks apart, 32 bytes hex",
}
"""What each column that this module adds means, with its unit; shown in the UI as the column schema."""

_NO_CHANGES = LIQUIDITY_SCHEMA.to_frame()
_WORDS = 4
_LARGEST_DELTA = 1 << 128


def empty_liquidity() -> pl.DataFrame:
    """A day without liquidity changes: no rows, every column with its type."""
    return _NO_CHANGES.clone()


def decode_liquidity_logs(logs: Sequence[Mapping[str, Any]], pool: PoolSpec) -> pl.DataFrame:
    """The table of ModifyLiquidity logs.

    Args:
        logs: Log objects as JSON-RPC gives them, in any order. They are few: one for about ten swaps.
        pool: The pool whose logs were asked for.

    Returns:
        LIQUIDITY_SCHEMA in the order of the logs. ``block_timestamp`` is null where the node does not tell it.

    Raises:
        LogError: if a log lacks a field, belongs to another contract or pool, was removed by a reorganisation, or does
            not have the layout of the event.
    """
    if not logs:
        return empty_liquidity()  # most ranges
    return pl.DataFrame([_row(log, pool) for log in logs], schema=LIQUIDITY_SCHEMA, orient="row")


def check_liquidity(df: pl.DataFrame, day: date) -> None:
    """Make sure that a table holds liquidity changes of one UTC day, each once and in order.

    Raises:
        RawSwapsError: naming the rule that is broken.
    """
    if df.schema != LIQUIDITY_SCHEMA:
        raise RawSwapsError(f"liquidity changes of {day} contain other columns than LIQUIDITY_SCHEMA")
    if df.is_empty():
        return
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    rules = {
        "rows that are not sorted by (block_number, log_index)": not df.select(SWAP_KEY).equals(
            df.select(SWAP_KEY).sort(SWAP_KEY)
        ),
        "the same (block_number, log_index) twice": df.select(SWAP_KEY).is_duplicated().any(),
        "a block_timestamp outside the day": not df.select(
            pl.col("block_timestamp").is_between(start, start + timedelta(days=1), closed="left").all()
        ).item(),
        "a tick_lower that is not below its tick_upper": not (df["tick_lower"] < df["tick_upper"]).all(),
    }
    for what, broken in rules.items():
        if broken:
            raise RawSwapsError(f"liquidity changes of {day} contain {what}")


def _row(log: Mapping[str, Any], pool: PoolSpec) -> tuple[Any, ...]:
    try:
        topics = [str(topic).lower() for topic in log["topics"]]
        data = bytes.fromhex(str(log["data"])[2:])
        number, index, transaction = (int(log[name], 16) for name in ("blockNumber", "logIndex", "transactionIndex"))
        address, hashes = str(log["address"]).lower(), [str(log[n]).lower() for n in ("blockHash", "transactionHash")]
        stamp = int(log.get("blockTimestamp") or "0x0", 16)
    except (KeyError, TypeError, ValueError) as error:
        raise LogError(f"the node answered with a malformed ModifyLiquidity log: {error}") from None
    where = f"the ModifyLiquidity log at (block, index) {(number, index)}"
    if (
        address != pool.pool_manager.lower()
        or len(topics) != 3
        or topics[:2] != [LIQUIDITY_TOPIC, pool.pool_id.lower()]
    ):
        raise LogError(f"the node answered with logs that do not belong in the answer: {where} is of another pool")
    if log.get("removed"):
        raise LogError(f"the node answered with logs that do not belong in the answer: {where} was removed")
    if len(data) != 32 * _WORDS or any(len(each) != 66 for each in hashes) or stamp > 1 << 36:
        raise LogError(f"the node answered with {where}, which does not have the layout of the event")
    lower, upper, delta = (int.from_bytes(data[32 * i : 32 * i + 32], "big", signed=True) for i in range(3))
    if not MIN_TICK <= lower < upper <= MAX_TICK or abs(delta) >= _LARGEST_DELTA:
        raise LogError(f"the node answered with {where}, whose values are impossible")
    moment = datetime.fromtimestamp(stamp, UTC) if stamp else None
    place = (pool.chain_id, pool.pool_id.lower(), number, hashes[0], moment, hashes[1], transaction, index)
    return *place, "0x" + topics[2][-40:], lower, upper, str(delta), "0x" + data[96:].hex()
