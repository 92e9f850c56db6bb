"""What failed a blocking check is not built from, whatever starts the run. A bad day stops only its own readers."""

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from apeagent_pipeline.chain.source import EmbeddedSource
from apeagent_pipeline.defs import checks
from apeagent_pipeline.defs.build import Graph, build_graph
from apeagent_pipeline.defs.staleness import stale_artifacts
from apeagent_pipeline.defs.update import held_back, update
from apeagent_pipeline.settings import Settings

DAYS = ["2025-01-21", "2025-01-22", "2025-01-23", "2025-01-24"]
BAD, AFTER = DAYS[1], DAYS[2]
"""The day that lacks swaps, and the next one, which reads its last rows."""
GOOD = {DAYS[0], DAYS[3]}


class House:
    """Four days of swaps, one of which failed its check because every third swap is missing."""

    def __init__(self, home: Path, instance: dg.DagsterInstance) -> None:
        self.graph: Graph = build_graph(Settings(home=home))
        self.instance = instance

    def run(self, assets: str, *days: str) -> dg.ExecuteInProcessResult:
        """One run of some assets and a range of days, as the UI, a backfill and the daemon launch it."""
        tags = {"dagster/asset_partition_range_start": days[0], "dagster/asset_partition_range_end": days[-1]}
        return self.graph.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=self.instance,
            asset_selection=[dg.AssetKey(name) for name in assets.split()],
            tags=tags,
            raise_on_error=False,
        )

    @property
    def features(self) -> set[str]:
        return {day for day in self.graph.runtime.store.days("swap_features") if day}


@pytest.fixture
def bad_days(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    bad = {BAD}
    read_day = EmbeddedSource.read_day

    def read(self: EmbeddedSource, day: date, *args: object) -> pl.DataFrame:
        swaps = read_day(self, day, *args)
        return swaps.filter(pl.int_range(pl.len()) % 3 != 0) if str(day) in bad else swaps

    monkeypatch.setattr(EmbeddedSource, "read_day", read)
    return bad


@pytest.fixture
def house(tmp_path: Path, bad_days: set[str]) -> Iterator[House]:
    with dg.DagsterInstance.ephemeral() as instance:
        house = House(tmp_path, instance)
        assert not house.run("raw_swaps", *DAYS).success
        yield house


def cause(result: dg.ExecuteInProcessResult) -> str:
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    error = failure.step_failure_data.error
    assert error
    return error.to_string()


def test_a_run_builds_the_neighbours_of_a_bad_day_and_says_why_it_does_not_build_its_readers(house: House) -> None:
    result = house.run("swap_features", *DAYS)
    assert house.features == GOOD
    assert f"check no_swap_missing of raw_swaps of {BAD} failed: swaps are missing: " in cause(result)
    assert "2 of 4 days failed" in cause(result)


@pytest.mark.parametrize("day", [BAD, AFTER])
def test_a_single_day_is_refused_however_often_it_is_launched(house: House, day: str) -> None:
    for _ in range(2):
        assert "check no_swap_missing" in cause(house.run("swap_features", day))
    assert house.features == set()


def test_the_command_line_builds_the_neighbours_and_reports_the_bad_day(house: House) -> None:
    only = {"raw_swaps", "swap_features"}
    rounds = update(house.graph, house.instance, DAYS, only=only, keep_going=True)
    assert house.features == GOOD
    assert not rounds[-1].success
    assert any("no_swap_missing" in error and BAD in error for error in rounds[-1].errors)
    stale = stale_artifacts(house.graph.assets, house.graph.runtime, DAYS)
    held = held_back(house.graph, house.instance, stale)
    assert {name for name in held if name.startswith("swap_features/")} == {
        f"swap_features/{BAD}",
        f"swap_features/{AFTER}",
    }


def test_a_mended_day_opens_the_gate(house: House, bad_days: set[str]) -> None:
    bad_days.clear()
    assert house.run("raw_swaps", BAD).success
    assert house.run("swap_features", *DAYS).success
    assert house.features == set(DAYS)


def test_a_changed_check_is_asked_again_before_anything_is_refused(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: with the verdict gone, the same run builds every day."""
    monkeypatch.setattr(house.graph.runtime.artifacts.gates, "_judges", lambda: "another source")
    assert checks.judges() != "another source"
    assert house.run("swap_features", *DAYS).success
    assert house.features == set(DAYS)
