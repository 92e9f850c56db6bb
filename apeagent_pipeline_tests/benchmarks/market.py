"""What features and windows of a million swaps cost, beside a plain pandas implementation of both.

Run it with ``python -m apeagent_pipeline_tests.benchmarks.market``. Both read the same daily Parquet files of raw swaps
and write Parquet, a file of features a day and one of windows, as the assets do, each in a process of its own. With
``--growth`` this package alone makes them of one and of ten million swaps, beside reading the same files.
"""

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import polars.selectors as cs
from polars.testing import assert_frame_equal
from rich.console import Console
from rich.table import Table

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.amm.swap_math import swap_step
from apeagent_pipeline.amm.ticks import Q96, ticks_at_sqrt_prices
from apeagent_pipeline.chain.days import BLOCK_SECONDS, FIRST_DAY, SECONDS_PER_DAY, first_block_of, timestamp_of
from apeagent_pipeline.chain.events import RAW_SWAPS_SCHEMA
from apeagent_pipeline.market.features import SWAP_FEATURES_SCHEMA, swap_features
from apeagent_pipeline.market.windows import FREE_FEATURES, TABLE_FILE, WindowsConfig, write_training_windows

DAYS = 30
SEED = 20_250_121
RAW, FEATURES = "raw_swaps", "swap_features"
COMPARED = [*SWAP_FEATURES_SCHEMA, *FREE_FEATURES, "segment"]  # how rows are split into sets is each one's own
OURS, PANDAS = "this package", "plain pandas"
MOST_SECONDS, MOST_MIB, ASKED_SWAPS = 10.0, 2048, 1_000_000

console = Console(width=120)


class Cost(NamedTuple):
    """(Wall, CPU) seconds of features and windows, and the peak resident memory of the process in MiB."""

    features: tuple[float, float]
    windows: tuple[float, float]
    peak: float

    @property
    def whole(self) -> tuple[float, float]:
        return self.features[0] + self.windows[0], self.features[1] + self.windows[1]


# The swaps

_integers = np.frompyfunc(int, 1, 1)


def raw_day(day: date, swaps: int) -> pl.DataFrame:
    """So many swaps on a day, each exact by the pool's arithmetic, with moves and changes of liquidity between them."""
    rng = np.random.default_rng([SEED, day.toordinal()])
    blocks = first_block_of(day) + np.sort(rng.integers(SECONDS_PER_DAY // BLOCK_SECONDS, size=swaps))
    price = 3_300.0 * np.exp(np.cumsum(rng.normal(0, 2e-4, swaps)))
    # Liquidity mostly stays; now and then the range is all but empty.
    drawn = 5e16 * np.exp(rng.normal(0, 0.1, swaps))
    drawn = drawn[np.maximum.accumulate(np.where(rng.random(swaps) < 0.28, np.arange(swaps), 0))]
    liquidity = _integers(np.where(rng.random(swaps) < 1e-4, drawn / 100, drawn))
    size = _integers(1e6 * np.where(rng.random(swaps) < 0.2, 300.0, rng.lognormal(5, 1.2, swaps)))
    sells = rng.random(swaps) < 0.5
    before, specified = _integers(np.sqrt(price / 1e12) * Q96), np.where(sells, size, -size)
    after, amount0, amount1 = swap_step(before, liquidity, specified, sells, BASE_ETH_USDC.fee)
    place = np.arange(swaps) - np.searchsorted(blocks, blocks)
    transactions = rng.integers(1 << 62, size=swaps).tolist()
    columns = {
        "chain_id": BASE_ETH_USDC.chain_id,
        "pool_id": BASE_ETH_USDC.pool_id,
        "block_number": blocks,
        "block_hash": [f"0x{block:064x}" for block in blocks.tolist()],
        "block_timestamp": pl.from_epoch(pl.Series(timestamp_of(blocks)), "s").dt.replace_time_zone("UTC"),
        "transaction_hash": [f"0x{each:064x}" for each in transactions],
        "transaction_index": place,
        "log_index": place,
        "sender": [f"0x{each % 400:040x}" for each in transactions],
        "amount0": amount0.astype(str),
        "amount1": amount1.astype(str),
        "sqrt_price_x96": after.astype(str),
        "liquidity": liquidity.astype(str),
        "tick": ticks_at_sqrt_prices(after),
        "fee": BASE_ETH_USDC.fee,
        "tx_from": None,
        "tx_to": None,
    }
    return pl.DataFrame(columns).cast(dict(RAW_SWAPS_SCHEMA))


def write_raw_swaps(folder: Path, swaps: int) -> None:
    """A Parquet file of raw swaps for each of `DAYS` days."""
    (folder / RAW).mkdir()
    for i in range(DAYS):
        day = FIRST_DAY + timedelta(days=i)
        raw_day(day, swaps // DAYS).write_parquet(folder / RAW / f"{day}.parquet")


# The ways, each in a process of its own


def with_this_package(folder: Path, output: Path) -> Cost:
    """As the assets ``swap_features`` and ``training_windows`` do it."""

    def features() -> None:
        previous = None
        for path in sorted((folder / RAW).iterdir()):
            raw = pl.scan_parquet(path).collect()
            swap_features(raw, BASE_ETH_USDC, previous).write_parquet(output / FEATURES / path.name)
            previous = raw

    def windows() -> None:
        days = [pl.scan_parquet(path) for path in sorted((output / FEATURES).iterdir())]
        write_training_windows(days, BASE_ETH_USDC, WindowsConfig(), output)

    return _cost(features, windows)


def with_pandas(folder: Path, output: Path) -> Cost:
    """The same by `plain_pandas`."""
    import pandas as pd

    from apeagent_pipeline_tests.benchmarks import plain_pandas

    def features() -> None:
        previous = None
        for path in sorted((folder / RAW).iterdir()):
            raw = pd.read_parquet(path)
            made = plain_pandas.swap_features(raw, BASE_ETH_USDC, previous)
            made[list(SWAP_FEATURES_SCHEMA)].to_parquet(output / FEATURES / path.name, index=False)
            previous = raw

    def windows() -> None:
        days = [pd.read_parquet(path) for path in sorted((output / FEATURES).iterdir())]
        table, _ = plain_pandas.training_windows(pd.concat(days), BASE_ETH_USDC, WindowsConfig())
        table.to_parquet(output / TABLE_FILE, index=False)

    return _cost(features, windows)


def scan(folder: Path) -> Cost:
    """Read every column of the raw swaps, a day at a time: no program that needs the values is faster."""

    def read() -> None:
        for path in sorted((folder / RAW).iterdir()):
            pl.scan_parquet(path).collect()

    return _cost(read, lambda: None)


def _cost(features: Callable[[], None], windows: Callable[[], None]) -> Cost:
    seconds = []
    for part in (features, windows):
        begun = time.perf_counter(), time.process_time()
        part()
        seconds.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
    return Cost(seconds[0], seconds[1], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a fresh process. This one stays small, for a child's peak begins at its parent's."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


def greatest_difference(one: Path, other: Path) -> float:
    """Between the numbers of two ways, of all features and windows, relative to the deviation of their column.

    Raises:
        AssertionError: if the rows, a value that is no float, or the place of a null differ.
    """
    worst = 0.0
    for table, names in ((f"{FEATURES}/*.parquet", [*SWAP_FEATURES_SCHEMA]), (TABLE_FILE, COMPARED)):
        kinds = pl.scan_parquet(one / table).select(names).collect_schema()
        ours, theirs = (pl.read_parquet(each / table, columns=names).cast(dict(kinds)) for each in (one, other))
        floats = pl.col(pl.Float64)
        assert_frame_equal(ours.select(~cs.float()), theirs.select(~cs.float()))
        assert ours.null_count().equals(theirs.null_count())
        apart = (ours.select(floats) - theirs.select(floats)).select(floats.abs().max())
        worst = max(worst, *(apart / ours.select(floats.std())).row(0))
    return worst


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--swaps", type=int, default=ASKED_SWAPS, help=f"on {DAYS} days")
    parser.add_argument("--growth", action="store_true", help="one and ten million swaps, without pandas")
    arguments = parser.parse_args()
    if arguments.growth:
        growth()
        return
    ways = {OURS: with_this_package, PANDAS: with_pandas}
    title = (
        f"{arguments.swaps:,} swaps of {DAYS} days: wall seconds (CPU seconds), reading and writing Parquet included"
    )
    shown = Table("way", "features", "windows", "together", "peak MiB", title=title)
    costs: dict[str, Cost] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone(write_raw_swaps, folder, arguments.swaps)
        for way, work in ways.items():
            (folder / way / FEATURES).mkdir(parents=True)
            costs[way] = cost = alone(work, folder, folder / way)
            parts = [f"{wall:.2f} ({cpu:.2f})" for wall, cpu in (cost.features, cost.windows, cost.whole)]
            shown.add_row(way, *parts, f"{cost.peak:.0f}")
        console.print(shown)
        difference = alone(greatest_difference, folder / OURS, folder / PANDAS)
        console.print(f"Greatest difference between the two: {difference:.1e} of a column's deviation")
    if arguments.swaps == ASKED_SWAPS:
        judge(costs[OURS])
    tell_load()


def growth() -> None:
    """Rows a second and peak memory of one and ten million swaps, each in a fresh process."""
    shown = Table("swaps", "what", "CPU seconds", "rows a CPU second", "peak MiB", title=f"{DAYS} days")
    for swaps in (ASKED_SWAPS, 10 * ASKED_SWAPS):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            alone(write_raw_swaps, folder, swaps)
            (folder / OURS / FEATURES).mkdir(parents=True)
            read, made = alone(scan, folder), alone(with_this_package, folder, folder / OURS)
        for what, cpu, peak in (
            ("reading the files", read.whole[1], read.peak),
            ("features", made.features[1], None),
            ("windows", made.windows[1], made.peak),
        ):
            peaks = "" if peak is None else f"{peak:,.0f}"
            shown.add_row(f"{swaps:,}", what, f"{cpu:.2f}", f"{swaps / cpu:,.0f}", peaks)
    console.print(shown)
    tell_load()


def tell_load() -> None:
    """How busy the machine was: others take from what is measured."""
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    console.print(f"{os.cpu_count()} cores; load average at the end {load}")


def judge(cost: Cost) -> None:
    """What was asked for beside what was measured."""
    shown = Table(f"target for {ASKED_SWAPS:,} swaps", "asked for", "measured", "met")
    wall, cpu = cost.whole
    for target, most, measured, unit in (
        ("wall", MOST_SECONDS, wall, " s"),
        ("CPU", MOST_SECONDS, cpu, " s"),
        ("peak memory", MOST_MIB, cost.peak, " MiB"),
    ):
        shown.add_row(target, f"< {most:.4g}{unit}", f"{measured:.4g}{unit}", "yes" if measured < most else "MISSED")
    console.print(shown)


if __name__ == "__main__":
    main()
