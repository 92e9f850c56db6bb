"""Bringing the graph up to date from the command line: shared by ``demo``, ``sync`` and ``teach``."""

import time
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from apeagent_pipeline.cli.display import ERROR_CONSOLE, plain
from apeagent_pipeline.settings import Settings, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from dagster import DagsterInstance

    from apeagent_pipeline.cli.display import TerminalWatcher
    from apeagent_pipeline.defs.build import Graph
    from apeagent_pipeline.defs.staleness import Stale
    from apeagent_pipeline.defs.update import Round


def bring_up_to_date(
    settings: Settings,
    first: str | None,
    last: str | None,
    *,
    select: "Callable[[Graph], Collection[str]] | None" = None,
    keep_going: bool = False,
) -> "tuple[list[Round], Graph, list[str]]":
    """Bring the graph up to date with a live display, and show how long each asset took.

    Args:
        settings: Of this run.
        first: First day; None: what the swap source suggests.
        last: Last day.
        select: Names of the assets to bring up to date; None: all.
        keep_going: Whether the other days are built when one fails.

    Returns:
        The rounds that ran, the graph, and the days.
    """
    from apeagent_pipeline.cli.display import TerminalWatcher, quiet_console
    from apeagent_pipeline.cli.time_left import remember
    from apeagent_pipeline.defs.build import build_graph
    from apeagent_pipeline.defs.instance import open_instance
    from apeagent_pipeline.defs.update import update

    begun = time.monotonic()
    instance = open_instance(settings)
    log = settings.home.absolute() / "logs" / "apeagent.log"
    sweep_orphans(instance)
    with quiet_console(log) as console, TerminalWatcher(console) as watcher:
        graph = build_graph(settings, watcher)
        days = days_of(graph, first, last)
        console.print(
            f"[bold]apeagent[/]: {graph.runtime.source.name} swaps of {days[0]} to {days[-1]}, "
            f"profile {settings.profile}, teacher {settings.teacher}, student {settings.student}",
            highlight=False,
        )

        only = set(select(graph)) if select else None
        rounds = update(
            graph,
            instance,
            days,
            only=only,
            keep_going=keep_going,
            announce=partial(_announce, console, watcher, graph),
        )
    seconds = {name: took for each in rounds for name, took in each.seconds.items()}
    if not rounds:
        Console().print(f"Everything is up to date: nothing to recompute ({time.monotonic() - begun:.1f} s).")
    else:
        whole = {name: took for each in rounds if each.success for name, took in each.seconds.items()}
        remember(settings, whole, {asset.key.to_user_string() for asset in graph.assets})
        _show_built(seconds, time.monotonic() - begun, log)
    return rounds, graph, days


def show_plan(
    settings: Settings,
    first: str | None,
    last: str | None,
    select: "Callable[[Graph], Collection[str]] | None" = None,
) -> None:
    """Show what `bring_up_to_date` would build, why, and how long it takes; build nothing."""
    from apeagent_pipeline.chain.source import RpcSource
    from apeagent_pipeline.cli.time_left import estimate
    from apeagent_pipeline.defs.build import build_graph
    from apeagent_pipeline.defs.staleness import stale_artifacts
    from apeagent_pipeline.reporting.durations import about, in_words

    graph = build_graph(settings)
    days = days_of(graph, first, last)
    only = set(select(graph)) if select else None
    assets = [asset for asset in graph.assets if only is None or asset.key.to_user_string() in only]
    stale = stale_artifacts(assets, graph.runtime, days)
    names = dict.fromkeys(each.asset for each in stale)
    expected = estimate(settings, names)
    table = Table("asset", "artifacts", "because", "takes", title=f"Would be built, {days[0]} to {days[-1]}")
    for name in names:
        reasons = dict.fromkeys(each.reason for each in stale if each.asset == name)
        took = in_words(expected.seconds[name]) if expected and name in expected.seconds else ""
        table.add_row(name, str(sum(each.asset == name for each in stale)), plain("; ".join(reasons)), took)
    console = Console(highlight=False, soft_wrap=True)
    if stale:
        console.print(table)
    days_to_read = sum(each.asset == "raw_swaps" for each in stale)
    if days_to_read and isinstance(graph.runtime.source, RpcSource):
        console.print(f"Reading: {plain(graph.runtime.source.plan(days_to_read))}")
    total = f", {about(expected.total)} ({expected.source})" if stale and expected else ""
    console.print(f"{len(stale)} artifacts would be built{total}. Nothing was built.")


def _announce(console: Console, watcher: "TerminalWatcher", graph: "Graph", stale: "list[Stale]") -> None:
    """Say what a run will build, why, and how long it takes."""
    from apeagent_pipeline.chain.source import RpcSource
    from apeagent_pipeline.cli.time_left import estimate
    from apeagent_pipeline.reporting.durations import about

    names = dict.fromkeys(each.asset for each in stale)
    if "raw_swaps" in names and isinstance(graph.runtime.source, RpcSource):
        days_to_read = sum(each.asset == "raw_swaps" for each in stale)
        console.print(f"Reading: {plain(graph.runtime.source.plan(days_to_read))}", highlight=False)
    reasons = {name: next(each.reason for each in stale if each.asset == name) for name in names}
    console.print("To build: " + ", ".join(f"{name} ({reason})" for name, reason in reasons.items()), style="dim")
    if expected := estimate(graph.runtime.settings, names):
        watcher.expect(expected.seconds)
        console.print(f"This takes {about(expected.total)} ({expected.source}).", highlight=False)


def _show_built(seconds: "Mapping[str, float]", wall: float, log: Path) -> None:
    """A table of how long each asset and check took.

    Args:
        seconds: Asset or check -> seconds.
        wall: Seconds of the whole command.
        log: The log file.
    """
    table = Table("asset or check", "seconds", title="Built")
    for name, took in seconds.items():
        table.add_row(name, f"{took:.1f}")
    table.caption = f"{wall:.0f} s in all, {wall - sum(seconds.values()):.1f} s of it outside the assets. Log: {log}"
    Console().print(table)


def sweep_orphans(instance: "DagsterInstance") -> None:
    """Mark killed runs as failed, so that they no longer occupy the concurrency pools."""
    from apeagent_pipeline.defs.automation.orphans import fail_orphaned_runs

    for run_id in fail_orphaned_runs(instance):
        Console().print(f"Run {run_id} was killed. It is now marked as failed.", style="yellow", highlight=False)


def days_of(graph: "Graph", first: str | None, last: str | None) -> list[str]:
    """The days from ``first`` to ``last``; where one is not given, the day that the swap source suggests."""
    from apeagent_pipeline.chain.days import days_between

    low, high = (str(day) for day in graph.runtime.source.demo_days()) if not (first and last) else ("", "")
    start, end = day_argument(first or low, "--from"), day_argument(last or high, "--to")
    if end < start:
        raise SettingsError(f"--to {end} lies before --from {start}")
    return [str(day) for day in days_between(start, end)]


def day_argument(text: str, option: str) -> date:
    """Read the day that a user gave for ``option``."""
    from apeagent_pipeline.chain.days import FIRST_DAY

    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise SettingsError(f"{option} {text}: expected a day such as 2025-02-01") from None
    if day < FIRST_DAY:
        raise SettingsError(f"{option} {day}: Uniswap V4 has no swaps before {FIRST_DAY}")
    return day


def report_failure(failed: "Round") -> int:
    """Show why a run failed; the exit code is 1."""
    for error in failed.errors:
        ERROR_CONSOLE.print(f"[red]Failed:[/] {plain(error)}", highlight=False, soft_wrap=True)
    ERROR_CONSOLE.print(
        f"Run {failed.run_id} failed. Fix the cause and run the same command again: it continues from here."
    )
    return 1
