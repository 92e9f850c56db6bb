"""A day of swaps at a glance."""

import polars as pl

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.amm.price import price_from_sqrt_price
from apeagent_pipeline.reporting.figures import new_figure, png

_HOUR_S = 3600


def day_figure(swaps: pl.DataFrame, pool: PoolSpec) -> bytes:
    """Price and swaps an hour of one UTC day, as a PNG; hours without a swap stand out as gaps.

    Args:
        swaps: Rows of raw swaps of one day.
        pool: Gives the decimals of the price.
    """
    day = swaps.select(
        hour=(pl.col("block_timestamp") - pl.col("block_timestamp").dt.truncate("1d")).dt.total_seconds() / _HOUR_S,
        price=price_from_sqrt_price(pl.col("sqrt_price_x96").cast(pl.Float64), pool),
    )
    figure, axes = new_figure(2, 1, size=(7.0, 3.4))
    price, count = axes[:, 0]
    price.plot(day["hour"], day["price"], linewidth=0.9, drawstyle="steps-post", color="#1f77b4")
    price.set(ylabel=f"{pool.token1.symbol} an {pool.token0.symbol}", xlim=(0, 24), xticks=range(0, 25, 3))
    count.hist(day["hour"], bins=range(25), color="#1f77b4", alpha=0.8, rwidth=0.9)
    count.set(ylabel="swaps an hour", xlabel="hour of the day (UTC)", xlim=(0, 24), xticks=range(0, 25, 3))
    return png(figure)


def longest_gap(swaps: pl.DataFrame) -> int:
    """Longest time of a day without a swap, in seconds, from midnight to midnight."""
    seconds = swaps.select(
        (pl.col("block_timestamp") - pl.col("block_timestamp").dt.truncate("1d")).dt.total_seconds()
    ).to_series()
    edges = pl.concat([pl.Series([0]), seconds.cast(pl.Int64), pl.Series([24 * _HOUR_S])])
    longest = edges.diff().max()
    assert isinstance(longest, int)
    return longest
