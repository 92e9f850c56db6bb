"""What happens by itself: after changes, after failures, and in the night."""

import shutil
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from apeagent_pipeline.chain.source import EmbeddedSource
from apeagent_pipeline.defs.automation.nightly import nightly_ranges
from apeagent_pipeline.defs.build import Graph, build_graph
from apeagent_pipeline.defs.conditions import retraining
from apeagent_pipeline.settings import Settings

DAYS = ["2025-01-21", "2025-01-22", "2025-01-23"]
QUIET = {"telemetry": {"enabled": False}}
CHAIN = ["swap_features", "training_windows"]
"""Cheap assets below the swaps, which show what the others do too: they have the same conditions."""


class Daemon:
    """Evaluates the conditions as the daemon does, tick after tick, and runs what is asked for."""

    def __init__(self, graph: Graph, instance: dg.DagsterInstance) -> None:
        self.graph, self.instance, self.cursor = graph, instance, None
        self.now = datetime(2026, 1, 5, 12, tzinfo=UTC)

    def due(self, *more: str) -> dict[str, set[str | None]]:
        """What this tick asks for, of the chain and more assets: asset -> days."""
        self.now += timedelta(minutes=1)
        result = dg.evaluate_automation_conditions(
            self.graph.definitions,
            self.instance,
            asset_selection=dg.AssetSelection.assets(*CHAIN, *more),
            evaluation_time=self.now,
            cursor=self.cursor,
        )
        self.cursor = result.cursor
        found: dict[str, set[str | None]] = {}
        for name in (*CHAIN, *more):
            if keys := result.get_requested_partitions(dg.AssetKey(name)):
                found[name] = set(keys)
        return found

    def run(self, asset: str, *days: str | None) -> bool:
        """Make days of an asset, or of several with spaces between, or the asset, in one run."""
        first, last = min(days, key=str), max(days, key=str)
        tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
        return (
            self.graph.definitions.resolve_implicit_global_asset_job_def()
            .execute_in_process(
                instance=self.instance,
                asset_selection=[dg.AssetKey(name) for name in asset.split()],
                tags=tags if first else {},
                raise_on_error=False,
            )
            .success
        )

    def settle(self) -> list[str]:
        """Tick and run until nothing is due; what was made, in order."""
        made = []
        while due := self.due():
            for asset, days in due.items():
                made += [f"{asset}/{day}" if day else asset for day in sorted(days, key=str)]
                assert self.run(asset, *days)
        return made


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two days, their features and the windows, with Dagster's record of the runs that made them."""
    home = tmp_path_factory.mktemp("home")
    with dg.DagsterInstance.local_temp(str(home), overrides=QUIET) as instance:
        daemon = Daemon(build_graph(Settings(home=home)), instance)
        assert daemon.run("raw_swaps", DAYS[0], DAYS[1])
        assert daemon.run("swap_features", DAYS[0], DAYS[1])
        assert daemon.run("training_windows", None)
    return home


@pytest.fixture
def daemon(tmp_path: Path, home: Path, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    shutil.copytree(home, tmp_path, dirs_exist_ok=True, symlinks=True)
    settings = Settings(home=tmp_path, retraining=getattr(request, "param", "on_change"))
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides=QUIET) as instance:
        daemon = Daemon(build_graph(settings), instance)
        daemon.due()  # the first look only remembers
        yield daemon


@pytest.fixture
def changing(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Days of which the chain now tells one swap less than before."""
    changed: set[str] = set()
    read_day = EmbeddedSource.read_day

    def read(self: EmbeddedSource, day: date, *args: object) -> pl.DataFrame:
        swaps = read_day(self, day, *args)
        return swaps.head(-1) if str(day) in changed else swaps

    monkeypatch.setattr(EmbeddedSource, "read_day", read)
    return changed


def test_reading_a_day_again_without_change_triggers_nothing(daemon: Daemon) -> None:
    daemon.run("raw_swaps", DAYS[0], DAYS[1])
    assert daemon.settle() == []


def test_a_changed_day_triggers_what_lies_below_it_once(daemon: Daemon, changing: set[str]) -> None:
    changing.add(DAYS[1])
    daemon.run("raw_swaps", DAYS[0], DAYS[1])
    assert daemon.settle() == [f"swap_features/{DAYS[1]}", "training_windows"]
    assert daemon.settle() == []


def test_a_new_day_is_taken_in(daemon: Daemon) -> None:
    daemon.run("raw_swaps", DAYS[2])
    assert daemon.settle() == [f"swap_features/{DAYS[2]}", "training_windows"]


def test_what_one_run_made_with_its_inputs_is_not_made_once_more_and_what_lies_below_once(daemon: Daemon) -> None:
    assert daemon.run("raw_swaps swap_features", *DAYS[1:])
    assert daemon.settle() == ["training_windows"]
    assert daemon.settle() == []


def test_what_the_daemon_has_built_in_one_run_with_its_input_is_not_built_once_more(
    daemon: Daemon, changing: set[str]
) -> None:
    """As the parts of a retraining are, of which each costs minutes or hours."""
    changing.add(DAYS[1])
    daemon.run("raw_swaps", DAYS[1])
    assert daemon.due() == {"swap_features": {DAYS[1]}}
    before = daemon.graph.runtime.store.whole("swap_features", DAYS[1]).data_version
    assert daemon.run("swap_features training_windows", DAYS[1])
    assert daemon.graph.runtime.store.whole("swap_features", DAYS[1]).data_version != before
    assert daemon.settle() == []


def test_a_change_is_not_lost_when_the_run_that_would_have_taken_it_in_is_cancelled(
    daemon: Daemon, changing: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changing.add(DAYS[1])
    with monkeypatch.context() as broken:
        broken.setattr("apeagent_pipeline.defs.assets.market.features_of", lambda *_: 1 / 0)
        assert not daemon.run("raw_swaps swap_features", DAYS[1])
    daemon.instance.report_run_canceled(daemon.instance.get_runs(limit=1)[0])
    assert daemon.settle() == [f"swap_features/{DAYS[1]}", "training_windows"]


def test_a_day_that_changes_after_both_were_made_is_taken_in(daemon: Daemon, changing: set[str]) -> None:
    assert daemon.run("raw_swaps swap_features", DAYS[2])
    changing.add(DAYS[2])
    daemon.run("raw_swaps", DAYS[2])
    # The windows are due for the features of the first run already, and then for those of the change.
    assert daemon.settle() == [f"swap_features/{DAYS[2]}", "training_windows", "training_windows"]


def test_two_changes_between_two_looks_are_one_run(daemon: Daemon, changing: set[str]) -> None:
    for day in DAYS[:2]:
        changing.add(day)
        daemon.run("raw_swaps", day)
    assert daemon.settle() == [*(f"swap_features/{day}" for day in DAYS[:2]), "training_windows"]


def test_a_change_while_the_asset_below_is_being_made_is_not_lost(daemon: Daemon, changing: set[str]) -> None:
    changing.add(DAYS[0])
    daemon.run("raw_swaps", DAYS[0])
    assert daemon.due() == {"swap_features": {DAYS[0]}}
    changing.remove(DAYS[0])  # the swap is back before the run that was asked for is over
    daemon.run("raw_swaps", DAYS[0])
    daemon.run("swap_features", DAYS[0])
    assert daemon.settle()[0] == f"swap_features/{DAYS[0]}"


def test_what_lacks_an_input_waits_until_it_is_there(daemon: Daemon) -> None:
    """The GAN and the adapter, which the policy leaves to their user, have never been made."""
    more = ("synthetic_windows", "synthetic_quality", "backtest", "canary_eval")
    assert daemon.due(*more) == {}  # the first look at them only remembers
    daemon.run("raw_swaps", DAYS[2])
    assert daemon.due(*more) == {"swap_features": {DAYS[2]}}
    daemon.run("swap_features", DAYS[2])
    assert daemon.due(*more) == {"training_windows": {None}}
    daemon.run("training_windows", None)
    assert [daemon.due(*more) for _ in range(3)] == [{}, {}, {}]
    daemon.instance.report_runless_asset_event(dg.AssetMaterialization("trained_gan"))
    assert daemon.due(*more) == {"synthetic_windows": {None}, "synthetic_quality": {None}}


def test_what_failed_is_asked_for_again_and_heals(
    daemon: Daemon, changing: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changing.add(DAYS[0])
    daemon.run("raw_swaps", DAYS[0])
    assert daemon.due() == {"swap_features": {DAYS[0]}}
    with monkeypatch.context() as broken:
        broken.setattr("apeagent_pipeline.defs.assets.market.features_of", lambda *_: 1 / 0)
        assert not daemon.run("swap_features", DAYS[0])
    made = []
    for _ in range(30):
        made += daemon.settle()
    assert made == [f"swap_features/{DAYS[0]}", "training_windows"]


def test_what_failed_beside_its_inputs_heals_too(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr("apeagent_pipeline.defs.assets.market.features_of", lambda *_: 1 / 0)
        assert not daemon.run("raw_swaps swap_features", DAYS[2])
    made = []
    for _ in range(30):
        made += daemon.settle()
    assert made == [f"swap_features/{DAYS[2]}", "training_windows"]


def test_expensive_assets_follow_the_policy_of_the_settings(tmp_path) -> None:
    def conditions(policy: str) -> dict[str, str | None]:
        assets = build_graph(Settings(home=tmp_path, retraining=policy)).assets
        specs = [asset.get_asset_spec(asset.key) for asset in assets]
        return {s.key.to_user_string(): s.automation_condition and s.automation_condition.get_label() for s in specs}

    manual, weekly, always = map(conditions, ("manual", "weekly", "on_change"))
    assert {name for name in manual if manual[name] is None} == {
        "raw_swaps",
        "training_windows",
        "trained_gan",
        "teacher_traces",
        "lora_adapter",
    }
    assert weekly["trained_gan"] == retraining("weekly").get_label()
    assert [name for name in always if always[name] is None] == ["raw_swaps"]


def new_day_until_sunday(daemon: Daemon, below: list[str]) -> None:
    """A new day is read on a weekday, which makes nothing but features due, and the windows on Sunday."""
    daemon.run("raw_swaps swap_features", DAYS[2])
    while due := daemon.due(*below):
        assert due.keys() == {"swap_features"}, "a weekday"
        daemon.run("swap_features", *due["swap_features"])
    daemon.now = datetime(2026, 1, 11, 3, tzinfo=UTC)
    assert daemon.due(*below) == {"training_windows": {None}}


@pytest.mark.parametrize("daemon", ["weekly"], indirect=True)
def test_weekly_new_days_wait_for_sunday_and_the_synthetic_windows_for_the_new_gan(daemon: Daemon) -> None:
    below = ["trained_gan", "synthetic_windows", "synthetic_quality", "teacher_traces"]
    daemon.due(*below)
    new_day_until_sunday(daemon, below)
    daemon.run("training_windows", None)
    # In one run, so in the order of the graph; the teacher is asked about the windows of the new GAN, afterwards.
    assert daemon.due(*below).keys() == {"trained_gan", "synthetic_windows", "synthetic_quality"}


@pytest.mark.parametrize("daemon", ["weekly"], indirect=True)
def test_a_pending_training_waits_for_what_the_new_days_make_of_its_dataset(daemon: Daemon) -> None:
    """A retraining by hand leaves a change pending that costs hours to take in, just before another one."""
    drawn = ["trained_gan", "synthetic_windows", "synthetic_quality"]
    made = [*drawn, "teacher_model", "teacher_traces", "distillation_dataset"]

    def tell(name: str, version: str) -> None:
        tags = {"dagster/data_version": version}
        daemon.instance.report_runless_asset_event(dg.AssetMaterialization(name, tags=tags))

    for name in [*made, "student_base_model"]:
        tell(name, "1")
    below = [*made, "lora_adapter"]
    daemon.due(*below)
    tell("distillation_dataset", "2")
    new_day_until_sunday(daemon, below)
    for built, then in (
        (["training_windows"], set(drawn)),
        (drawn, {"teacher_traces"}),
        (["teacher_traces"], {"distillation_dataset", "lora_adapter"}),
    ):
        for name in built:
            tell(name, "3")
        assert daemon.due(*below).keys() == then


def test_a_month_of_nights_with_outages_asks_for_each_day_once(tmp_path) -> None:
    """The daemon is off for three nights, and later for six; of the ticks it missed the scheduler gives the newest."""
    graph = build_graph(Settings(home=tmp_path, rpc_urls="http://127.0.0.1:1", nightly_recheck_days=0))
    (schedule,) = graph.definitions.schedules
    assert schedule.cron_schedule == ["0 2 * * *", "0 5 * * *", "0 8 * * *"]
    stored: list[str] = []
    graph.runtime.store.days = lambda asset: stored  # type: ignore[method-assign]
    asked: list[str] = []
    keys = []
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides=QUIET) as instance:
        for night in (date(2025, 3, 1) + timedelta(days=number) for number in range(31)):
            if night.day in (10, 11, 12) or 20 <= night.day <= 25:
                continue
            context = dg.build_schedule_context(
                instance, scheduled_execution_time=datetime(night.year, night.month, night.day, 2, tzinfo=UTC)
            )
            (request,) = schedule.evaluate_tick(context).run_requests
            keys.append(request.run_key)
            low, high = (
                date.fromisoformat(request.tags[f"dagster/asset_partition_range_{end}"]) for end in ("start", "end")
            )
            days = [str(low + timedelta(days=number)) for number in range((high - low).days + 1)]
            asked += days
            stored[:] = sorted({*stored, *days})
    assert asked == [str(date(2025, 2, 28) + timedelta(days=number)) for number in range(31)]
    assert len(set(keys)) == len(keys)


def test_a_night_reads_the_last_days_once_more_and_never_before_the_first_swap() -> None:
    days = [str(date(2025, 1, 21) + timedelta(days=number)) for number in range(10)]
    newest = (date(2025, 1, 27), date(2025, 1, 30))
    assert nightly_ranges(date(2025, 1, 31), 3, days) == [newest]
    assert nightly_ranges(date(2025, 1, 23), 3, []) == [(date(2025, 1, 21), date(2025, 1, 22))]
    assert nightly_ranges(date(2026, 1, 31), 3, days) == [(date(2025, 12, 31), date(2026, 1, 30))]  # a month at most
    a_day = (date(2025, 1, 24), date(2025, 1, 24))
    assert nightly_ranges(date(2025, 1, 31), 3, days, ["2025-01-24"]) == [a_day, newest]


def test_a_hole_before_the_newest_day_is_filled_by_a_run_of_its_own() -> None:
    days = [str(date(2025, 1, 21) + timedelta(days=number)) for number in range(10)]
    holes = [day for day in days if day not in ("2025-01-23", "2025-01-24", "2025-01-27")]
    assert nightly_ranges(date(2025, 1, 31), 1, holes) == [
        (date(2025, 1, 23), date(2025, 1, 24)),
        (date(2025, 1, 27), date(2025, 1, 27)),
        (date(2025, 1, 29), date(2025, 1, 30)),
    ]
    assert nightly_ranges(date(2025, 1, 31), 3, holes[2:])[0] == (date(2025, 1, 27), date(2025, 1, 30)), (
        "days before the first stored one are nobody's holes"
    )


@pytest.mark.parametrize("at", ["02:00", "20:00"])
def test_a_night_that_failed_is_tried_again_twice_and_one_that_worked_is_not(tmp_path: Path, at: str) -> None:
    settings = Settings(home=tmp_path, rpc_urls="http://127.0.0.1:1", nightly_at=at)
    graph = build_graph(settings)
    (schedule,) = graph.definitions.schedules
    graph.runtime.store.days = lambda asset: ["2025-02-20", "2025-02-22"]  # type: ignore[method-assign]
    job = graph.definitions.resolve_job_def(schedule.job_name)
    begun = datetime(2025, 2, 28, int(at[:2]), tzinfo=UTC)
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides=QUIET) as instance:

        def tick(hours: int) -> Any:
            context = dg.build_schedule_context(instance, scheduled_execution_time=begun + timedelta(hours=hours))
            return schedule.evaluate_tick(context)

        def ran(request: dg.RunRequest, status: dg.DagsterRunStatus) -> None:
            instance.create_run_for_job(job, tags=dict(request.tags), status=status)

        first = tick(0).run_requests
        assert [each.run_key for each in first] == ["nightly-2025-02-28", "nightly-2025-02-28-of-2025-02-21"]
        ran(first[0], dg.DagsterRunStatus.STARTED)
        assert "started" in tick(3).skip_message
        (started,) = instance.get_runs()
        instance.report_run_failed(started)
        (again,) = tick(3).run_requests
        assert again.run_key == "nightly-2025-02-28-2"
        assert again.tags == first[0].tags
        ran(again, dg.DagsterRunStatus.FAILURE)
        (last,) = tick(6).run_requests
        assert last.run_key == "nightly-2025-02-28-3"
        ran(last, dg.DagsterRunStatus.SUCCESS)
        assert "success" in tick(6).skip_message
        # The daemon was off in the night: the tick of the morning reads what the night should have.
        missed = schedule.evaluate_tick(
            dg.build_schedule_context(instance, scheduled_execution_time=begun + timedelta(days=1, hours=3))
        ).run_requests
        assert missed[0].run_key == "nightly-2025-03-01"


def test_a_cause_that_stays_is_not_retried_for_ever(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    assert daemon.run("raw_swaps", DAYS[2])
    monkeypatch.setattr("apeagent_pipeline.defs.assets.market.features_of", lambda *_: 1 / 0)
    tried = 0
    for _ in range(40):
        daemon.now += timedelta(minutes=14)  # and one by the tick: ten hours in all
        if "swap_features" in daemon.due():
            tried += 1
            assert not daemon.run("swap_features", DAYS[2])
    assert 2 <= tried <= 7


def test_a_request_of_the_night_makes_its_days_and_the_daemon_makes_them_not_once_more(tmp_path) -> None:
    """The run that the schedule asks for is one that Dagster can carry out, with its checks."""
    graph = build_graph(Settings(home=tmp_path))
    (schedule,) = graph.definitions.schedules
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides=QUIET) as instance:
        context = dg.build_schedule_context(instance, scheduled_execution_time=datetime(2025, 1, 23, 2, tzinfo=UTC))
        (request,) = schedule.evaluate_tick(context).run_requests
        daemon = Daemon(graph, instance)
        daemon.due("liquidity_changes")  # the first look only remembers
        job = graph.definitions.resolve_job_def(schedule.job_name)
        done = job.execute_in_process(instance=instance, asset_selection=request.asset_selection, tags=request.tags)
        assert done.success
        assert {each.check_name for each in done.get_asset_check_evaluations()} >= {
            "no_swap_missing",
            "final_when_read",
        }
        assert not {DAYS[1]} & {day for days in daemon.due("liquidity_changes").values() for day in days}
    assert graph.runtime.store.days("swap_features") == DAYS[:2]


def test_an_archive_has_no_nights(tmp_path) -> None:
    (schedule,) = build_graph(Settings(home=tmp_path, swaps_archive=tmp_path / "swaps.csv")).definitions.schedules
    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_schedule_context(instance, scheduled_execution_time=datetime(2025, 1, 23, 2, tzinfo=UTC))
        assert "archive" in schedule.evaluate_tick(context).skip_message
