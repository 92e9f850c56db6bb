"""``apeagent import`` and ``apeagent export-swaps``: swaps from files, and to files."""

import logging
import os
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from apeagent_pipeline.cli.display import plain
from apeagent_pipeline.settings import load_settings

if TYPE_CHECKING:
    from apeagent_pipeline.chain.archive import SwapArchive

_ROWS_SHOWN = 3


def import_swaps(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="CSV, Parquet or JSON file, or a folder of them")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read and check the file, show what was found, store nothing")
    ] = False,
) -> None:
    """Import swaps from a file or folder: show its layout, days, checks and first rows, then bring its days up to date.

    A file that contradicts the pool or the chain is refused, with the cause and the remedy. To use the imported swaps
    in other commands too, set APEAGENT_SWAPS_ARCHIVE to the same path.
    """
    from apeagent_pipeline.amm.price import price_from_sqrt_price
    from apeagent_pipeline.chain.archive import SwapArchive
    from apeagent_pipeline.chain.pool_lookup import chosen_pool

    # `show` prints the notices of the import, which are also logged.
    logging.getLogger("apeagent_pipeline.chain.archive").setLevel(logging.ERROR)
    settings = load_settings()
    pool = chosen_pool(settings).from_settings()
    archive = SwapArchive(
        path,
        pool,
        flips_signs=settings.swaps_signs == "pool",
        cache=settings.home.absolute() / "cache" / "archive",
    )
    show(archive)
    first, last = archive.span()
    price = price_from_sqrt_price(float(archive.read_day(last)["sqrt_price_x96"][-1]), pool)
    Console(highlight=False).print(
        f"Last price: {price:,.6g} {plain(pool.token1.symbol)} for one {plain(pool.token0.symbol)}. If it is wrong, "
        "correct APEAGENT_POOL_TOKENS: no check can detect wrong decimals.",
        soft_wrap=True,
    )
    if dry_run:
        Console().print(
            f"Nothing was stored. Next: [bold]apeagent import {plain(str(path))}[/], or set APEAGENT_SWAPS_ARCHIVE to "
            "the path and run [bold]apeagent demo[/].",
            soft_wrap=True,
        )
        return
    from apeagent_pipeline.cli.demo import sync

    os.environ["APEAGENT_SWAPS_ARCHIVE"] = str(path.absolute())
    try:
        sync(str(first), str(last))
    finally:
        if settings.swaps_archive is None:
            Console().print(
                f"Next: [bold]export APEAGENT_SWAPS_ARCHIVE={plain(str(path))}[/]. Without this setting the other "
                f"commands read {'the node' if settings.rpc_urls else 'the embedded chain'}, and replace these days.",
                soft_wrap=True,
            )


def show(archive: "SwapArchive") -> None:
    """Print what an archive holds.

    Raises:
        ArchiveError: if the archive is refused.
    """
    imported = archive.imported
    console = Console(highlight=False)
    first, last = archive.span()
    files = Table("file", "layout", title=f"{plain(str(archive.path))}: {first} to {last}")
    for name, layout in imported.layouts.items():
        files.add_row(plain(name), plain(layout))
    console.print(files)
    days = Table("day", "swaps", "confirmed", "gaps", "merged rows", "", title="Swaps by day")
    for day, notes in sorted(imported.days.items()):
        confirmed = f"{notes.confirmed:,} of {notes.tested:,}"
        told = "[yellow]• " + plain("; ".join(notes.notes)) if notes.notes else "[green]✓"
        days.add_row(str(day), f"{notes.swaps:,}", confirmed, f"{notes.gaps:,}", f"{notes.duplicates:,}", told)
    console.print(days)
    console.print(
        "confirmed: swaps whose amounts, price, liquidity and fee agree, of those large enough to check; gaps: swaps "
        "that do not follow from the swap before",
        soft_wrap=True,
    )
    for notice in imported.notices:
        console.print(f"[yellow]•[/] {plain(notice)}", soft_wrap=True)
    rows = archive.read_day(first).head(_ROWS_SHOWN)
    stored = Table("column", *(f"row {number + 1}" for number in range(rows.height)), title="First rows as stored")
    for name in rows.columns:
        stored.add_row(name, *("" if value is None else plain(str(value)) for value in rows[name]))
    console.print(stored)


def export_swaps(
    first: Annotated[str, typer.Option("--from", metavar="DAY", help="First day, YYYY-MM-DD (UTC)")],
    last: Annotated[str, typer.Option("--to", metavar="DAY", help="Last day, included")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Ends in .parquet, .csv, .csv.gz or .jsonl")],
) -> None:
    """Write the stored swaps of a range of days to a file that `apeagent import` and other tools read."""
    import polars as pl

    from apeagent_pipeline.chain.archive.writing import write_swaps
    from apeagent_pipeline.chain.days import days_between
    from apeagent_pipeline.chain.events import empty_raw_swaps
    from apeagent_pipeline.defs.resources import Runtime
    from apeagent_pipeline.defs.watcher import LogWatcher

    store = Runtime(load_settings(), LogWatcher()).store
    days = [str(day) for day in days_between(date.fromisoformat(first), date.fromisoformat(last))]
    missing = sorted(set(days) - set(store.days("raw_swaps")))
    if missing:
        raise typer.BadParameter(f"{missing[0]} is not stored ({len(missing)} days are not); run apeagent sync first")
    tables = store.scan_days("raw_swaps", days).values()
    swaps = pl.concat([empty_raw_swaps(), *(table.collect() for table in tables)])
    write_swaps(swaps, file)
    Console().print(f"{swaps.height:,} swaps of {len(days)} days are in {plain(str(file))}", soft_wrap=True)
