"""An adapter beyond the limits of its report never goes into service, whatever starts the run."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from apeagent_pipeline.defs.build import Graph
from apeagent_pipeline.defs.instance import open_instance
from apeagent_pipeline.defs.update import update
from apeagent_pipeline.settings import load_settings
from apeagent_pipeline.student.promotion import PROMOTED, history
from apeagent_pipeline_tests.defs.candidates import BAD, GOOD, publish_candidate
from apeagent_pipeline_tests.tiny_graph import tiny_graph

KEY = dg.AssetKey(PROMOTED)
Start = Callable[[Graph, dg.DagsterInstance], None]


def job() -> dg.JobDefinition:
    """The job from the days to the export, as a process of the launcher loads it."""
    return tiny_graph(load_settings()).definitions.resolve_job_def("model")


def launched(graph: Graph, instance: dg.DagsterInstance, **tags: str) -> dg.ExecuteInProcessResult:
    return graph.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance, asset_selection=[KEY], tags=tags, raise_on_error=False
    )


def by_the_ui(graph: Graph, instance: dg.DagsterInstance) -> None:
    launched(graph, instance)


def by_a_backfill(graph: Graph, instance: dg.DagsterInstance) -> None:
    launched(graph, instance, **{"dagster/backfill": "backfill"})


def by_the_command_line(graph: Graph, instance: dg.DagsterInstance) -> None:
    assert update(graph, instance, [], only={PROMOTED})


def by_the_daemon(graph: Graph, instance: dg.DagsterInstance) -> None:
    now, cursor = datetime(2026, 1, 5, 12, tzinfo=UTC), None
    for name in ("lora_adapter", "canary_eval"):
        instance.report_runless_asset_event(dg.AssetMaterialization(name))
    for minute in (0, 1):
        looked = dg.evaluate_automation_conditions(
            graph.definitions, instance, dg.AssetSelection.assets(KEY), now + timedelta(minutes=minute), cursor=cursor
        )
        cursor = looked.cursor
        version = graph.runtime.store.whole("canary_eval").data_version
        tags = {"dagster/data_version": f"{version}{minute}"}
        instance.report_runless_asset_event(dg.AssetMaterialization("canary_eval", tags=tags))
    looked = dg.evaluate_automation_conditions(
        graph.definitions, instance, dg.AssetSelection.assets(KEY), now + timedelta(minutes=2), cursor=cursor
    )
    assert looked.get_num_requested(KEY) == 1, "the daemon asks for it by itself"
    launched(graph, instance, **{"dagster/auto_materialize": "true"})


def by_re_execution(graph: Graph, instance: dg.DagsterInstance) -> None:
    parent = job().execute_in_process(instance=instance, asset_selection=[KEY], raise_on_error=False).run_id
    again = dg.ReexecutionOptions(parent_run_id=parent)
    with dg.execute_job(dg.reconstructable(job), instance=instance, asset_selection=[KEY], reexecution_options=again):
        pass


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.setenv("APEAGENT_HOME", str(tmp_path))
    with open_instance(load_settings()) as opened:
        yield opened


@pytest.mark.parametrize("start", [by_the_ui, by_a_backfill, by_the_command_line, by_the_daemon, by_re_execution])
def test_it_is_refused_as_the_first_adapter_and_after_a_good_one(instance: dg.DagsterInstance, start: Start) -> None:
    graph = tiny_graph(load_settings())
    store = graph.runtime.store
    bad = publish_candidate(store, "bad", BAD)
    start(graph, instance)
    assert history(store) == []
    assert store.manifest(PROMOTED) is None
    good = publish_candidate(store, "good", GOOD)
    assert launched(graph, instance).success
    assert publish_candidate(store, "bad", BAD) == bad
    start(graph, instance)
    assert [each.adapter for each in history(store)] == [good]
    assert (store.local_folder(PROMOTED) / "adapter_model.safetensors").read_bytes() == b"good"
    event = instance.get_latest_materialization_event(KEY)
    assert event
    assert event.asset_materialization
    page = str(event.asset_materialization.metadata["page"].value)
    assert f"{bad} was not promoted; {good} stays in service" in page
    for reason in ("canary_rate_adapter is 0.100; expected at least 0.9", "control_leak_rate is 0.900", "agreement"):
        assert reason in page
