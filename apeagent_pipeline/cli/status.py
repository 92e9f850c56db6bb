"""``apeagent status``: what is out of date and why, and what it would take to bring it up to date."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from apeagent_pipeline.cli.display import plain
from apeagent_pipeline.settings import SettingsError, load_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dagster import DagsterInstance

    from apeagent_pipeline.defs.build import Graph
    from apeagent_pipeline.defs.staleness import Stale

_DAYS_SHOWN = 3


def status(
    artifact: Annotated[
        str | None,
        typer.Argument(
            metavar="ASSET[/DAY]",
            help="One asset, such as trained_gan, or one day of a daily asset: swap_features/2025-01-22",
            show_default="all assets",
        ),
    ] = None,
) -> None:
    """Show what is out of date and why, and what it would take to bring it up to date.

    An artifact is up to date if all its files are there, and if it was built by the present code and options from the
    present versions of its inputs. `apeagent demo` judges in the same way. The daemon of `apeagent ui` only follows
    changed inputs: it does not act when code or settings change. Exits 0 if everything asked about is up to date,
    otherwise 1.
    """
    from apeagent_pipeline.defs.build import build_graph
    from apeagent_pipeline.defs.instance import open_instance
    from apeagent_pipeline.defs.staleness import stale_artifacts
    from apeagent_pipeline.defs.update import held_back

    graph = build_graph(load_settings())
    asset, _, day = (artifact or "").partition("/")
    if asset:
        _require_known(graph, asset, day)
    days = _days(graph, day)
    stale = stale_artifacts(graph.assets, graph.runtime, days)
    asked = [each for each in stale if asset in ("", each.asset) and day in ("", each.day or "")]
    with open_instance(graph.runtime.settings) as instance:
        held = held_back(graph, instance, stale)
        seconds = _seconds_last_time(instance, {each.asset for each in stale})
    console = Console(highlight=False)
    if not asked:
        console.print(
            f"[green]✓[/] {plain(artifact or 'Everything')} is up to date ({_covered(days)}).", soft_wrap=True
        )
        return
    table = Table("asset", "days", "out of date because", "waits for", "last time", title=_covered(days))
    for name in dict.fromkeys(each.asset for each in asked):
        of_asset = [each for each in asked if each.asset == name]
        table.add_row(
            name,
            _day_list([each.day for each in of_asset if each.day]),
            plain("; ".join(dict.fromkeys(each.reason for each in of_asset))),
            plain("; ".join(_held(of_asset, held)) or ", ".join(_waits_for(graph, name, stale))),
            f"{seconds[name]:,.0f} s" if name in seconds else "",
        )
    console.print(table)
    if artifact:
        for each in asked:
            _explain(console, graph, each)
    known = [seconds[name] for name in dict.fromkeys(each.asset for each in stale) if name in seconds]
    console.print(
        f"`apeagent demo` brings everything up to date: {len(stale)} artifacts"
        + (f", at least {sum(known):,.0f} s if they take as long as last time." if known else "."),
        soft_wrap=True,
    )
    raise typer.Exit(1)


def _require_known(graph: "Graph", asset: str, day: str) -> None:
    names = [each.key.to_user_string() for each in graph.assets]
    if asset not in names:
        raise SettingsError(f"{asset!r} is not an asset of the graph: expected one of {', '.join(names)}")
    if day and asset not in graph.daily:
        raise SettingsError(f"{asset} has no days; ask for `apeagent status {asset}`")


def _days(graph: "Graph", day: str) -> list[str]:
    """The day asked for, or every day from the first to the last that is stored."""
    from apeagent_pipeline.chain.days import days_between
    from apeagent_pipeline.cli.update import day_argument

    if day:
        return [str(day_argument(day, "ASSET/DAY"))]
    stored = graph.runtime.store.days(graph.daily[0])
    if not stored:
        return []
    first, last = (day_argument(each, "day") for each in (stored[0], stored[-1]))
    return [str(each) for each in days_between(first, last)]


def _covered(days: list[str]) -> str:
    return f"{len(days)} days, {days[0]} to {days[-1]}" if len(days) > 1 else days[0] if days else "no day is stored"


def _day_list(days: list[str]) -> str:
    shown = ", ".join(days[:_DAYS_SHOWN])
    return f"{shown} and {len(days) - _DAYS_SHOWN} more" if len(days) > _DAYS_SHOWN else shown


def _held(stale: "list[Stale]", held: "Mapping[str, str]") -> list[str]:
    return list(dict.fromkeys(held[each.name] for each in stale if each.name in held))


def _waits_for(graph: "Graph", name: str, stale: "list[Stale]") -> list[str]:
    """Direct inputs that are out of date themselves."""
    out_of_date = {each.asset for each in stale}
    keys = next(asset.dependency_keys for asset in graph.assets if asset.key.to_user_string() == name)
    return sorted(key.to_user_string() for key in keys if key.to_user_string() in out_of_date)


def _seconds_last_time(instance: "DagsterInstance", names: set[str]) -> "Mapping[str, float]":
    """Asset -> how long its newest run took for it; assets that no recorded run made are left out."""
    import dagster as dg

    found = {}
    for name in names:
        event = instance.get_latest_materialization_event(dg.AssetKey(name))
        for stats in instance.get_run_step_stats(event.run_id, [name]) if event else []:
            if stats.start_time and stats.end_time:
                found[name] = stats.end_time - stats.start_time
    return found


def _explain(console: Console, graph: "Graph", stale: "Stale") -> None:
    """The inputs and options of one artifact that changed, with the value that it was made with and the present one."""
    manifest = graph.runtime.store.manifest(stale.asset, stale.day)
    if manifest is None:
        console.print(f"{stale.name} is not stored, or some of its files are missing.")
        return
    console.print(f"{stale.name} was built at {manifest.created_at} (data version {manifest.data_version}).")
    for name in stale.changed_inputs:
        then = manifest.inputs.get(name, "not read")
        console.print(
            f"  {name}: built from {then}, now {stale.present_inputs.get(name) or 'not stored'}", soft_wrap=True
        )
    if not stale.changed_inputs:
        present = graph.runtime.options(stale.asset)
        names = sorted(present.keys() | manifest.config.keys())
        changed = [name for name in names if present.get(name) != manifest.config.get(name)]
        for name in changed:
            console.print(f"  option {name}: built with {manifest.config.get(name)}, now {present.get(name)}")
        if not changed:
            console.print(f"  code version: built with {manifest.code_version}", soft_wrap=True)
