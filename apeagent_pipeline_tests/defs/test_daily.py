"""Days that are made in any order and by several runs."""

from pathlib import Path

import dagster as dg

from apeagent_pipeline.defs.build import Graph, build_graph
from apeagent_pipeline.defs.staleness import stale_artifacts
from apeagent_pipeline.settings import Settings

DAYS = ["2025-01-21", "2025-01-22"]


def make(graph: Graph, instance: dg.DagsterInstance, day: str) -> None:
    job = graph.definitions.resolve_implicit_global_asset_job_def()
    keys = [dg.AssetKey("raw_swaps"), dg.AssetKey("swap_features")]
    assert job.execute_in_process(instance=instance, asset_selection=keys, partition_key=day).success


def versions(graph: Graph) -> dict[str, str]:
    return {day: graph.runtime.store.whole("swap_features", day).data_version for day in DAYS}


def test_a_day_made_before_the_day_before_is_made_again_with_the_rows_it_should_see(tmp_path: Path) -> None:
    in_order, backwards = (build_graph(Settings(home=tmp_path / name)) for name in ("in_order", "backwards"))
    with dg.DagsterInstance.ephemeral() as instance:
        for day in DAYS:
            make(in_order, instance, day)
    with dg.DagsterInstance.ephemeral() as instance:
        for day in reversed(DAYS):
            make(backwards, instance, day)
        recorded = instance.get_latest_data_version_record(dg.AssetKey("swap_features"), partition_key=DAYS[1])
    assert versions(backwards) == versions(in_order)
    made = [asset for asset in backwards.assets if asset.key.to_user_string() in {"raw_swaps", "swap_features"}]
    assert stale_artifacts(made, backwards.runtime, DAYS) == []
    assert recorded is not None
    assert recorded.asset_materialization is not None
    assert recorded.asset_materialization.tags["dagster/data_version"] == versions(in_order)[DAYS[1]]
