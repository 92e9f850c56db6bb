"""Where the history of runs lies: below home, or in a real Postgres."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import ASSET_CHECK_EVENTS, ASSET_EVENTS
from sqlalchemy import make_url

from apeagent_pipeline.defs.automation.retention import forget_old_logs, log_retention
from apeagent_pipeline.defs.instance import open_instance, prepare_home
from apeagent_pipeline.settings import Settings, SettingsError, load_settings, show_settings
from apeagent_pipeline_tests.defs.dropping_proxy import dropping_proxy
from apeagent_pipeline_tests.defs.ports import free_port
from apeagent_pipeline_tests.defs.postgres_server import PASSWORD, QUOTED_PASSWORD, postgres_server


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture(autouse=True)
def same_environment_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """``open_instance`` sets these for the processes that it starts."""
    for name in ("DAGSTER_HOME", "APEAGENT_POSTGRES_URL"):
        monkeypatch.setenv(name, "")


def in_postgres(home: Path, url: str) -> Settings:
    return Settings(home=home, postgres_url=url)  # type: ignore[arg-type]


@dg.asset
def quick() -> None: ...


def test_with_one_url_the_whole_history_is_in_postgres_and_the_password_in_no_file(
    tmp_path: Path, postgres_url: str
) -> None:
    with open_instance(in_postgres(tmp_path, postgres_url)) as instance:
        for storage in (instance.run_storage, instance.event_log_storage, instance.schedule_storage):
            assert "Postgres" in type(storage).__name__
        run_id = dg.materialize([quick], instance=instance).run_id
    with open_instance(in_postgres(tmp_path, postgres_url)) as again:
        assert again.get_run_by_id(run_id)
        assert PASSWORD not in again.info_str()
        assert QUOTED_PASSWORD not in again.info_str()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix == ".db"]
    assert not [path for path in files if QUOTED_PASSWORD.encode() in path.read_bytes()]


@pytest.mark.parametrize("storage", ["SQLite", "Postgres"])
def test_old_logs_are_forgotten_and_what_was_made_and_checked_is_not(
    tmp_path: Path, request: pytest.FixtureRequest, storage: str
) -> None:
    settings = Settings(home=tmp_path)
    if storage == "Postgres":
        settings = in_postgres(tmp_path, request.getfixturevalue("postgres_url"))

    @dg.asset(check_specs=[dg.AssetCheckSpec("good", asset="loud")])
    def loud(context: dg.AssetExecutionContext) -> Iterator[dg.Output | dg.AssetCheckResult]:
        context.log.info("much to say " * 50_000)
        yield dg.Output(1, data_version=dg.DataVersion("v1"))
        yield dg.AssetCheckResult(passed=True)

    def known(instance: dg.DagsterInstance) -> list[object]:
        version = instance.get_latest_data_version_record(loud.key)
        (check,) = instance.event_log_storage.get_asset_check_execution_history(loud.check_key, limit=9)
        return [version and version.event_log_entry.to_json(), check.event and check.event.to_json()]

    with open_instance(settings) as instance:
        at = datetime.now(UTC)
        old = dg.materialize([loud], instance=instance).run_id
        young = dg.materialize([quick], instance=instance).run_id
        before, logs = known(instance), instance.all_logs(young)
        assert log_retention(90)(dg.build_sensor_context(instance)).skip_message == "logs of 0 runs deleted"
        until = instance.get_run_record_by_id(old).update_timestamp + timedelta(microseconds=1)
        assert forget_old_logs(instance, at, until) == (1, until)
        assert known(instance) == before
        left = {entry.dagster_event_type for entry in instance.all_logs(old)}
        assert left == ASSET_EVENTS.intersection(left) | ASSET_CHECK_EVENTS.intersection(left)
        assert instance.get_run_by_id(old).is_success
        assert instance.all_logs(young) == logs
    outputs = [path.parent.parent.name for path in tmp_path.rglob("compute_logs/*")]
    assert young in outputs
    assert old not in outputs
    if storage == "SQLite":
        assert next(tmp_path.rglob(f"{old}.db")).stat().st_size < 200_000


def test_postgres_can_be_switched_on_and_off_later(tmp_path: Path, postgres_url: str) -> None:
    for settings, kind in (
        (Settings(home=tmp_path), "Sqlite"),
        (in_postgres(tmp_path, postgres_url), "Postgres"),
        (Settings(home=tmp_path), "Sqlite"),
    ):
        with open_instance(settings) as instance:
            assert kind in type(instance.run_storage).__name__


def test_an_edited_dagster_yaml_is_left_alone_and_told_what_it_lacks(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = prepare_home(Settings(home=tmp_path)) / "dagster.yaml"
    edited = path.read_text().replace("max_concurrent_runs: 4", "max_concurrent_runs: 2")
    path.write_text(edited)
    prepare_home(Settings(home=tmp_path))
    with pytest.raises(SettingsError, match="env: APEAGENT_POSTGRES_URL") as told:
        open_instance(in_postgres(tmp_path, postgres_url))
    assert path.read_text() == edited
    path.write_text(edited + str(told.value).split("add to it\n")[1])
    with open_instance(in_postgres(tmp_path, postgres_url)) as instance:
        assert "Postgres" in type(instance.run_storage).__name__
    monkeypatch.delenv("APEAGENT_POSTGRES_URL")
    with pytest.raises(SettingsError, match="APEAGENT_POSTGRES_URL is not set"):
        open_instance(Settings(home=tmp_path))


def test_what_is_wrong_with_the_url_is_told_without_the_password(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = postgres_url.replace(f":{postgres_url.rsplit(':', 1)[1]}", f":{free_port()}/postgres")
    for url, told in (
        (nobody, "Connection refused"),
        (postgres_url.replace(QUOTED_PASSWORD, "wrong"), "password authentication failed"),
        (postgres_url.replace("/postgres", "/none"), 'database "none" does not exist'),
    ):
        with pytest.raises(SettingsError, match=told) as error:
            open_instance(in_postgres(tmp_path, url))
        assert "127.0.0.1" in str(error.value)
        assert QUOTED_PASSWORD not in str(error.value)
    monkeypatch.setenv("APEAGENT_POSTGRES_URL", "mysql://ape:secret@127.0.0.1/ape")
    with pytest.raises(SettingsError, match="expected postgresql://USER:PASSWORD@HOST:PORT/NAME") as error:
        load_settings()
    assert "secret" not in str(error.value)


def test_the_url_is_shown_without_user_and_password(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APEAGENT_POSTGRES_URL", "postgresql://ape:secret@db.example:5432/ape")
    shown = next(row.value for row in show_settings(load_settings()) if row.variable == "APEAGENT_POSTGRES_URL")
    assert shown == "postgresql+psycopg2://db.example:5432/***"


DAILY = dg.DailyPartitionsDefinition(start_date="2025-01-21")
TWENTY_DAYS = [f"2025-02-{day:02d}" for day in range(1, 21)]


@dg.asset(partitions_def=DAILY)
def daily(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    return dg.MaterializeResult(data_version=dg.DataVersion(context.partition_key))


class Outage(dg.Config):
    """How long Postgres cannot be reached, in seconds."""

    seconds: float


def sync(settings: Settings) -> subprocess.Popen[str]:
    """``apeagent sync`` of some days, as a user starts it."""
    assert settings.postgres_url
    url = settings.postgres_url.get_secret_value()
    environment = {**os.environ, "APEAGENT_HOME": str(settings.home), "APEAGENT_POSTGRES_URL": url}
    command = [sys.executable, "-m", "apeagent_pipeline.cli", "sync", "--from", "2025-01-21", "--to", "2025-01-23"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def make(home: Path, url: str, day: str) -> None:
    with open_instance(in_postgres(home, url)) as instance:
        assert dg.materialize([daily], partition_key=day, instance=instance).success


@pytest.mark.slow
def test_twenty_days_at_once_each_in_a_process_of_its_own_are_all_recorded(tmp_path: Path, postgres_url: str) -> None:
    with open_instance(in_postgres(tmp_path, postgres_url)) as instance:  # the first makes the tables
        fork = multiprocessing.get_context("fork")  # without importing Dagster twenty times
        runs = [fork.Process(target=make, args=(tmp_path, postgres_url, day)) for day in TWENTY_DAYS]
        for run in runs:
            run.start()
        for run in runs:
            run.join()
        assert [run.exitcode for run in runs] == [0] * len(TWENTY_DAYS)
        assert instance.get_materialized_partitions(daily.key) == set(TWENTY_DAYS)


@pytest.mark.slow
def test_a_short_outage_of_postgres_is_waited_for_and_a_long_one_told_clearly(
    tmp_path: Path, postgres_url: str
) -> None:
    server = make_url(postgres_url)
    assert server.port
    with dropping_proxy(server.port) as proxy:
        settings = in_postgres(tmp_path, postgres_url.replace(f":{server.port}/", f":{proxy.port}/"))

        def back() -> None:
            proxy.cut = False

        @dg.asset
        def cut_off(config: Outage) -> None:
            proxy.cut_all()
            threading.Timer(config.seconds, back).start()

        def run(seconds: float) -> bool:
            outage = dg.RunConfig({"cut_off": Outage(seconds=seconds)})
            with open_instance(settings) as instance:
                return dg.materialize([cut_off], instance=instance, run_config=outage).success

        assert run(0.5)

        first_day = tmp_path / "storage" / "raw_swaps" / "2025-01-21.parquet"
        with sync(settings) as interrupted:
            while not first_day.exists():
                time.sleep(0.01)
            proxy.cut_all()
            _, told = interrupted.communicate(timeout=300)
        assert interrupted.returncode == 2
        assert f"APEAGENT_POSTGRES_URL=postgresql+psycopg2://127.0.0.1:{proxy.port}/***" in told
        assert "Run the command again" in told
        for never in ("Traceback", PASSWORD, QUOTED_PASSWORD):
            assert never not in told
        back()
        with sync(settings) as again:
            again.communicate(timeout=300)
        assert again.returncode == 0
