"""``apeagent status``: what is out of date and why, and what it would take to bring it up to date."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from apeagent_pipeline.cli.display import plain
from apeagent_pipeline.cli.time_left import estimate
from apeagent_pipeline.reporting.durations import about, in_words
from apeagent_pipeline.settings import SettingsError, load_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dagster import DagsterInstance

    from apeagent_pipeline.defs.build import Graph
    from apeagent_pipeline.defs.staleness import Stale


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
    """Show which artifacts are out of date, why, and how long an update takes.

    An artifact is up to date if all its files are stored, and if it was built by the present code and options from the
    present versions of its inputs. `apeagent demo` uses the same rule. The daemon of `apeagent ui` only follows
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
    covered = _covered([day] if day else days)
    stale = stale_artifacts(graph.assets, graph.runtime, days)
    asked = [each for each in stale if asset in ("", each.asset) and day in ("", each.day or "")]
    console = Console(highlight=False)
    if not asked:
        console.print(f"[green]✓[/] {plain(artifact or 'Everything')} is up to date ({covered}).", soft_wrap=True)
        _list_unconfirmed(console, graph, asset, day)
        _list_other_markets(console, graph)
        return
    names = {each.asset for each in stale}
    later = [name for name in graph.downstream_of(names) if name not in graph.daily]
    with open_instance(graph.runtime.settings) as instance:
        held = held_back(graph, instance, stale)
        seconds, source = _seconds(graph, instance, names)
        more, _ = _seconds(graph, instance, set(later))
    console.print(_table(graph, asked, stale, held, seconds, title=covered))
    if artifact:
        for each in asked:
            _explain(console, graph, each)
    _list_unconfirmed(console, graph, asset, day)
    _list_other_markets(console, graph)
    if day and asset in graph.synced:
        console.print(f"`apeagent sync --from {day} --to {day}` brings swaps and features of this day up to date.")
    span = f" --from {days[0]} --to {days[-1]}" if days else ""
    console.print(
        f"`apeagent demo{span}` brings everything up to date: {len(stale)} artifacts"
        + (f", {about(sum(seconds.values()))} ({source})." if seconds else "."),
        soft_wrap=True,
    )
    _tell_what_may_follow(console, graph, stale, later, more)
    raise typer.Exit(1)


def _tell_what_may_follow(
    console: Console, graph: "Graph", stale: "list[Stale]", later: list[str], seconds: "Mapping[str, float]"
) -> None:
    """What an update may build beside what is out of date now, what the teacher costs, and whether this is an upgrade.

    Args:
        console: Where to print.
        graph: The graph.
        stale: What is out of date.
        later: Assets downstream of it that are up to date.
        seconds: Asset of ``later`` -> how long it will take, as far as that is known.
    """
    from importlib.metadata import version

    from apeagent_pipeline.defs.last_time import teacher_cost

    if later:
        took = f", {about(sum(seconds.values()))} more" if seconds else ""
        console.print(
            f"If their content changes, the artifacts downstream are built too: {', '.join(later)}{took}.",
            soft_wrap=True,
        )
    if "teacher_traces" in {*later, *(each.asset for each in stale)}:
        console.print(f"This includes the teacher's answers: {teacher_cost(graph.runtime)}.", soft_wrap=True)
    store, now = graph.runtime.store, version("apeagent_pipeline")
    stored = {name: store.manifests(name) for name in {each.asset for each in stale}}
    built = [made.package_version for each in stale if (made := stored[each.asset].get(each.day))]
    other = sorted({each for each in built if each != now})
    if other:
        console.print(
            f"{sum(each != now for each in built)} of them were built by apeagent_pipeline {', '.join(other)}; this is "
            f"{now}. Until they are rebuilt they stay as they are: the daemon does not act on an upgrade.",
            soft_wrap=True,
        )


def _table(
    graph: "Graph",
    asked: "list[Stale]",
    stale: "list[Stale]",
    held: "Mapping[str, str]",
    seconds: "Mapping[str, float]",
    *,
    title: str,
) -> Table:
    """One row for each asset that was asked about and is out of date."""
    table = Table("asset", "days", "out of date because", "waits for", "takes", title=title)
    for column in table.columns:
        column.overflow = "fold"  # the name of a changed input is never cut off
    for name in dict.fromkeys(each.asset for each in asked):
        of_asset = [each for each in asked if each.asset == name]
        table.add_row(
            name,
            _day_list([each.day for each in of_asset if each.day]),
            plain("; ".join(dict.fromkeys(each.reason for each in of_asset))),
            plain("; ".join(_held(of_asset, held)) or "; ".join(_waits_for(graph, of_asset, stale))),
            in_words(seconds[name]) if name in seconds else "",
        )
    return table


def _require_known(graph: "Graph", asset: str, day: str) -> None:
    names = [each.key.to_user_string() for each in graph.assets]
    if asset not in names:
        raise SettingsError(f"{asset!r} is not an asset of the graph: expected one of {', '.join(names)}")
    if day and asset not in graph.daily:
        raise SettingsError(f"{asset} has no days; ask for `apeagent status {asset}`")


def _days(graph: "Graph", day: str) -> list[str]:
    """Every day from the first to the last that is stored, and the day asked for.

    A day may wait for another one, so the others are judged too.
    """
    from apeagent_pipeline.chain.days import days_between
    from apeagent_pipeline.cli.update import day_argument

    asked = {str(day_argument(day, "ASSET/DAY"))} if day else set()
    stored = graph.runtime.store.days(graph.daily[0])
    if not stored:
        return sorted(asked)
    first, last = (day_argument(each, "day") for each in (stored[0], stored[-1]))
    return sorted(asked.union(map(str, days_between(first, last))))


def _covered(days: list[str]) -> str:
    return f"{len(days)} days, {days[0]} to {days[-1]}" if len(days) > 1 else days[0] if days else "no day is stored"


def _day_list(days: list[str]) -> str:
    from apeagent_pipeline.defs.markets import day_list

    return day_list(days)


def _held(stale: "list[Stale]", held: "Mapping[str, str]") -> list[str]:
    return list(dict.fromkeys(held[each.name] for each in stale if each.name in held))


def _waits_for(graph: "Graph", waiting: "list[Stale]", stale: "list[Stale]") -> list[str]:
    """The inputs that artifacts of one asset read and that are out of date themselves: ``asset``, or with its days."""
    from apeagent_pipeline.defs.partitions import PreviousDays, days_read

    name = waiting[0].asset
    definition = next(asset for asset in graph.assets if asset.key.to_user_string() == name)
    rules = {
        definition.keys_by_input_name[each.name].to_user_string(): days_read(each.metadata)
        for each in definition.op.input_defs
    }
    found = []
    for key in sorted(rules.keys() & {each.asset for each in stale}):
        days = {each.day for each in stale if each.asset == key and each.day}
        rule, options = rules[key] or PreviousDays(), graph.runtime.options(name)
        candidates = days.union(graph.runtime.store.days(key))
        read = {day for each in waiting for day in rule.of(each.day, candidates, options)} & days
        if read or not days:
            found.append(f"{key} ({_day_list(sorted(read))})" if read else key)
    return found


def _list_unconfirmed(console: Console, graph: "Graph", asset: str, day: str) -> None:
    """The stored days of swaps whose completeness could not be proven, each with the first doubt.

    Shown when all assets, or the swaps, were asked about.
    """
    from apeagent_pipeline.chain.source import unconfirmed_days

    if asset not in ("", graph.daily[0]):
        return
    stored = graph.runtime.store.days(graph.daily[0])
    found = unconfirmed_days(graph.runtime.source, [each for each in stored if day in ("", each)])
    if not found:
        return
    console.print(
        f"Unconfirmed days of {graph.daily[0]}: {len(found)}. The nightly re-sync reads those of the last month again; "
        "materialize an older day in the UI.",
        soft_wrap=True,
    )
    for each, doubt in found.items():
        console.print(f"  {each}: {plain(doubt)}", soft_wrap=True)


def _list_other_markets(console: Console, graph: "Graph") -> None:
    """The stored days that hold swaps of another market than the settings name, which nothing is learned from."""
    from apeagent_pipeline.defs.markets import REMEDY, markets_in_words, other_markets

    if found := other_markets(graph.runtime):
        console.print(
            f"Stored days of other markets than the settings name: {plain(markets_in_words(found))}. {REMEDY}.",
            soft_wrap=True,
        )


def _seconds(graph: "Graph", instance: "DagsterInstance", names: set[str]) -> "tuple[Mapping[str, float], str]":
    """Asset -> how long it will take, and where the figures come from; unknown assets are left out.

    The time of an asset's newest run comes first, then the estimate that `apeagent demo` gives.
    """
    from apeagent_pipeline.defs.last_time import seconds_last_time

    known = seconds_last_time(instance, names)
    if known.keys() == names:
        return known, "as measured here before"
    estimated = estimate(graph.runtime.settings, names)
    if estimated is None:
        return known, f"as measured here before, without {len(names - known.keys())} assets that were never built here"
    return {**estimated.seconds, **known}, estimated.source


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
    if stale.changed_inputs:
        return
    present = graph.runtime.options(stale.asset)
    for name in sorted(present.keys() | manifest.config.keys()):
        if present.get(name) != manifest.config.get(name):
            console.print(f"  option {name}: built with {manifest.config.get(name)}, now {present.get(name)}")
    asset = next(each for each in graph.assets if each.key.to_user_string() == stale.asset)
    now = asset.get_asset_spec(asset.key).code_version
    console.print(f"  code version: built with {manifest.code_version}, now {now}", soft_wrap=True)
