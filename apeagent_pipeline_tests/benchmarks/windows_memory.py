"""What training windows of one and ten million swaps cost: days read one by one, and one table of all days.

    python -m apeagent_pipeline_tests.benchmarks.windows_memory [--swaps 1000000,10000000] [--record]

The features of 30 days are made first: one day, repeated. Each way then makes the windows of them in a process of its
own. The table of all days is how the package did it before (`apeagent_pipeline_tests.market.whole_table`). Both write
the same bytes, which is compared. ``--record`` writes the table to the recorded results.
"""

import argparse
import hashlib
import json
import os
import resource
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import polars as pl
from rich.console import Console
from rich.table import Table

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.chain.days import BLOCK_SECONDS, FIRST_DAY, SECONDS_PER_DAY
from apeagent_pipeline.market.features import swap_features
from apeagent_pipeline.market.windows import SCALER_FILE, TABLE_FILE, WindowsConfig, write_training_windows
from apeagent_pipeline_tests.benchmarks.market import DAYS, alone, raw_day
from apeagent_pipeline_tests.docs.results import record
from apeagent_pipeline_tests.market.whole_table import whole_table_windows

COLUMNS = ["swaps", "way", "CPU s", "wall s", "peak MiB"]
TARGET_MIB = 2048


class Cost(NamedTuple):
    """CPU and wall seconds, the peak resident memory of the process in MiB, and a hash of the files."""

    cpu: float
    wall: float
    peak: float
    digest: str


def write_features(folder: Path, swaps: int) -> None:
    """A Parquet file of swap features for each of `DAYS` days: one day, repeated on the others."""
    features = swap_features(raw_day(FIRST_DAY, swaps // DAYS), BASE_ETH_USDC)
    features = features.with_columns(pl.col("seconds_since_previous", "tick_change").fill_null(0))
    for i in range(DAYS):
        dated = features.with_columns(
            block_number=pl.col("block_number") + i * SECONDS_PER_DAY // BLOCK_SECONDS,
            block_timestamp=pl.col("block_timestamp") + timedelta(days=i),
        )
        dated.write_parquet(folder / f"{FIRST_DAY + timedelta(days=i)}.parquet")


def by_day(features: Path, output: Path) -> Cost:
    """As the asset ``training_windows`` does it."""
    return _cost(features, output, whole=False)


def whole_table(features: Path, output: Path) -> Cost:
    """As it did it before."""
    return _cost(features, output, whole=True)


def _cost(features: Path, output: Path, *, whole: bool) -> Cost:
    output.mkdir()
    days = [pl.scan_parquet(path) for path in sorted(features.iterdir())]
    wall, cpu = time.perf_counter(), time.process_time()
    if whole:
        windows = whole_table_windows(pl.concat(days).collect(), BASE_ETH_USDC, WindowsConfig())
        windows.table.write_parquet(output / TABLE_FILE)
        (output / SCALER_FILE).write_text(json.dumps(windows.scaler, indent=2, sort_keys=True) + "\n")
    else:
        write_training_windows(days, BASE_ETH_USDC, WindowsConfig(), output)
    spent = time.process_time() - cpu, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    digest = hashlib.sha256()
    for name in (TABLE_FILE, SCALER_FILE):
        with (output / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return Cost(*spent, peak, digest.hexdigest())


def main() -> None:
    """Measure, print and perhaps record the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", default="1000000,10000000")
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    console, rows = Console(width=120), []
    for swaps in map(int, arguments.swaps.split(",")):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "features").mkdir()
            alone(write_features, folder / "features", swaps)
            costs = {}
            for way, work in {"one table of all days (before)": whole_table, "day by day (now)": by_day}.items():
                costs[way] = cost = alone(work, folder / "features", folder / work.__name__)
                rows.append([f"{swaps:,}", way, f"{cost.cpu:.1f}", f"{cost.wall:.1f}", f"{cost.peak:,.0f}"])
                console.print(*rows[-1])
            if len({cost.digest for cost in costs.values()}) > 1:
                raise SystemExit(f"the files of {swaps:,} swaps differ between the ways")
    shown = Table(*COLUMNS, title=f"windows of {DAYS} days")
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    load = f"load average {os.getloadavg()[0]:.1f}"
    console.print(load)
    if arguments.record:
        command = "python -m apeagent_pipeline_tests.benchmarks.windows_memory --record"
        notes = [
            f"{DAYS} days, each with the swaps of one made day; the features are not measured. Both ways wrote the "
            "same bytes, of the table and of the scaler, for each number of swaps.",
            f"The target is {TARGET_MIB:,} MiB for any number of days. Two bytes of each swap stay in memory. Each "
            "free feature is fitted in files of eight bytes a row that are mapped, not read.",
        ]
        record("windows_memory", command, COLUMNS, rows, notes, f"one core, {load}")


if __name__ == "__main__":
    main()
