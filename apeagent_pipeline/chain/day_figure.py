"""The picture of a day of swaps: what it traded at, how busy it was, and where nothing happened."""

import numpy as np
import polars as pl

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.amm.price import price_from_sqrt_price
from apeagent_pipeline.reporting.figures import new_figure, png

_PRICE, _BARS = "#4c566a", "#88a7c8"


def day_figure(swaps: pl.DataFrame, pool: PoolSpec) -> bytes:
    """Price over the hours, swaps an hour, and how long the pool was silent between two swaps.

    A day that lacks a stretch of blocks shows it three times: a straight line, a low bar, a gap apart from the rest.

    Args:
        swaps: RAW_SWAPS_SCHEMA of one UTC day, sorted.
        pool: Gives the decimals and symbols of the tokens.

    Returns:
        A PNG; of a day without swaps one that says so.
    """
    # One of these is drawn for each day. Fixed margins, titles at a fixed height and one shape for all bars save two
    # thirds of the time that matplotlib's own layout takes.
    figure, axes = new_figure(1, 3, size=(11, 2.8), layout=None)
    figure.subplots_adjust(left=0.085, right=0.99, bottom=0.18, top=0.9, wspace=0.2)
    price_axis, count_axis, gap_axis = axes[0]
    time = pl.col("block_timestamp")
    of_day = (time - time.dt.truncate("1d")).dt.total_seconds()
    hours = swaps.select(of_day / 3_600).to_series()
    price = swaps.select(price_from_sqrt_price(pl.col("sqrt_price_x96").cast(pl.Float64), pool)).to_series()
    gaps = swaps.select(time.diff().dt.total_seconds().drop_nulls()).to_series()
    if swaps.is_empty():
        price_axis.text(0.5, 0.5, "no swaps", ha="center", va="center", transform=price_axis.transAxes)
    price_axis.plot(hours, price, color=_PRICE, linewidth=0.9)
    price_axis.ticklabel_format(axis="y", useOffset=False)
    price_axis.set(xlabel="hour (UTC)", xlim=(0, 24))
    count_axis.stairs(*np.histogram(hours.to_numpy(), bins=range(25)), fill=True, color=_BARS)
    count_axis.set(xlabel="hour (UTC)", xlim=(0, 24), ylim=(0, None))
    longest = f"{int(gaps.to_numpy().max()):,} s" if gaps.len() else "none"
    gap_axis.stairs(*np.histogram(gaps.to_numpy(), bins=40), fill=True, color=_BARS)
    if gaps.len():
        gap_axis.set_yscale("log")
    gap_axis.set(xlabel="seconds")
    titles = (
        f"price ({pool.token1.symbol} per {pool.token0.symbol})",
        f"swaps an hour ({swaps.height:,} in all)",
        f"gaps between swaps (longest: {longest})",
    )
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, y=1.0, fontsize=9)
    for axis in (price_axis, count_axis):
        axis.set_xticks(range(0, 25, 6))
    return png(figure)
