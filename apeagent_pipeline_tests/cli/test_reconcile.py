"""``apeagent reconcile``: what is stored and what Dagster holds for stored become one."""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from typer.testing import CliRunner, Result

from apeagent_pipeline import cli
from apeagent_pipeline.artifacts.store import ArtifactStore
from apeagent_pipeline.cli.server import require_only_daemon
from apeagent_pipeline.defs import profiles
from apeagent_pipeline.defs.instance import open_instance, prepare_home
from apeagent_pipeline.defs.update import update
from apeagent_pipeline.settings import Settings, SettingsError
from apeagent_pipeline_tests.defs.candidates import GOOD, publish_candidate
from apeagent_pipeline_tests.tiny_graph import TINY, tiny_graph

DAYS = ["2025-01-22", "2025-01-23", "2025-01-24"]
ASSETS = {"raw_swaps", "swap_features", "training_windows"}
POOL = "0x96d4b53a38337a5733179751781178a2613306063c511b78cd02684739288c0a"


@pytest.fixture(autouse=True)
def tiny_profile(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(profiles, "PROFILES", {"demo": TINY})
    yield


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = Settings(home=tmp_path_factory.mktemp("built"))
    with open_instance(settings) as instance:
        assert update(tiny_graph(settings), instance, DAYS, only=ASSETS)[-1].success
    return settings.home


@pytest.fixture
def home(built: Path, tmp_path: Path) -> Path:
    """A home with the days, their features and windows, as the runs left them."""
    shutil.copytree(built, tmp_path / "home", symlinks=True)
    return tmp_path / "home"


def reconcile(home: Path, *options: str) -> Result:
    done = CliRunner().invoke(cli.app, ["reconcile", *options], env={"APEAGENT_HOME": str(home), "COLUMNS": "200"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def days_known(home: Path, asset: str) -> set[str]:
    with open_instance(Settings(home=home)) as instance:
        return set(instance.get_materialized_partitions(dg.AssetKey(asset)))


def test_what_runs_built_is_in_agreement(home: Path) -> None:
    done = reconcile(home)
    assert done.exit_code == 0
    assert "agrees with the storage" in done.output


def test_a_storage_is_registered_in_a_new_home_and_nothing_is_built_again(home: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.move(home / "storage", moved / "storage")
    told = reconcile(moved, "--dry-run")
    assert told.exit_code == 1
    assert "Would register: 3 days of raw_swaps (2025-01-22, 2025-01-23, 2025-01-24)" in told.output
    assert days_known(moved, "raw_swaps") == set()
    settings = Settings(home=moved)
    graph = tiny_graph(settings)
    with open_instance(settings) as instance:
        # The daemon has looked at the empty home already.
        now = datetime(2026, 1, 5, 12, tzinfo=UTC)
        selection = dg.AssetSelection.assets("swap_features", "training_windows", "trained_gan")
        looked = dg.evaluate_automation_conditions(graph.definitions, instance, selection, evaluation_time=now)
    done = reconcile(moved)
    assert "Registered: 3 days of swap_features" in done.output
    assert "Registered: training_windows" in done.output
    assert done.exit_code == 0
    assert days_known(moved, "swap_features") == set(DAYS)
    with open_instance(settings) as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey("training_windows"))
        assert event
        assert event.asset_materialization
        version = graph.runtime.store.whole("training_windows").data_version
        assert (event.asset_materialization.tags or {})["dagster/data_version"] == version
        for minute in (1, 2):
            looked = dg.evaluate_automation_conditions(
                graph.definitions,
                instance,
                selection,
                evaluation_time=now + timedelta(minutes=minute),
                cursor=looked.cursor,
            )
            # The GAN has never been built, so it is due; what was registered is not built again.
            assert looked.get_num_requested(dg.AssetKey("swap_features")) == 0
            assert looked.get_num_requested(dg.AssetKey("training_windows")) == 0
    assert "agrees" in reconcile(moved).output


def test_a_dry_run_of_sync_and_demo_says_what_would_be_built_and_why_and_builds_nothing(home: Path) -> None:
    (home / "storage" / "swap_features" / f"{DAYS[1]}.parquet").unlink()
    asked = ["--from", DAYS[0], "--to", "2025-01-25", "--dry-run"]
    environment = {"APEAGENT_HOME": str(home), "COLUMNS": "200"}
    for command, rows, total in (
        ("sync", {"raw_swaps": 1, "liquidity_changes": 4, "swap_features": 2}, 7),
        ("demo", {"raw_swaps": 1, "trained_gan": 1, "canary_eval": 1}, None),
    ):
        done = CliRunner().invoke(cli.app, [command, *asked], env=environment)
        assert done.exit_code == 0, done.output
        for name, count in rows.items():
            assert any(line.split()[:5] == ["│", name, "│", str(count), "│"] for line in done.output.splitlines())
        assert "Nothing was built." in done.output
        assert total is None or f"{total} artifacts would be built" in done.output
    store = ArtifactStore(str(home / "storage"), home / "cache")
    assert store.days("raw_swaps") == DAYS
    assert store.manifest("swap_features", DAYS[1]) is None


def test_a_copied_home_goes_on_at_another_path_without_building_anything_again(home: Path, tmp_path: Path) -> None:
    restored = tmp_path / "another" / "place"
    shutil.copytree(home, restored, symlinks=True)
    shutil.rmtree(home)
    assert "agrees with the storage" in reconcile(restored).output
    settings = Settings(home=restored)
    with open_instance(settings) as instance:
        assert update(tiny_graph(settings), instance, DAYS, only=ASSETS) == []


def test_a_deleted_day_counts_as_missing_but_not_while_a_run_is_in_progress(home: Path) -> None:
    (home / "storage" / "swap_features" / f"{DAYS[1]}.parquet").unlink()
    with open_instance(Settings(home=home)) as instance:
        run = instance.create_run_for_job(
            tiny_graph(Settings(home=home)).definitions.resolve_job_def("model"), status=dg.DagsterRunStatus.STARTED
        )
    told = reconcile(home)
    assert told.exit_code == 1
    assert f"left as they are, because run {run.run_id} is in progress" in told.output
    assert days_known(home, "swap_features") == set(DAYS)
    with open_instance(Settings(home=home)) as instance:
        instance.report_run_canceled(run)
    assert f"1 days of swap_features ({DAYS[1]}) count as missing now" in reconcile(home).output
    assert days_known(home, "swap_features") == set(DAYS) - {DAYS[1]}
    assert reconcile(home).exit_code == 0


def test_holes_torn_artifacts_and_other_markets_are_named_with_what_mends_them(home: Path) -> None:
    store = ArtifactStore(str(home / "storage"), home / "cache")
    manifest = store.whole("raw_swaps", DAYS[0])
    fields = manifest.model_dump(include={"asset", "code_version"})
    table = store.table(manifest).collect()
    store.publish_table(
        table, partition="2025-01-27", inputs={"swap_source": f"rpc-8453-0x{'ab' * 20}-{POOL}"}, **fields
    )
    (home / "storage" / "training_windows" / "training_windows.parquet").unlink()
    done = reconcile(home)
    output = " ".join(done.output.split())
    assert done.exit_code == 1
    assert "Registered: 1 days of raw_swaps (2025-01-27)" in output
    assert "`apeagent sync --from 2025-01-25 --to 2025-01-26` reads them" in output
    assert "Files are gone: training_windows. `apeagent demo` builds it again" in output
    assert "The storage holds 2 markets: pool 0x96d4b53a of chain 8453, simulated" in output
    assert "pool 0x96d4b53a of chain 8453 (2025-01-27)" in output


def test_a_registered_report_has_its_page_and_all_its_figures(home: Path) -> None:
    publish_candidate(ArtifactStore(str(home / "storage"), home / "cache"), "good", GOOD)
    assert "Registered: canary_eval" in reconcile(home).output
    with open_instance(Settings(home=home)) as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey("canary_eval"))
    assert event
    assert event.asset_materialization
    shown = {name: str(each.value) for name, each in event.asset_materialization.metadata.items()}
    assert list(shown)[:2] == ["report", "all figures"]
    assert "Made from" not in shown["report"]
    assert "| control leak rate | 0 |" in shown["all figures"]


def test_a_running_daemon_must_be_stopped_first(home: Path) -> None:
    require_only_daemon(prepare_home(Settings(home=home)))  # as `apeagent ui` does
    done = CliRunner().invoke(cli.app, ["reconcile"], env={"APEAGENT_HOME": str(home)})
    assert isinstance(done.exception, SettingsError)
    assert "another `apeagent ui` runs" in str(done.exception)
    assert reconcile(home, "--dry-run").exit_code == 0
