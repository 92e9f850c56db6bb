"""Bring the whole graph up to date in this process, as ``apeagent demo`` does."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache

import dagster as dg

from apeagent_pipeline.defs.automation.alerts import cause_of
from apeagent_pipeline.defs.build import Graph
from apeagent_pipeline.defs.partitions import RANGE_END, RANGE_START
from apeagent_pipeline.defs.staleness import Stale, inputs_read, stale_artifacts

_CHECK_ERROR = "DagsterAssetCheckFailedError"
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass(frozen=True)
class Round:
    """One run: the artifacts it was asked for, how it ended, and how long each asset took."""

    asked: list[Stale]
    run_id: str
    success: bool
    seconds: dict[str, float]
    errors: list[str]


def update(
    graph: Graph,
    instance: dg.DagsterInstance,
    days: list[str],
    *,
    only: set[str] | None = None,
    keep_going: bool = False,
    announce: Callable[[list[Stale]], None] = lambda stale: None,
) -> list[Round]:
    """Materialize stale artifacts, and nothing else, until everything is up to date or a run fails.

    This can take several rounds. An asset that is rebuilt with equal content leaves its downstream assets up to date,
    so these are judged again after every round.

    Args:
        graph: The graph.
        instance: Where the runs are recorded.
        days: The days that daily assets should have.
        only: Names of the assets to look at; None: all.
        keep_going: Whether the other days continue when some fail. Only for daily assets: an asset built from many days
            would be built from some of them.
        announce: Called before each run with the artifacts that it will build.
    """
    rounds: list[Round] = []
    assets = [asset for asset in graph.assets if only is None or asset.key.to_user_string() in only]
    failed: set[str | None] = set()
    while True:
        found = stale_artifacts(assets, graph.runtime, [day for day in days if day not in failed])
        if keep_going and rounds and not rounds[-1].success:
            failed |= _failed_days(rounds[-1].asked, found)
            found = [each for each in found if each.day not in failed]
        held = held_back(graph, instance, found)
        stale = _one_round([each for each in found if each.name not in held])
        if rounds and ((not rounds[-1].success and not keep_going) or rounds[-1].asked == stale):
            return rounds
        if not stale:
            if held:
                rounds.append(Round(found, "", success=False, seconds={}, errors=sorted(set(held.values()))))
            return rounds
        announce(stale)
        rounds.append(_run(graph, instance, stale))


def _failed_days(asked: list[Stale], stale: list[Stale]) -> set[str | None]:
    """Days of a failed run whose first asset is still stale; the assets downstream of it were not reached."""
    still = {each.name for each in stale}
    first = {each.day: each.name for each in reversed(asked)}
    return {day for day, name in first.items() if name in still}


def held_back(graph: Graph, instance: dg.DagsterInstance, stale: list[Stale]) -> dict[str, str]:
    """Stale artifacts downstream of one that failed a blocking check, each with the reason.

    Within a run Dagster holds these artifacts back itself, and in later runs the IO manager refuses to read what failed
    (see `gates`). A run that could only fail is not started.
    """
    store = graph.runtime.store
    closed = graph.runtime.artifacts.gates.closed(instance, store)
    to_build = {each.name for each in stale}
    reasons = {name: why for name, why in closed.items() if name not in to_build}
    held: dict[str, str] = {}

    @cache
    def days(asset: str) -> set[str]:
        return {*store.days(asset), *(each.day for each in stale if each.day and each.asset == asset)}

    definitions = {asset.key.to_user_string(): asset for asset in graph.assets}
    for each in stale:
        read = inputs_read(definitions[each.asset], each.day, days, graph.runtime.options(each.asset))
        above = [reason for name in read if (reason := held.get(name) or reasons.get(name))]
        if above:
            held[each.name] = above[0]
    return held


def _one_round(stale: list[Stale]) -> list[Stale]:
    """The artifacts that one run can build: consecutive days that lack the same assets, and the rest if no day remains.

    An existing artifact waits if this run rebuilds its input, which may come out unchanged.
    """
    about_to_change = {each.name for each in stale}
    stale = [each for each in stale if not about_to_change.intersection(each.changed_inputs)]
    missing: dict[str, set[str]] = {}
    for each in stale:
        if each.day:
            missing.setdefault(each.day, set()).add(each.asset)
    if not missing:
        return stale
    first = min(missing)
    last = first
    while missing.get(_next(last)) == missing[first]:
        last = _next(last)
    chunk = [each for each in stale if each.day and first <= each.day <= last]
    only_chunk = len(chunk) == sum(1 for each in stale if each.day)
    return chunk + [each for each in stale if only_chunk and not each.day]


def _next(day: str) -> str:
    return str(date.fromisoformat(day) + timedelta(days=1))


def _run(graph: Graph, instance: dg.DagsterInstance, stale: list[Stale]) -> Round:
    days = sorted(each.day for each in stale if each.day)
    result = graph.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance,
        asset_selection=[dg.AssetKey(name) for name in dict.fromkeys(each.asset for each in stale)],
        tags={RANGE_START: days[0], RANGE_END: days[-1]} if days else {},
        run_config=_QUIET,
        raise_on_error=False,
    )
    seconds = {
        stats.step_key: stats.end_time - stats.start_time
        for stats in instance.get_run_step_stats(result.run_id)
        if stats.start_time and stats.end_time
    }
    refused = [
        f"check {check.check_name} of {check.asset_key.to_user_string()} failed: {check.description}"
        for check in result.get_asset_check_evaluations()
        if not check.passed and check.severity is dg.AssetCheckSeverity.ERROR
    ]
    broken = [event for event in result.all_events if event.is_step_failure]
    errors = refused + [
        f"{event.step_key}: {cause}" for event in broken if _CHECK_ERROR not in (cause := cause_of(event))
    ]
    return Round(stale, result.run_id, result.success, seconds, errors)
