"""What the daemon does in a simulated night, by its own parts: schedule, conditions, sensors, retries, run processes.

Only the clock is simulated. A run is executed in this process, unless it is to be killed: then it has its own.
"""

import json
import multiprocessing
import os
import signal
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
from dagster import DagsterRunStatus
from dagster._core.storage.tags import PARENT_RUN_ID_TAG, ROOT_RUN_ID_TAG
from dagster._daemon.auto_run_reexecution.auto_run_reexecution import filter_runs_to_should_retry

from apeagent_pipeline.defs.automation.orphans import fail_orphaned_runs
from apeagent_pipeline.defs.build import Graph
from apeagent_pipeline.defs.instance import open_instance
from apeagent_pipeline.defs.partitions import RANGE_END, RANGE_START
from apeagent_pipeline.settings import Settings
from apeagent_pipeline_tests.benchmarks.quarter.plan import Crash, Plan, planted, release_graph
from apeagent_pipeline_tests.defs.killer import Killer
from apeagent_pipeline_tests.tiny_graph import ASSETS

FOLLOWED = [*(name for name in ASSETS if name not in {"fused_model", "backtest"}), "service_report"]
"""The assets that the daemon keeps up to date: all without the exports and the backtest, which take longest."""
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
_MOST_TICKS = 15


@dataclass(frozen=True)
class Launch:
    """One run that is asked for.

    Attributes:
        assets: Names of the assets; empty: all of the job.
        job: Name of the job; empty: the one of all assets.
        tags: Of the run, with the range of its days.
    """

    assets: tuple[str, ...] = ()
    job: str = ""
    tags: dict[str, str] = field(default_factory=dict)

    def execute(self, graph: Graph, instance: dg.DagsterInstance) -> bool:
        """Run it in this process; whether it succeeded."""
        definitions = graph.definitions
        job = definitions.resolve_job_def(self.job) if self.job else definitions.resolve_implicit_global_asset_job_def()
        return job.execute_in_process(
            instance=instance,
            asset_selection=[dg.AssetKey(name) for name in self.assets] or None,
            tags=self.tags,
            run_config=_QUIET,
            raise_on_error=False,
        ).success


@dataclass
class Daemon:
    """The daemon of a home, with what it remembers from night to night."""

    settings: Settings
    plan: Plan
    mended: set[date] = field(default_factory=set)
    """Bad days that are read whole now."""
    resumed: list[str] = field(default_factory=list)
    """What became of each killed run."""
    runs: int = 0
    _crashes: list[Crash] = field(default_factory=list)
    _conditions: Any = None
    _sensors: dict[str, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Nothing has crashed yet."""
        self._crashes = self.plan.crashes

    def graph(self, today: date) -> Graph:
        """The definitions that are installed on a day."""
        return release_graph(self.settings, self.plan.release(today))

    def nightly(self, instance: dg.DagsterInstance, graph: Graph, today: date, tick: datetime) -> bool:
        """Run what the nightly schedule asks for; whether it succeeded."""
        (schedule,) = graph.definitions.schedules
        context = dg.build_schedule_context(instance, scheduled_execution_time=tick)
        requests = schedule.evaluate_tick(context).run_requests
        launches = [
            Launch(tuple(key.to_user_string() for key in each.asset_selection), schedule.job_name, dict(each.tags))
            for each in requests
        ]
        well = [
            self.launch(instance, graph, today, each) for each in launches
        ]  # each of them, whatever became of another
        return all(well)

    def follow(self, instance: dg.DagsterInstance, graph: Graph, today: date, at: datetime) -> bool:
        """Evaluate the conditions and run what they ask for, until they ask for nothing; whether no run failed."""
        well = True
        for second in range(0, 30 * _MOST_TICKS, 30):
            result = dg.evaluate_automation_conditions(
                graph.definitions,
                instance,
                asset_selection=dg.AssetSelection.assets(*FOLLOWED),
                evaluation_time=at + timedelta(seconds=second),
                cursor=self._conditions,
            )
            self._conditions = result.cursor
            if result.total_requested == 0:
                return well
            for launch in _grouped(result, graph):
                well &= self.launch(instance, graph, today, launch)
        raise RuntimeError(f"the conditions still ask for runs after {_MOST_TICKS} ticks of {at}")

    def launch(self, instance: dg.DagsterInstance, graph: Graph, today: date, launch: Launch) -> bool:
        """Run it, killed or not; whether it succeeded in the end."""
        self.runs += 1
        built = launch.assets or tuple(graph.synced)
        crash = next((each for each in self._crashes if each.day <= today and each.asset in built), None)
        if crash is None:
            return launch.execute(graph, instance)
        self._crashes.remove(crash)
        return self._killed(instance, today, launch, crash)

    def _killed(self, instance: dg.DagsterInstance, today: date, launch: Launch, crash: Crash) -> bool:
        """Run it in a process that is killed; then what the orphan sweep and Dagster's retries make of that."""
        told = self.settings.home / "told.jsonl"
        arguments = (self.settings, self.plan, set(self.mended), today, launch, crash, told)
        process = multiprocessing.get_context("spawn").Process(target=_doomed, args=arguments)
        process.start()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            raise RuntimeError(f"the run that builds {crash.asset} was to be killed and ended with {process.exitcode}")
        (orphan,) = fail_orphaned_runs(instance)
        if instance.get_runs(dg.RunsFilter(statuses=[DagsterRunStatus.STARTED])):
            raise RuntimeError("a killed run still counts as running")
        failed = instance.get_run_by_id(orphan)
        if failed is None or not list(filter_runs_to_should_retry([failed], instance)):
            self.resumed.append(f"{today}: {crash.asset} killed while {crash.moment}, not retried")
            return False
        again = Launch(launch.assets, launch.job, {**launch.tags, ROOT_RUN_ID_TAG: orphan, PARENT_RUN_ID_TAG: orphan})
        begun = _steps(told, crash.asset)
        told.unlink(missing_ok=True)
        graph = release_graph(self.settings, self.plan.release(today), Killer("", "working", told))
        success = again.execute(graph, instance)
        first = _steps(told, crash.asset)[:1]
        self.resumed.append(
            f"{today}: {crash.asset} killed while {crash.moment}, after {begun[-1] if begun else 0} steps; the retry "
            f"{'succeeded' if success else 'failed'} and began with step {first[0] if first else 0}"
        )
        told.unlink(missing_ok=True)
        return success

    def alert(self, instance: dg.DagsterInstance, graph: Graph) -> None:
        """Let the sensors post their alerts."""
        for sensor in graph.definitions.sensors or []:
            if sensor.name in {"failure_alert", "warning_alert"}:
                remembered = self._sensors.get(sensor.name)
                context = dg.build_sensor_context(instance, cursor=remembered, repository_name="__repository__")
                self._sensors[sensor.name] = sensor.evaluate_tick(context).cursor


def of_days(days: Iterable[str]) -> dict[str, str]:
    """The tags of a run over consecutive days."""
    ordered = sorted(days)
    return {RANGE_START: ordered[0], RANGE_END: ordered[-1]}


def _grouped(result: Any, graph: Graph) -> list[Launch]:
    """The runs of a tick: one for the assets without days, and one for each span of consecutive days."""
    whole = [name for name in FOLLOWED if name not in graph.daily and result.get_num_requested(dg.AssetKey(name))]
    spans: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in graph.daily:
        for span in _spans(result.get_requested_partitions(dg.AssetKey(name))) if name in FOLLOWED else []:
            spans[span].append(name)
    by_days = [Launch(tuple(names), tags=of_days(span)) for span, names in sorted(spans.items())]
    return [*by_days, *([Launch(tuple(whole))] if whole else [])]


def _spans(days: Collection[str]) -> list[tuple[str, str]]:
    spans: list[tuple[str, str]] = []
    for day in sorted(days):
        before = str(date.fromisoformat(day) - timedelta(days=1))
        if spans and spans[-1][1] == before:
            spans[-1] = (spans[-1][0], day)
        else:
            spans.append((day, day))
    return spans


def _steps(told: Path, asset: str) -> list[int]:
    lines = [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []
    return [done for name, done in lines if name == asset]


def _doomed(
    settings: Settings, plan: Plan, mended: set[date], today: date, launch: Launch, crash: Crash, told: Path
) -> None:
    """A process that executes a run until it is killed."""
    from apeagent_pipeline.gan import training

    training.CHECKPOINT_SECONDS = -1  # a tiny training is over before the usual time of a checkpoint
    graph = release_graph(settings, plan.release(today), Killer(crash.asset, crash.moment, told))
    with planted(plan, mended), open_instance(settings) as instance:
        launch.execute(graph, instance)
    os._exit(0)
