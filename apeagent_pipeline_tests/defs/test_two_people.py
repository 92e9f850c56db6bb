"""Two people on one instance, and a laptop that sleeps: each ends with whole artifacts, and says what happened.

Dagster cannot execute two runs in two threads of a process. So a second run begins and ends in the middle of the first.
"""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import psutil
import pytest
from dagster import DagsterRunStatus

from apeagent_pipeline.chain.source import EmbeddedSource
from apeagent_pipeline.defs.automation.orphans import fail_orphaned_runs
from apeagent_pipeline.defs.build import Graph, build_graph
from apeagent_pipeline.defs.instance import open_instance
from apeagent_pipeline.defs.partitions import RANGE_END, RANGE_START
from apeagent_pipeline.defs.staleness import stale_artifacts
from apeagent_pipeline.market.features import swap_features
from apeagent_pipeline.settings import Settings

DAYS = [f"2025-01-{number}" for number in range(21, 25)]
FEATURES = dg.AssetKey("swap_features")
CHAIN = ["swap_features", "training_windows"]
DEADLINE_S = 300


class House:
    """A home, and the people who start runs in it."""

    def __init__(self, home: Path, instance: dg.DagsterInstance) -> None:
        self.graph: Graph = build_graph(Settings(home=home))
        self.instance, self.cursor = instance, None
        self.now = datetime(2026, 1, 5, 12, tzinfo=UTC)

    def run(self, assets: str, *days: str, **tags: str) -> bool:
        """Build days of some assets in one run, which has the instance of its own that a process of its own has."""
        with open_instance(self.graph.runtime.settings) as instance:
            return (
                self.graph.definitions.resolve_implicit_global_asset_job_def()
                .execute_in_process(
                    instance=instance,
                    asset_selection=[dg.AssetKey(name) for name in assets.split()],
                    tags={RANGE_START: days[0], RANGE_END: days[-1], **tags} if days else tags,
                    raise_on_error=False,
                )
                .success
            )

    def due(self) -> dict[str, set[str | None]]:
        """What the daemon asks for at its next look."""
        self.now += timedelta(minutes=1)
        chain = dg.AssetSelection.assets(*CHAIN)
        looked = dg.evaluate_automation_conditions(
            self.graph.definitions, self.instance, chain, self.now, cursor=self.cursor
        )
        self.cursor = looked.cursor
        asked = {name: set(looked.get_requested_partitions(dg.AssetKey(name))) for name in CHAIN}
        return {name: days for name, days in asked.items() if days}

    def torn(self) -> list[str]:
        """Stored files that are not those of their manifest."""
        store = self.graph.runtime.store
        return [
            f"{asset}/{name}"
            for asset in ("raw_swaps", *CHAIN)
            for manifest in store.manifests(asset).values()
            for name, file in (manifest.files.items() if manifest else [(f"{asset} is missing", None)])
            if file is None or hashlib.sha256((store.folder(asset) / name).read_bytes()).hexdigest() != file.sha256
        ]

    def stale(self, *days: str) -> list[str]:
        """What of the daily assets is out of date."""
        assets = [each for each in self.graph.assets if each.key.to_user_string() in ("raw_swaps", "swap_features")]
        return [each.name for each in stale_artifacts(assets, self.graph.runtime, list(days))]

    def known(self, asset: str) -> set[str]:
        """The days that Dagster knows."""
        return set(self.instance.get_materialized_partitions(dg.AssetKey(asset)))

    def said(self, run_id: str) -> str:
        """What the page of a run shows."""
        return "\n".join(each.user_message for each in self.instance.all_logs(run_id))


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setenv("DAGSTER_HOME", "")  # open_instance sets it
    with open_instance(Settings(home=tmp_path)) as instance:
        yield House(tmp_path, instance)


@pytest.fixture
def before_reading(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[date], None]]:
    """What is called before a day is read from the chain."""
    called: list[Callable[[date], None]] = []
    read_day = EmbeddedSource.read_day

    def read(self: EmbeddedSource, day: date, *args: object) -> pl.DataFrame:
        for each in [*called]:
            each(day)
        return read_day(self, day, *args)

    monkeypatch.setattr(EmbeddedSource, "read_day", read)
    return called


@pytest.fixture
def before_computing(house: House, monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """A day with features and windows, and a second one without; what is called before features are computed."""
    assert house.run("raw_swaps swap_features", DAYS[0])
    assert house.run("training_windows")
    house.due()  # the first look only remembers
    assert house.run("raw_swaps", DAYS[1])
    called: list[Callable[[], None]] = []

    def compute(*args: Any) -> pl.DataFrame:
        for each in [*called]:
            each()
        return swap_features(*args)

    monkeypatch.setattr("apeagent_pipeline.defs.assets.market.features_of", compute)
    return called


def test_two_runs_of_the_same_day_both_end_well_and_leave_one_whole_day(
    house: House, before_reading: list[Callable[[date], None]]
) -> None:
    def another_run(day: date) -> None:
        before_reading.clear()
        assert house.run("raw_swaps swap_features", str(day))

    before_reading.append(another_run)
    assert house.run("raw_swaps swap_features", DAYS[0])
    assert [each.status for each in house.instance.get_runs()] == [DagsterRunStatus.SUCCESS] * 2
    assert house.torn() == []
    assert house.stale(DAYS[0]) == []
    assert house.known("swap_features") == {DAYS[0]}


def test_a_cancelled_backfill_keeps_and_records_what_it_has_built_and_says_what_is_left(
    house: House, before_reading: list[Callable[[date], None]]
) -> None:
    def cancel(day: date) -> None:
        if str(day) == DAYS[2]:
            (run,) = house.instance.get_runs()
            house.instance.report_run_canceling(run)
            os.kill(os.getpid(), signal.SIGINT)  # as the launcher does, to the process of the run

    before_reading.append(cancel)
    assert not house.run("raw_swaps", *DAYS, **{"dagster/backfill": "backfill"})
    (run,) = house.instance.get_runs()
    assert run.status is DagsterRunStatus.CANCELED
    assert (
        "interrupted: 2 of 4 days are stored and recorded; to build the rest, launch raw_swaps for 2025-01-23 to "
        in (house.said(run.run_id))
    )
    assert house.known("raw_swaps") == {*DAYS[:2]} == {*house.graph.runtime.store.days("raw_swaps")}
    assert house.torn() == []
    before_reading.clear()
    assert house.run("raw_swaps", *DAYS[2:])
    assert house.stale(*DAYS) == [f"swap_features/{day}" for day in DAYS]


def test_the_daemon_does_not_launch_what_a_person_has_launched_and_is_running(
    house: House, before_computing: list[Callable[[], None]]
) -> None:
    seen: list[dict[str, set[str | None]]] = []
    before_computing.append(lambda: seen.append(house.due()))
    assert house.run("swap_features", DAYS[1])
    assert seen == [{}], "it waits for the person's run"
    before_computing.clear()
    while due := house.due():
        assert all(house.run(name, *(day for day in days if day)) for name, days in due.items())
    assert house.torn() == []
    assert house.stale(*DAYS[:2]) == []


def test_a_person_who_launches_what_the_daemon_launches_makes_one_day_and_one_update_of_what_reads_it(
    house: House, before_computing: list[Callable[[], None]]
) -> None:
    assert house.due() == {"swap_features": {DAYS[1]}}

    def the_person() -> None:
        before_computing.clear()
        assert house.run("swap_features", DAYS[1])

    before_computing.append(the_person)
    assert house.run("swap_features", DAYS[1])
    assert house.due() == {"training_windows": {None}}
    assert house.run("training_windows")
    assert [house.due() for _ in range(2)] == [{}, {}]
    assert house.torn() == []
    assert house.stale(*DAYS[:2]) == []


SLEEPER = """
import sys
from pathlib import Path
from apeagent_pipeline_tests.defs.test_two_people import DAYS, House
from apeagent_pipeline.chain.source import EmbeddedSource
from apeagent_pipeline.defs.instance import open_instance
from apeagent_pipeline.settings import Settings

home, begun = map(Path, sys.argv[1:])
read_day = EmbeddedSource.read_day

def read(self, day, *rest):
    begun.write_text(str(day))
    return read_day(self, day, *rest)

EmbeddedSource.read_day = read
with open_instance(Settings(home=home)) as instance:
    sys.exit(not House(home, instance).run("raw_swaps swap_features", *DAYS[:2]))
"""


@pytest.mark.slow
def test_a_run_on_a_laptop_that_sleeps_goes_on_when_it_wakes_and_nobody_takes_it_for_dead(
    house: House, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    process = subprocess.Popen([sys.executable, "-c", SLEEPER, str(tmp_path), str(begun)])
    try:
        until = time.monotonic() + DEADLINE_S
        while not begun.exists():
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGSTOP)
        while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.05)
        assert fail_orphaned_runs(house.instance) == []
        assert [each.status for each in house.instance.get_runs()] == [DagsterRunStatus.STARTED]
        assert house.torn() == [], "what is stored while it sleeps is whole"
        process.send_signal(signal.SIGCONT)
        assert process.wait(timeout=DEADLINE_S) == 0
    finally:
        process.kill()
    assert [each.status for each in house.instance.get_runs()] == [DagsterRunStatus.SUCCESS]
    assert house.torn() == []
    assert house.stale(*DAYS[:2]) == []
    assert house.known("swap_features") == {*DAYS[:2]}
