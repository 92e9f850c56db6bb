"""Late swaps are told, and an old day that is read again does not hide them."""

from datetime import UTC, datetime, time, timedelta
from pathlib import Path

import dagster as dg
import pytest

from apeagent_pipeline.defs.automation.freshness import day_due, swaps_freshness
from apeagent_pipeline.defs.build import build_graph
from apeagent_pipeline.settings import Settings


def test_an_old_day_read_again_does_not_hide_that_yesterday_is_missing(tmp_path: Path) -> None:
    graph = build_graph(Settings(home=tmp_path, rpc_urls="http://127.0.0.1:9"))
    (sensor,) = (each for each in graph.definitions.sensors if each.name == "swaps_freshness")
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
    assert swaps_freshness(build_graph(Settings(home=tmp_path)).runtime) == ([], [])
    (check,), _ = swaps_freshness(graph.runtime)
    raw_swaps = next(each for each in graph.assets if each.key == dg.AssetKey("raw_swaps"))
    jobs = [dg.define_asset_job("fresh", dg.AssetSelection.checks(check))]
    job = dg.Definitions([raw_swaps], asset_checks=[check], jobs=jobs).resolve_job_def("fresh")
    cursor = None
    with dg.DagsterInstance.ephemeral() as instance:

        def tick() -> list[dg.RunRequest]:
            nonlocal cursor
            context = dg.build_sensor_context(instance, cursor=cursor, definitions=graph.definitions)
            found = sensor.evaluate_tick(context)
            cursor = found.cursor
            return list(found.run_requests)

        def warned() -> str:
            (found,) = job.execute_in_process(instance=instance).get_asset_check_evaluations()
            assert found.severity is dg.AssetCheckSeverity.WARN
            return "" if found.passed else str(found.description)

        (asked,) = tick()
        assert asked.asset_check_keys == [dg.AssetCheckKey(dg.AssetKey("raw_swaps"), "fresh")]
        assert tick() == [], "once a day"
        due = day_due(datetime.now(UTC), graph.runtime.settings.nightly_at)
        days: list[str] = []
        graph.runtime.store.days = lambda asset: days  # type: ignore[method-assign]
        assert f"the swaps of {due} are missing" in warned()
        days.append(str(due - timedelta(days=1)))
        assert f"materialize raw_swaps for {due}" in warned()
        days.append(str(due))
        assert warned() == ""


@pytest.mark.parametrize(
    ("now", "nightly_at", "due"),
    [
        ("2026-01-10 05:59", "02:00", "2026-01-08"),
        ("2026-01-10 06:00", "02:00", "2026-01-09"),
        ("2026-01-10 23:59", "02:00", "2026-01-09"),
        ("2026-01-11 01:59", "22:00", "2026-01-08"),
        ("2026-01-11 02:00", "22:00", "2026-01-09"),
        ("2026-01-11 23:59", "22:00", "2026-01-09"),
    ],
)
def test_a_day_is_due_four_hours_after_its_night_began(now: str, nightly_at: str, due: str) -> None:
    at = datetime.fromisoformat(now).replace(tzinfo=UTC)
    assert str(day_due(at, time.fromisoformat(nightly_at))) == due
