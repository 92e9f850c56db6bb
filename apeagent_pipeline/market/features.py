"""Features of swaps, one row per swap. Exact integers stay decimal strings; floats are derived from them."""

import polars as pl

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.amm.price import price_from_sqrt_price
from apeagent_pipeline.errors import ApeagentError

VOLATILITY_SWAPS = 24
"""Log returns in a volatility: the return of the swap itself and those of the swaps before it."""

VOLUME_SWAPS = 50
"""Swaps in a volume average, the swap itself included."""

HISTORY_SWAPS = max(VOLATILITY_SWAPS + 1, VOLUME_SWAPS)
"""Number of earlier swaps that the features of a swap depend on."""

Q96 = 2.0**96

SWAP_FEATURES_SCHEMA: dict[str, pl.DataType] = {
    "block_number": pl.Int64(),
    "log_index": pl.Int64(),
    "block_timestamp": pl.Datetime("us", "UTC"),
    "seconds_since_previous": pl.Int64(),
    "tick": pl.Int64(),
    "price": pl.Float64(),
    "amount0_eth": pl.Float64(),
    "amount1_usdc": pl.Float64(),
    "volume_usdc": pl.Float64(),
    "volatility": pl.Float64(),
    "volume_ma": pl.Float64(),
    "tick_change": pl.Int64(),
    "liquidity": pl.String(),
    "liquidity_usage": pl.Float64(),
    "sqrt_price_x96": pl.String(),
    "side": pl.String(),
}

COLUMN_DESCRIPTIONS = {
    "seconds_since_previous": "Seconds since the previous swap; null for the first swap known",
    "price": "Price after the swap, token1 per token0 (USDC per ETH)",
    "amount0_eth": "Token0 in whole tokens; negative is paid in by the swapper",
    "amount1_usdc": "Token1 in whole tokens; negative is paid in by the swapper",
    "volume_usdc": "Size of the swap in token1; of traces: of all swaps of the window",
    "volatility": "Root mean square of the last 24 log returns, per swap; of traces: its word",
    "volume_ma": "Mean size of the last 50 swaps in token1",
    "tick_change": "Ticks since the previous swap",
    "liquidity_usage": "Size of the swap as a share of the pool's virtual token1 reserve",
    "side": "BUY: the swapper received token0; SELL: the swapper paid it",
}
"""What each column that this module adds means, with its unit; shown in the UI as the column schema."""

SWAP_POSITION = ("block_number", "log_index", "block_timestamp")
"""The columns that locate a swap in the chain. A synthetic swap has all other columns of `SWAP_FEATURES_SCHEMA`."""

_RAW_COLUMNS = (
    "block_number",
    "log_index",
    "block_timestamp",
    "amount0",
    "amount1",
    "sqrt_price_x96",
    "liquidity",
    "tick",
)
_INTEGER_COLUMNS = ("amount0", "amount1", "sqrt_price_x96", "liquidity")


class FeaturesError(ApeagentError, ValueError):
    """Swaps whose features cannot be computed; the message names the column or row and the remedy."""


def swap_features(raw: pl.DataFrame, pool: PoolSpec, previous: pl.DataFrame | None = None) -> pl.DataFrame:
    """Compute the features of every swap of ``raw``.

    Args:
        raw: Swaps as `chain.events.RAW_SWAPS_SCHEMA` describes them, in (block_number, log_index) order.
        pool: The pool of the swaps; its decimals are used.
        previous: Swaps before ``raw`` (the same columns), so that the features of a day's first rows include the
            day before.

    Returns:
        One row per swap of ``raw`` with the columns of `SWAP_FEATURES_SCHEMA`:

        - ``seconds_since_previous``, ``tick_change``: null only for the first known swap.
        - ``price``: token1 per token0 after the swap, in human units (USDC per ETH).
        - ``amount0_eth``, ``amount1_usdc``: human units from the swapper's side (negative: paid into the pool).
        - ``volume_usdc``: size in token1.
        - ``volatility``: root mean square of the log returns of the last 24 swaps, this one included; null only for
          the first known swap.
        - ``volume_ma``: mean volume of the last 50 swaps, this one included.
        - ``liquidity_usage``: size divided by the virtual token1 reserve ``L * sqrt(price)`` of the active range; null
          if the range has no liquidity.
        - ``side``: "BUY" if the swapper received token0, else "SELL".

    Raises:
        FeaturesError: if a column is missing, a value is null or not a number, or the rows are out of order.
    """
    history = raw.clear() if previous is None else previous.select(raw.columns).tail(HISTORY_SWAPS)
    swaps = pl.concat([history, raw])
    _check(swaps)
    # Parsing the decimal strings costs more than all the arithmetic, so each is parsed once.
    numbers = swaps.with_columns(pl.col(_INTEGER_COLUMNS).cast(pl.Float64))
    numbers = numbers.with_columns(
        price=price_from_sqrt_price(pl.col("sqrt_price_x96"), pool),
        amount0_eth=pl.col("amount0") / 10.0**pool.token0.decimals,
        amount1_usdc=pl.col("amount1") / 10.0**pool.token1.decimals,
        tick=pl.col("tick").cast(pl.Int64),
        seconds_since_previous=pl.col("block_timestamp").diff().dt.total_seconds(),
        side=pl.when(pl.col("amount0") > 0).then(pl.lit("BUY")).otherwise(pl.lit("SELL")),
    ).with_columns(volume_usdc=pl.col("amount1_usdc").abs(), tick_change=pl.col("tick").diff())
    numbers = numbers.with_columns(
        volatility=volatility(), volume_ma=volume_average(), liquidity_usage=liquidity_usage(pool)
    )
    swaps = numbers.with_columns(swaps["sqrt_price_x96"], swaps["liquidity"])
    features = swaps.tail(raw.height) if raw.height else swaps.clear()
    return features.select(pl.col(name).cast(dtype) for name, dtype in SWAP_FEATURES_SCHEMA.items())


def volatility() -> pl.Expr:
    """Root mean square of the last `VOLATILITY_SWAPS` log returns of ``price``; null if there is no return."""
    squares = pl.col("price").log().diff().pow(2)
    # Rounding in the running sum can give a tiny negative mean.
    return squares.rolling_mean(VOLATILITY_SWAPS, min_samples=1).clip(lower_bound=0.0).sqrt()


def volume_average() -> pl.Expr:
    """Mean of the last `VOLUME_SWAPS` values of ``volume_usdc``."""
    return pl.col("volume_usdc").rolling_mean(VOLUME_SWAPS, min_samples=1)


def liquidity_usage(pool: PoolSpec) -> pl.Expr:
    """``volume_usdc`` divided by the virtual token1 reserve ``L * sqrt(price)``; null without liquidity."""
    usage = pl.col("volume_usdc") / virtual_reserve(pool)
    return pl.when(virtual_reserve(pool) > 0).then(usage)


def virtual_reserve(pool: PoolSpec) -> pl.Expr:
    """Virtual token1 reserve of the active range in human units: ``L * sqrt(price)``.

    The columns ``sqrt_price_x96`` and ``liquidity`` may be decimal strings, or floats if the caller has parsed them.
    """
    root = pl.col("sqrt_price_x96").cast(pl.Float64) / Q96
    return pl.col("liquidity").cast(pl.Float64) * root / 10.0**pool.token1.decimals


def swap_key() -> pl.Expr:
    """The key of a swap, ``{block_number:012d}-{log_index:06d}``: unique, and sorted by time as text.

    ``condition_id`` of a synthetic window is the key of the last real swap before the window.
    """
    digits = {"block_number": 12, "log_index": 6}
    return pl.format("{}-{}", *(pl.col(name).cast(pl.String).str.zfill(width) for name, width in digits.items()))


def in_order() -> pl.Expr:
    """Whether each row comes after the previous row by (block_number, log_index)."""
    blocks, logs = pl.col("block_number").diff(), pl.col("log_index").diff()
    return ((blocks > 0) | ((blocks == 0) & (logs > 0))).fill_null(True)


def _check(swaps: pl.DataFrame) -> None:
    missing = [name for name in _RAW_COLUMNS if name not in swaps.columns]
    if missing:
        raise FeaturesError(
            f"the swaps lack the columns {missing}; they have {swaps.columns}. See chain.events.RAW_SWAPS_SCHEMA"
        )
    empty = {name: count for name in _RAW_COLUMNS if (count := swaps[name].null_count())}
    if empty:
        raise FeaturesError(f"the swaps have missing values (column: count) {empty}; materialize raw_swaps again")
    for name in _INTEGER_COLUMNS:
        wrong = swaps.filter(~pl.col(name).cast(pl.String).str.contains(r"^-?\d+$"))
        if wrong.height:
            raise FeaturesError(
                f"{name}={wrong[name][0]!r} in block {wrong['block_number'][0]} is not a whole number; "
                "materialize raw_swaps of that day again"
            )
    if not swaps.select(in_order().all()).item():
        raise FeaturesError(
            "the swaps are not in strictly increasing (block_number, log_index) order; sort and de-duplicate them first"
        )
