"""``apeagent reconcile``: Dagster's record follows the storage."""

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from apeagent_pipeline.cli.display import plain
from apeagent_pipeline.cli.server import require_only_daemon
from apeagent_pipeline.cli.update import sweep_orphans
from apeagent_pipeline.settings import Settings, load_settings

if TYPE_CHECKING:
    from apeagent_pipeline.artifacts.manifest import Manifest
    from apeagent_pipeline.artifacts.store import ArtifactStore
    from apeagent_pipeline.defs.reconcile import Differences


def reconcile(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what differs, and change nothing")] = False,
) -> None:
    """Make Dagster's record agree with the storage: after files were deleted, a run was killed, or the home is new.

    Stored artifacts that Dagster does not know are registered. Days that Dagster records as built, but whose files are
    gone, count as missing afterwards, unless a run is in progress. No file is changed. Exits 1 if something is left
    for you to do, otherwise 0.
    """
    from apeagent_pipeline.defs.build import build_graph
    from apeagent_pipeline.defs.instance import open_instance
    from apeagent_pipeline.defs.markets import stored_markets
    from apeagent_pipeline.defs.reconcile import differences, forget, record, runs_in_progress

    settings = load_settings()
    graph = build_graph(settings)
    console = Console(highlight=False, soft_wrap=True)
    # A daemon that looks in the middle would take what is registered for changes, and build anew.
    with contextlib.nullcontext() if dry_run else _without_daemon(settings), open_instance(settings) as instance:
        sweep_orphans(instance)
        running = runs_in_progress(instance)
        found = differences(graph, instance)
        if not dry_run:
            for manifest in found.unrecorded:
                record(graph, instance, manifest)
            for asset, days in {} if running else found.gone.items():
                forget(instance, asset, days)
    store = graph.runtime.store
    console.print(f"Storage: {plain(store.root)}")
    _tell_registered(console, found.unrecorded, "Would register" if dry_run else "Registered")
    told = "would count as missing" if dry_run else "count as missing now"
    _tell_gone(console, found, f"left as they are, because run {running[0]} is in progress" if running else told)
    _tell_markets(console, store)
    left = bool(found.gone or found.incomplete or found.holes or len(stored_markets(store)) > 1)
    if not left and not found.unrecorded:
        console.print("[green]✓[/] Dagster's record agrees with the storage.")
    raise typer.Exit(1 if left or (dry_run and found.unrecorded) else 0)


@contextlib.contextmanager
def _without_daemon(settings: Settings) -> Iterator[None]:
    from apeagent_pipeline.defs.instance import prepare_home

    lock = require_only_daemon(prepare_home(settings))
    try:
        yield
    finally:
        os.close(lock)


def _tell_registered(console: Console, manifests: "list[Manifest]", verb: str) -> None:
    from apeagent_pipeline.defs.markets import day_list

    by_asset: dict[str, list[str]] = {}
    for manifest in manifests:
        by_asset.setdefault(manifest.asset, []).append(manifest.partition or "")
    for asset, days in by_asset.items():
        console.print(f"{verb}: {f'{len(days)} days of {asset} ({day_list(days)})' if days[0] else asset}")


def _tell_gone(console: Console, found: "Differences", what_of_days: str) -> None:
    from apeagent_pipeline.defs.markets import day_list

    for asset, days in found.gone.items():
        console.print(f"[yellow]Files are gone:[/] {len(days)} days of {asset} ({day_list(days)}) {what_of_days}")
    for name in found.incomplete:
        console.print(f"[yellow]Files are gone:[/] {plain(name)}. `apeagent demo` builds it again")
    if found.holes:
        console.print(
            f"[yellow]No swaps are stored of {len(found.holes)} days[/] between the first and the last: "
            f"{day_list(found.holes)}. `apeagent sync --from {found.holes[0]} --to {found.holes[-1]}` reads them"
        )


def _tell_markets(console: Console, store: "ArtifactStore") -> None:
    from apeagent_pipeline.defs.markets import REMEDY, markets_in_words, stored_markets

    markets = stored_markets(store)
    if len(markets) > 1:
        console.print(
            f"[yellow]The storage holds {len(markets)} markets:[/] {plain(markets_in_words(markets))}. {REMEDY}"
        )
