"""Speed and memory of the archive import beside plain polars reads of the same file.

Run with ``python -m apeagent_pipeline_tests.benchmarks.archive_import --rows 10000000``. Prints a Markdown table:
seconds of polars reading every column, seconds of the import (all checks, all days), their ratio, and the peak memory
of either.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl

DAYS = 30
SLICE = 500_000


def made(rows: int, start: int, seed: pl.DataFrame) -> pl.DataFrame:
    """Swaps that follow from each other (except where the seed repeats), ``rows`` over `DAYS` days of Base."""
    from apeagent_pipeline.chain.days import BLOCK_SECONDS, GENESIS_TIMESTAMP, SECONDS_PER_DAY, first_block_of

    at = np.arange(start, min(start + SLICE, rows))
    block = first_block_of(date(2025, 2, 1)) + at * (DAYS * SECONDS_PER_DAY // BLOCK_SECONDS - 1) // rows
    table = seed[at % seed.height].with_columns(
        pl.Series("block_number", block),
        pl.Series("log_index", at),
        pl.Series("transaction_index", at),
        pl.Series("block_timestamp", (block * BLOCK_SECONDS + GENESIS_TIMESTAMP) * 1_000_000).cast(
            pl.Datetime("us", "UTC")
        ),
        pl.Series("transaction_hash", [f"0x{number * 0x9E3779B97F4A7C15 % (1 << 256):064x}" for number in at.tolist()]),
        pl.Series("block_hash", [f"0x{number * 0xC2B2AE3D27D4EB4F % (1 << 256):064x}" for number in block.tolist()]),
    )
    return table.cast(dict(seed.schema))


def write(folder: Path, rows: int) -> list[Path]:
    """The same swaps as CSV and as Parquet."""
    from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
    from apeagent_pipeline.chain.days import FIRST_DAY
    from apeagent_pipeline.chain.source import EmbeddedSource

    seed = EmbeddedSource(BASE_ETH_USDC, 42).read_day(FIRST_DAY)
    parts = []
    with (folder / "swaps.csv").open("wb") as file:
        for start in range(0, rows, SLICE):
            part = made(rows, start, seed)
            part.with_columns(pl.col("block_timestamp").dt.epoch("s")).write_csv(file, include_header=start == 0)
            parts.append(folder / f"part-{start}.arrow")
            part.write_ipc(parts[-1])
    pl.concat([pl.scan_ipc(part) for part in parts]).sink_parquet(folder / "swaps.parquet")
    for part in parts:
        part.unlink()
    return [folder / "swaps.csv", folder / "swaps.parquet"]


def plain(file: Path) -> int:
    """Every column, in memory, as polars reads it."""
    table = pl.read_csv(file, infer_schema=False) if file.suffix == ".csv" else pl.read_parquet(file)
    return table.height


def imported(file: Path) -> int:
    """All days, checked."""
    from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
    from apeagent_pipeline.chain.archive import SwapArchive

    with tempfile.TemporaryDirectory(dir=file.parent) as cache:
        archive = SwapArchive(file, BASE_ETH_USDC, cache=Path(cache))
        return sum(notes.swaps for notes in archive.imported.days.values())


def measure(what: str, file: Path) -> tuple[float, float]:
    """Seconds and peak memory (GB) in a process of its own."""
    command = [sys.executable, "-m", __spec__.name if __spec__ else "", "--measure", what, str(file)]
    seconds, memory = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-2:]
    return float(seconds), float(memory)


def main() -> None:
    """Measure or print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--measure", nargs=2)
    arguments = parser.parse_args()
    if arguments.measure:
        what, file = arguments.measure
        start = time.perf_counter()
        {"plain": plain, "import": imported}[what](Path(file))
        print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
        return
    print("| file | size, GB | polars, s | import, s | ratio | polars, GB | import, GB |\n" + "| --- " * 7 + "|")
    with tempfile.TemporaryDirectory() as folder:
        for file in write(Path(folder), arguments.rows):
            read, whole = measure("plain", file), measure("import", file)
            print(
                f"| {file.name}, {arguments.rows:,} rows | {file.stat().st_size / 1e9:.2f} | {read[0]:.1f} | "
                f"{whole[0]:.1f} | {whole[0] / read[0]:.1f} | {read[1]:.1f} | {whole[1]:.1f} |"
            )


if __name__ == "__main__":
    main()
