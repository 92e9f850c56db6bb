"""A home after some weeks, as the journeys through the UI find it, made in seconds by what makes a real one."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg

from apeagent_pipeline.defs.build import Graph
from apeagent_pipeline.defs.instance import open_instance
from apeagent_pipeline.defs.partitions import RANGE_END, RANGE_START
from apeagent_pipeline.defs.reconcile import record
from apeagent_pipeline.settings import Settings
from apeagent_pipeline.student.promotion import PROMOTED
from apeagent_pipeline_tests.defs.candidates import GOOD, publish_candidate
from apeagent_pipeline_tests.tiny_graph import tiny_graph

DAYS = ["2025-01-21", "2025-01-22"]
DRIFT = "the market lies outside the range of the training days: volume. To retrain on the newest days: `apeagent demo`"
CAUSE = "raw_swaps of 2025-02-10 are missing: materialize raw_swaps for 2025-02-10 first"
COST = 12.34


def live(home: Path) -> str:
    """Two days, a failed run, and a refused adapter whose report has changed since.

    Returns:
        The refused adapter's data version.
    """
    settings = Settings(home=home)
    graph = tiny_graph(settings)
    with open_instance(settings) as instance:
        _run(graph, instance, "raw_swaps swap_features", *DAYS)
        _run(graph, instance, "training_windows")
        publish_candidate(graph.runtime.store, "good", GOOD)
        _run(graph, instance, PROMOTED)
        refused = publish_candidate(graph.runtime.store, "leaking", {**GOOD, "control_leak_rate": 0.9})
        for name in ("lora_adapter", "canary_eval"):
            record(graph, instance, graph.runtime.store.whole(name))
        _run(graph, instance, PROMOTED)
        record(graph, instance, graph.runtime.store.whole("canary_eval").model_copy(update={"data_version": "changed"}))
        _run(graph, instance, "swap_features", "2025-02-10")
        _tell(instance)
    return refused


def _run(graph: Graph, instance: dg.DagsterInstance, assets: str, *days: str) -> None:
    graph.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance,
        asset_selection=[dg.AssetKey(name) for name in assets.split()],
        tags={RANGE_START: days[0], RANGE_END: days[-1]} if days else {},
        raise_on_error=False,
    )


def _tell(instance: dg.DagsterInstance) -> None:
    """What the daemon and the teacher would have told: the bill, and a warning of yesterday's score."""
    yesterday = str(datetime.now(UTC).date() - timedelta(days=1))
    for event in (
        dg.AssetMaterialization("teacher_traces", metadata={"prompts": 1_010, "total_cost_usd": COST}),
        dg.AssetMaterialization("service_report", partition=yesterday),
        dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey("service_report"), check_name="still_good", passed=False,
            severity=dg.AssetCheckSeverity.WARN, description=DRIFT,
        ),
    ):  # fmt: skip
        instance.report_runless_asset_event(event)
