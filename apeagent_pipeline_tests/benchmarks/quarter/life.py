"""The nights of a simulated quarter, and the operator who does what alerts ask for, and nothing else."""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from math import inf
from pathlib import Path
from typing import Any
from unittest import mock

import dagster as dg
import sqlalchemy
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from dagster._core.storage.runs.sqlite import sqlite_run_storage
from dagster._core.storage.schedules.sqlite import sqlite_schedule_storage
from pydantic import SecretStr

from apeagent_pipeline.artifacts import store as artifact_store
from apeagent_pipeline.chain.days import FIRST_DAY
from apeagent_pipeline.defs.automation.retention import forget_old_logs
from apeagent_pipeline.defs.build import SYNC_JOB, Graph
from apeagent_pipeline.defs.instance import open_instance
from apeagent_pipeline.defs.service_checks import RETRAINED
from apeagent_pipeline.defs.staleness import Stale, stale_artifacts
from apeagent_pipeline.defs.update import update
from apeagent_pipeline.settings import Settings
from apeagent_pipeline_tests.benchmarks.quarter.daemon import FOLLOWED, Daemon, Launch, of_days
from apeagent_pipeline_tests.benchmarks.quarter.home import disk, page_loads
from apeagent_pipeline_tests.benchmarks.quarter.plan import Plan, planted
from apeagent_pipeline_tests.defs.webhook import Webhook
from apeagent_pipeline_tests.student.tiny_qwen2 import build_tiny_qwen2

LOGS_KEPT = 30
"""Simulated days after which the logs of runs are deleted."""


@dataclass
class Quarter:
    """What has happened so far.

    Attributes:
        alerts: The night's day, and what the webhook was told.
        steps: The day, and what the operator did because of which text.
        notes: The day, and what else is worth knowing.
        start: Figures of the home after the first night.
        end: The same after the last one.
        last: The day of the last night that was lived through.
    """

    daemon: Daemon
    webhook: Webhook
    alerts: list[tuple[date, str]] = field(default_factory=list)
    steps: list[tuple[date, str]] = field(default_factory=list)
    notes: list[tuple[date, str]] = field(default_factory=list)
    start: dict[str, float] = field(default_factory=dict)
    end: dict[str, float] = field(default_factory=dict)
    last: date = FIRST_DAY
    _begun: dict[date, datetime] = field(default_factory=dict)
    """Day -> when its night began on the real clock."""

    def graph(self, today: date) -> Graph:
        """The definitions that are installed on a day."""
        return self.daemon.graph(today)

    def night(self, today: date) -> None:
        """The night after a day, and the morning after it."""
        tick = datetime(today.year, today.month, today.day, 2, tzinfo=UTC) + timedelta(days=1)
        self._begun[today] = datetime.now(UTC)
        graph, daemon = self.graph(today), self.daemon
        with open_instance(daemon.settings) as instance:
            well = daemon.nightly(instance, graph, today, tick)
            # After the schedule; after the tick of the weekly retraining; and where a run failed, when it is retried.
            for at, always in ((timedelta(minutes=1), True), (timedelta(minutes=31), False),
                               (timedelta(minutes=65), True), (timedelta(hours=4), False)):  # fmt: skip
                if always or not well:
                    well &= daemon.follow(instance, graph, today, tick + at)
            self._read_alerts(instance, graph, today)
            self._morning(instance, graph, today, tick + timedelta(hours=7))
            if forgotten := self._begun.get(today - timedelta(days=LOGS_KEPT)):
                forget_old_logs(instance, datetime.fromtimestamp(0, UTC), forgotten)

    def _read_alerts(self, instance: dg.DagsterInstance, graph: Graph, today: date) -> None:
        self.daemon.alert(instance, graph)
        self.alerts += [(today, text) for text in self.webhook.told]
        self.webhook.told.clear()

    def _morning(self, instance: dg.DagsterInstance, graph: Graph, today: date, at: datetime) -> None:
        """Do what the night's alerts ask for."""
        told = [text for day, text in self.alerts if day == today]
        if any("materialize the day again" in text for text in told):
            self.daemon.mended.add(today)
            self.steps.append((today, "materialized the day again, as the alert of its failed check says"))
            self.daemon.launch(instance, graph, today, Launch(job=SYNC_JOB, tags=of_days([str(today)])))
            self.daemon.follow(instance, graph, today, at)
        if any("To retrain on the newest days" in text for text in told):
            self.steps.append((today, "retrained on the newest days, as the warning of the market says"))
            self._update(instance, graph, graph.runtime.store.days("swap_features"), set(RETRAINED))
            self.daemon.follow(instance, graph, today, at)
        if any(told):
            self._read_alerts(instance, graph, today)

    def _update(self, instance: dg.DagsterInstance, graph: Graph, days: list[str], only: set[str]) -> None:
        rounds = update(graph, instance, days, only=only)
        if failed := [each.errors for each in rounds if not each.success]:
            raise RuntimeError(f"a step of the operator failed: {failed}")

    def first_training(self) -> None:
        """`apeagent demo` on the first days, after which the daemon looks for the first time."""
        last = FIRST_DAY + timedelta(days=self.daemon.plan.first - 1)
        graph = self.graph(last)
        days = [str(FIRST_DAY + timedelta(days=number)) for number in range(self.daemon.plan.first)]
        with open_instance(self.daemon.settings) as instance:
            self._update(instance, graph, days, set(FOLLOWED))
            self.daemon.follow(instance, graph, last, datetime(last.year, last.month, last.day, 12, tzinfo=UTC))
            self._read_alerts(instance, graph, last)

    def upgrade(self, today: date) -> None:
        """Install the next release; rebuild what `apeagent status` names of the daily assets."""
        graph = self.graph(today)
        found = Counter(each.asset for each in self.stale(today) if each.reason == "code or settings changed")
        shown = ", ".join(f"{count} of {asset}" for asset, count in found.items())
        self.notes.append((today, f"upgrade; `apeagent status` names {shown} for changed code or options"))
        if daily := set(found) & set(graph.synced):
            names = ", ".join(sorted(daily))
            self.steps.append((today, f"rebuilt {names}, as `apeagent status` says after an upgrade"))
            with open_instance(self.daemon.settings) as instance:
                self._update(instance, graph, graph.runtime.store.days("raw_swaps"), daily)

    def move(self, today: date, to: Path) -> None:
        """Move the home to another path."""
        before = {each.name for each in self.stale(today)}
        shutil.move(self.daemon.settings.home, to)
        self.daemon.settings = self.daemon.settings.model_copy(update={"home": to, "storage": ""})
        more = {each.name for each in self.stale(today)} - before
        self.notes.append((today, f"moved to another path; {len(more)} artifacts more are out of date"))

    def stale(self, today: date) -> list[Stale]:
        """What is out of date of what the daemon follows."""
        graph = self.graph(today)
        assets = [each for each in graph.assets if each.key.to_user_string() in FOLLOWED]
        return stale_artifacts(assets, graph.runtime, graph.runtime.store.days("raw_swaps"))

    def figures(self) -> dict[str, float]:
        """Of the home as it is."""
        return {**disk(self.daemon.settings), **page_loads(self.daemon.settings)}


@contextmanager
def kept_engines() -> Iterator[None]:
    """Keep the engine of each SQLite file.

    Dagster makes one for every event that it stores, and a new engine compiles each statement anew: a quarter of the
    processor time of a simulated night.
    """
    usual, engines = sqlalchemy.create_engine, {}

    def create(url: str, **options: Any) -> sqlalchemy.Engine:
        if url not in engines:
            engines[url] = usual(url, **options)
        return engines[url]

    with ExitStack() as patches:
        for module in (sqlite_event_log, sqlite_run_storage, sqlite_schedule_storage):
            patches.enter_context(mock.patch.object(module, "create_engine", create))
        yield


def live(plan: Plan, work: Path, say: Callable[[str], None], minutes: float = inf) -> Quarter:
    """Live through the quarter.

    Args:
        plan: When what happens.
        work: Folder for home and student.
        say: Called with a line a day.
        minutes: No night begins later than so long after the beginning.
    """
    webhook = Webhook()
    # Superseded versions are deleted a day after their successor: here with it, for a simulated day takes seconds.
    artifact_store._KEPT_AFTER_ITS_SUCCESSOR = timedelta(0)
    settings = Settings(
        home=work / "home", student=str(build_tiny_qwen2(work / "student")), eval_prompts=6, nightly_recheck_days=0,
        retraining="weekly", alert_webhook=SecretStr(webhook.address),
    )  # fmt: skip
    quarter = Quarter(Daemon(settings, plan), webhook)
    begun = time.monotonic()
    try:
        with kept_engines(), planted(plan, quarter.daemon.mended):
            quarter.first_training()
            say(f"first training on {plan.first} days after {time.monotonic() - begun:.0f} s")
            for number in range(plan.first, plan.days):
                if time.monotonic() - begun > 60 * minutes:
                    break
                quarter.last = today = FIRST_DAY + timedelta(days=number)
                if today in plan.upgrades:
                    quarter.upgrade(today)
                if today == plan.move:
                    quarter.move(today, work / "moved")
                runs, told, done = quarter.daemon.runs, len(quarter.alerts), len(quarter.steps)
                quarter.night(today)
                if number == plan.first:
                    quarter.start = quarter.figures()
                spent = f"{time.monotonic() - begun:.0f} s, {time.process_time():.0f} s of them computing"
                say(f"{today} after {spent}: {quarter.daemon.runs - runs} runs")
                for _, text in [*quarter.alerts[told:], *quarter.steps[done:]]:
                    say(f"    {text[:300]}")
            quarter.end = quarter.figures()
    finally:
        webhook.server.shutdown()
    return quarter
