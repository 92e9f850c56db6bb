"""Speed and memory of the archive import beside plain polars reads of the same file.

Run with ``python -m apeagent_pipeline_tests.benchmarks.archive_import --rows 10000000``. Prints a Markdown table:
seconds of CPU of polars reading every column, of the import (all checks, all days), their ratio, and the peak memory
of either. On an idle machine CPU seconds are those of the clock where one thread is allowed
(``POLARS_MAX_THREADS=1``); beside other work only they can be compared. ``--record NOTE`` writes the recorded result.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl

from apeagent_pipeline.reporting.report import markdown_table
from apeagent_pipeline_tests.docs.results import Cell, record

ROWS_A_DAY = 33_333
_COLUMNS = (
    "size, GB",
    "polars reads it, s",
    "import with all checks, s",
    "ratio",
    "polars, peak GB",
    "import, peak GB",
)
_NOTES = ["Seconds of CPU.", "The goal is a ratio of at most four."]
DISTINCT = 250_000
"""Swaps that are computed. Longer files repeat them, with other hashes, blocks and times."""


def chain(rows: int, rng: np.random.Generator) -> pl.DataFrame:
    """Swaps each of which follows to the wei from the one before it, in a pool whose liquidity changes now and then."""
    from apeagent_pipeline.amm.swap_math import swap_step
    from apeagent_pipeline.amm.ticks import sqrt_price_at_tick, ticks_at_sqrt_prices

    start = price = sqrt_price_at_tick(-195_500)
    liquidity = 32 * 10**15
    sizes = np.exp(rng.normal(18, 2, rows))
    found = []
    for at, size in enumerate(sizes.tolist()):
        if at % 9 == 0:
            liquidity = int(rng.integers(32 * 10**15, 64 * 10**15))
        falls = price > start if at % 3 else rng.random() < 0.5
        paid = -int(size if not falls else size * (2**96 / price) ** 2)
        price, amount0, amount1 = swap_step(price, liquidity, paid, falls, 500)
        found.append((str(amount0), str(amount1), str(price), str(liquidity)))
    amounts = pl.DataFrame(found, schema=["amount0", "amount1", "sqrt_price_x96", "liquidity"], orient="row")
    prices = np.array([int(value) for value in amounts["sqrt_price_x96"]], dtype=object)
    return amounts.with_columns(
        tick=pl.Series(ticks_at_sqrt_prices(prices)).cast(pl.Int32()), fee=pl.lit(500, pl.Int32())
    )


def random_hex(rng: np.random.Generator, rows: int, size: int) -> pl.Series:
    """``0x`` and random hex digits, as hashes (32 bytes) and addresses (20) are."""
    raw = rng.bytes(rows * size)
    return "0x" + pl.Series([raw[at : at + size] for at in range(0, len(raw), size)]).bin.encode("hex")


def made(rows: int) -> Iterator[pl.DataFrame]:
    """Slices of an archive of the embedded pool, RAW_SWAPS_SCHEMA."""
    from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
    from apeagent_pipeline.chain.days import BLOCK_SECONDS, GENESIS_TIMESTAMP, SECONDS_PER_DAY, first_block_of
    from apeagent_pipeline.chain.events import RAW_SWAPS_SCHEMA

    rng = np.random.default_rng(0)
    swaps = chain(min(rows, DISTINCT), rng)
    routers, accounts = random_hex(rng, 30, 20), random_hex(rng, 20_000, 20)
    first, blocks = first_block_of(date(2025, 2, 1)), SECONDS_PER_DAY // BLOCK_SECONDS
    for start in range(0, rows, DISTINCT):
        at = np.arange(start, min(start + DISTINCT, rows))
        block = first + at * blocks // ROWS_A_DAY
        hashes = random_hex(rng, int(block[-1] - block[0]) + 1, 32)
        yield (
            swaps.head(len(at))
            .select(
                chain_id=pl.lit(BASE_ETH_USDC.chain_id, pl.Int64()),
                pool_id=pl.lit(BASE_ETH_USDC.pool_id.lower()),
                block_number=pl.Series(block),
                block_hash=hashes[block - block[0]],
                block_timestamp=pl.Series((block * BLOCK_SECONDS + GENESIS_TIMESTAMP) * 1_000_000).cast(
                    pl.Datetime("us", "UTC")
                ),
                transaction_hash=random_hex(rng, len(at), 32),
                transaction_index=pl.Series(at % 1_000),
                log_index=pl.Series(at % 1_000 * 3 + 1),
                sender=routers[rng.integers(0, len(routers), len(at))],
                tx_from=accounts[rng.integers(0, len(accounts), len(at))],
                tx_to=routers[rng.integers(0, len(routers), len(at))],
                **{name: pl.col(name) for name in swaps.columns},
            )
            .select(RAW_SWAPS_SCHEMA.names())
        )


def write(folder: Path, rows: int) -> list[Path]:
    """The same swaps as CSV and as Parquet."""
    files = [folder / "swaps.parquet", folder / "swaps.csv"]
    parts = []
    with files[1].open("wb") as file:
        for number, part in enumerate(made(rows)):
            part.with_columns(pl.col("block_timestamp").dt.epoch("s")).write_csv(file, include_header=number == 0)
            parts.append(folder / f"part-{number}.arrow")
            part.write_ipc(parts[-1])
    pl.concat([pl.scan_ipc(part) for part in parts]).sink_parquet(files[0])
    for part in parts:
        part.unlink()
    return files


def plain(file: Path) -> int:
    """Every column, in memory, as polars reads it."""
    table = pl.read_csv(file, infer_schema=False) if file.suffix == ".csv" else pl.read_parquet(file)
    return table.height


def imported(file: Path, cache: Path) -> int:
    """All days, checked, and kept in the folder ``cache``."""
    from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
    from apeagent_pipeline.chain.archive import SwapArchive

    archive = SwapArchive(file, BASE_ETH_USDC, cache=cache)
    return sum(notes.swaps for notes in archive.imported.days.values())


def seconds_of(what: str, file: Path) -> float:
    """Seconds of CPU. What is kept is removed afterwards."""
    with tempfile.TemporaryDirectory(dir=file.parent) as cache:
        start = time.process_time()
        imported(file, Path(cache)) if what == "import" else plain(file)
        return time.process_time() - start


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
    parser.add_argument("--record", metavar="NOTE", help="Write the recorded result; such as: busy, one thread")
    arguments = parser.parse_args()
    if arguments.measure:
        what, file = arguments.measure
        import apeagent_pipeline.chain.archive  # noqa: F401 (loading is not measured)

        print(seconds_of(what, Path(file)), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
        return
    rows: list[list[Cell]] = []
    with tempfile.TemporaryDirectory() as folder:
        for file in write(Path(folder), arguments.rows):
            read, whole = measure("plain", file), measure("import", file)
            rows.append(
                [
                    {".csv": "CSV", ".parquet": "Parquet"}[file.suffix],
                    f"{file.stat().st_size / 1e9:.2f}",
                    f"{read[0]:.1f}",
                    f"{whole[0]:.1f}",
                    f"{whole[0] / read[0]:.1f}",
                    f"{read[1]:.1f}",
                    f"{whole[1]:.1f}",
                ]
            )
            print(*rows[-1], flush=True)
    columns = [f"file of {arguments.rows:,} swaps", *_COLUMNS]
    print(markdown_table(columns, rows))
    if arguments.record is not None:
        command = f"python -m apeagent_pipeline_tests.benchmarks.archive_import --rows {arguments.rows}"
        record("archive_import", command, columns, rows, _NOTES, arguments.record)


if __name__ == "__main__":
    main()
