"""Simulated and real days are never learned from together, and the storage says when it holds both."""

from datetime import date
from pathlib import Path

import dagster as dg
import polars as pl

from apeagent_pipeline.chain.market_name import market_of
from apeagent_pipeline.chain.source import open_swap_source
from apeagent_pipeline.defs.build import Graph, build_graph
from apeagent_pipeline.defs.service_checks import service_checks
from apeagent_pipeline.market.features import swap_features
from apeagent_pipeline.settings import Settings

SIMULATED, REAL = ["2025-01-21", "2025-01-22"], ["2025-01-23", "2025-01-24"]


def fingerprint(**settings: object) -> str:
    return open_swap_source(Settings(**settings)).fingerprint()  # type: ignore[arg-type]


def test_files_and_nodes_of_a_pool_are_one_market_and_each_simulation_is_another(tmp_path: Path) -> None:
    archive = tmp_path / "swaps.csv"
    archive.write_text("block_number\n")
    by_node = market_of(fingerprint(rpc_urls="http://127.0.0.1:9"))
    assert by_node == "pool 0x96d4b53a of chain 8453"
    assert market_of(fingerprint(swaps_archive=archive)) == by_node
    assert market_of(fingerprint(swaps_archive=archive, swaps_signs="pool")) == by_node
    assert market_of(fingerprint(rpc_urls="http://127.0.0.1:9", rpc_transactions=True)) == by_node
    others = {market_of(fingerprint(seed=1)), market_of(fingerprint(seed=2)), by_node}
    others.add(market_of(fingerprint(rpc_urls="http://127.0.0.1:9", pool_id="0x" + "12" * 32)))
    others.add(
        market_of(
            fingerprint(
                rpc_urls="http://127.0.0.1:9", chain_id=130, pool_manager="0x" + "34" * 20, pool_id="0x" + "12" * 32
            )
        )
    )
    assert len(others) == 5


def windows(graph: Graph, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    return graph.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance, asset_selection=[dg.AssetKey("training_windows")], raise_on_error=False
    )


def test_windows_of_simulated_and_real_days_are_refused_by_name_and_the_storage_warns(tmp_path: Path) -> None:
    graph = build_graph(Settings(home=tmp_path))
    store = graph.runtime.store
    (one_market,) = [each for each in service_checks(graph.runtime) if "one_market" in str(each.check_keys)]

    before: pl.DataFrame | None = None

    def publish(days: list[str], source: str) -> None:
        nonlocal before
        for day in days:
            swaps = graph.runtime.source.read_day(date.fromisoformat(day))
            made = store.publish_table(
                swaps, asset="raw_swaps", partition=day, code_version="1", inputs={"swap_source": source}
            )
            store.publish_table(
                swap_features(swaps, graph.runtime.source.pool, before),
                asset="swap_features",
                partition=day,
                code_version="1",
                inputs={f"raw_swaps/{day}": made.data_version},
            )
            before = swaps

    publish(SIMULATED, graph.runtime.source.fingerprint())
    with dg.DagsterInstance.ephemeral() as instance:
        (made,) = windows(graph, instance).asset_materializations_for_node("training_windows")
        assert "simulated" in str(made.metadata["market"].value)
        assert one_market().passed
        publish(REAL, fingerprint(rpc_urls="http://127.0.0.1:9"))
        result = windows(graph, instance)
        assert not result.success
        (failure,) = [event for event in result.all_events if event.is_step_failure]
        told = failure.step_failure_data.error.to_string()
        assert "the days come from 2 markets: pool 0x96d4b53a of chain 8453, simulated" in told
        assert f"pool 0x96d4b53a of chain 8453 ({', '.join(REAL)})" in told
        assert "apeagent sync --from" in told
        verdict = one_market()
        assert not verdict.passed
        assert verdict.severity is dg.AssetCheckSeverity.WARN
        assert "the storage holds 2 markets" in verdict.description
