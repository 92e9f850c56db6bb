"""A run with other options than the profile's is told as such, and takes nobody's place in service by itself."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from apeagent_pipeline.defs.build import Graph
from apeagent_pipeline.defs.partitions import RANGE_END, RANGE_START
from apeagent_pipeline.defs.staleness import stale_artifacts
from apeagent_pipeline.settings import Settings
from apeagent_pipeline.student.promotion import PROMOTED, history
from apeagent_pipeline_tests.defs.candidates import GOOD, publish_candidate
from apeagent_pipeline_tests.tiny_graph import tiny_graph

DAYS = ["2025-01-21", "2025-01-22"]


class House:
    """Runs as the UI launches them: by the instance, with the options of the Launchpad."""

    def __init__(self, graph: Graph, instance: dg.DagsterInstance) -> None:
        self.graph, self.instance, self.store = graph, instance, graph.runtime.store

    def launch(self, asset: str, *days: str, **options: object) -> dg.ExecuteInProcessResult:
        ends = zip((RANGE_START, RANGE_END), (min(days, default=""), max(days, default="")), strict=True)
        result = self.graph.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=self.instance,
            asset_selection=[dg.AssetKey(name) for name in asset.split()],
            tags=dict(ends) if days else {},
            run_config={"ops": {asset: {"config": options}}} if options else {},
            raise_on_error=False,
        )
        self.evaluations = result.get_asset_check_evaluations()
        return result

    def metadata(self, asset: str) -> dict[str, Any]:
        event = self.instance.get_latest_materialization_event(dg.AssetKey(asset))
        assert event
        assert event.asset_materialization
        return {name: value.value for name, value in event.asset_materialization.metadata.items()}

    def train(self, version: str, **metrics: float) -> str:
        """An adapter with its report, as far as promotion is concerned; its data version."""
        return publish_candidate(self.store, version, {**GOOD, **metrics})


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield House(tiny_graph(Settings(home=tmp_path)), instance)


def test_an_experiment_is_told_on_its_page_by_status_and_by_what_is_made_from_it(house: House) -> None:
    assert house.launch("raw_swaps swap_features", *DAYS).success
    assert house.launch("training_windows").success
    assert "experiment" not in house.metadata("training_windows")
    assert house.launch("training_windows", days=1).success
    told = "training_windows was launched with days 1 instead of 30"
    assert house.metadata("training_windows")["experiment"] == told
    (stale,) = [
        each for each in stale_artifacts(house.graph.assets, house.graph.runtime, DAYS) if each.reason != "missing"
    ]
    assert (stale.asset, stale.reason) == ("training_windows", "launched with days 1 instead of 30")
    assert house.launch("trained_gan").success
    assert house.metadata("trained_gan")["experiment"] == told
    # The next ordinary run is none.
    assert house.launch("training_windows").success
    assert "experiment" not in house.metadata("training_windows")


def test_an_experiment_goes_into_service_only_if_its_launch_says_so(house: House) -> None:
    first = house.train("first")
    assert house.launch(PROMOTED).success
    tried = publish_candidate(house.store, "tried", GOOD, {"training_windows": "days 1 instead of 30"})
    assert house.launch(PROMOTED).success
    assert history(house.store)[-1].adapter == first
    (refused,) = [each for each in house.evaluations if each.check_name == "newest_in_service"]
    assert not refused.passed
    assert refused.severity is dg.AssetCheckSeverity.WARN
    assert refused.description.startswith(f"adapter {tried} was not promoted: it is an experiment")
    page = house.metadata(PROMOTED)["page"]
    assert f"{tried} was not promoted; {first} stays in service" in page
    assert "it is an experiment: training_windows was launched with days 1 instead of 30" in page
    assert "option experiments: true" in page
    assert house.launch(PROMOTED, experiments=True).success
    assert history(house.store)[-1].adapter == tried
    # The run after that does not take it away again, and the launch makes nothing stale.
    assert house.launch(PROMOTED).success
    assert history(house.store)[-1].adapter == tried
    manifest = house.store.whole(PROMOTED)
    spec = next(each for each in house.graph.assets if each.key == dg.AssetKey(PROMOTED)).get_asset_spec()
    assert manifest.code_version == spec.code_version


def test_limits_that_the_launchpad_lowered_are_an_experiment_too(house: House) -> None:
    house.train("first")
    assert house.launch(PROMOTED).success
    told = {"canary_eval": "max_control_leak 1.0 instead of 0.05"}
    publish_candidate(house.store, "leaking", {**GOOD, "control_leak_rate": 0.04}, told)
    assert house.launch(PROMOTED).success
    assert "max_control_leak 1.0 instead of 0.05" in json.dumps(house.metadata(PROMOTED)["why"])
