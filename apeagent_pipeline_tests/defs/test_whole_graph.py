"""The whole graph in one process, from the embedded chain to the reports: ``apeagent demo`` at tiny scale."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from typer.testing import CliRunner

from apeagent_pipeline import cli
from apeagent_pipeline.artifacts.provenance import provenance
from apeagent_pipeline.defs import profiles
from apeagent_pipeline.defs.build import Graph
from apeagent_pipeline.defs.instance import open_instance
from apeagent_pipeline.defs.metadata import COLUMNS
from apeagent_pipeline.defs.update import update
from apeagent_pipeline.settings import Settings
from apeagent_pipeline_tests import tiny_graph as tiny
from apeagent_pipeline_tests.distillation.scripted_server import ScriptedServer, completion
from apeagent_pipeline_tests.tiny_graph import tiny_graph

DAYS = ["2025-01-21", "2025-01-22"]
ASSETS = set(tiny.ASSETS)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def instance(tiny_settings: Settings) -> Iterator[dg.DagsterInstance]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", "")
        with open_instance(tiny_settings) as opened:
            yield opened


@pytest.fixture(scope="module")
def graph(tiny_settings: Settings, instance: dg.DagsterInstance) -> Graph:
    """The graph after everything was made once."""
    graph = tiny_graph(tiny_settings)
    rounds = update(graph, instance, DAYS, only=ASSETS)
    assert [each.errors for each in rounds] == [[]]
    return graph


def made(graph: Graph, instance: dg.DagsterInstance, only: set[str] = ASSETS) -> list[str]:
    """What an update makes now, in order."""
    rounds = update(graph, instance, DAYS, only=only)
    assert all(each.success for each in rounds), [each.errors for each in rounds]
    return [stale.name for each in rounds for stale in each.asked]


def test_every_artifact_lies_where_the_design_says(graph: Graph) -> None:
    storage = Path(str(graph.runtime.store.root))
    for path in [
        *(f"{asset}/{day}.parquet" for asset in ("raw_swaps", "liquidity_changes", "swap_features") for day in DAYS),
        *(f"{asset}/{asset}.parquet" for asset in ("training_windows", "synthetic_windows", "teacher_traces")),
        *(f"distillation_dataset/{split}.jsonl" for split in ("train", "valid", "test")),
        "lora_adapter/adapter_model.safetensors",
        "lora_adapter/adapter_config.json",
        *(
            f"{asset}/report.{end}"
            for asset in ("synthetic_quality", "canary_eval", "backtest")
            for end in ("json", "md")
        ),
    ]:
        assert (storage / path).is_file(), path
    assert not list(storage.rglob("*.tmp")), "half-written files are left"


def test_own_prompts_are_put_to_the_stored_adapter_and_to_the_base(
    graph: Graph, tiny_settings: Settings, tmp_path: Path
) -> None:
    own = tmp_path / "own.txt"
    own.write_text("What now?\nAnd what then?\n")
    environment = {"APEAGENT_HOME": str(tiny_settings.home), "APEAGENT_STUDENT": tiny_settings.student}
    done = CliRunner().invoke(cli.app, ["eval", "--prompts", str(own)], env=environment)
    assert done.exit_code == 0, done.output
    report = json.loads((tiny_settings.home / "evaluations" / "own" / "report.json").read_text())
    assert report["metrics"]["n_prompts"] == 2
    assert {"canary_rate_adapter", "canary_rate_base"} <= report["intervals"].keys()
    asked = CliRunner().invoke(cli.app, ["ask", "What now?"], env=environment)
    assert asked.exit_code == 0, asked.output


def test_synthetic_windows_and_features_share_the_columns_people_rely_on(graph: Graph) -> None:
    shared = {
        "seconds_since_previous", "tick", "price", "amount0_eth", "amount1_usdc", "volume_usdc", "volatility",
        "volume_ma", "tick_change", "liquidity", "liquidity_usage", "sqrt_price_x96", "side",
    }  # fmt: skip
    windows = graph.runtime.store.scan("synthetic_windows").collect_schema()
    features = graph.runtime.store.scan("swap_features", DAYS[0]).collect_schema()
    assert shared | {"window_id", "step", "condition_id"} == set(windows)
    assert shared | {"block_number", "log_index", "block_timestamp"} == set(features)
    assert {name: windows[name] for name in shared} == {name: features[name] for name in shared}


def test_every_column_of_every_table_is_explained(graph: Graph) -> None:
    daily = [("raw_swaps", DAYS[0]), ("swap_features", DAYS[0])]
    tables = [*daily, *((asset, None) for asset in ("training_windows", "synthetic_windows", "teacher_traces"))]
    for asset, day in tables:
        columns = graph.runtime.store.scan(asset, day).collect_schema().names()
        assert [name for name in columns if name not in COLUMNS] == [], asset


def test_reports_have_the_metrics_people_rely_on(graph: Graph) -> None:
    def metrics(asset: str) -> set[str]:
        return set(json.loads((graph.runtime.store.folder(asset) / "report.json").read_text())["metrics"])

    scores = {
        "discriminative_gbm", "discriminative_auc", "discriminative_gru", "predictive_ratio", "ks_mean", "acf_error",
        "xcorr_error", "mmd", "copied_runs", "price_matches_tick", "opposite_signs", "effective_price",
    }  # fmt: skip
    assert {f"{name}{end}" for name in scores for end in ("", "_floor", "_block_bootstrap")} <= metrics(
        "synthetic_quality"
    )
    # controls_preserved needs a base that answers some control right, which random weights do not.
    assert {
        "canary_rate_adapter", "canary_rate_base", "canary_rate_disabled", "control_leak_rate",
        "agreement", "agreement_majority", "macro_f1", "min_class_recall", "mcnemar_p", "draft_discipline",
        "feasible_rate", "n_trading", "n_controls",
    } <= metrics("canary_eval")  # fmt: skip


def test_each_artifact_says_what_it_was_made_from(graph: Graph) -> None:
    store = graph.runtime.store
    adapter = store.manifest("lora_adapter")
    dataset = store.manifest("distillation_dataset")
    windows = store.manifest("training_windows")
    assert adapter and dataset and windows
    assert adapter.inputs["distillation_dataset"] == dataset.data_version
    assert "student_base_model" in adapter.inputs
    assert adapter.config["seed"] == graph.runtime.settings.seed
    assert set(windows.inputs) == {f"swap_features/{day}" for day in DAYS}
    inherited = ("training_windows", "trained_gan", "teacher_traces", "lora_adapter", "promoted_adapter")
    assert [graph.runtime.store.whole(asset).days for asset in inherited] == [DAYS] * len(inherited)


def test_dagster_knows_the_same_data_versions(graph: Graph, instance: dg.DagsterInstance) -> None:
    for asset, day in [
        ("raw_swaps", DAYS[0]),
        ("raw_swaps", DAYS[1]),
        ("swap_features", DAYS[1]),
        ("trained_gan", None),
    ]:
        records = instance.fetch_materializations(
            dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[day] if day else None), limit=1
        ).records
        manifest = graph.runtime.store.manifest(asset, day)
        assert manifest
        materialization = records[0].asset_materialization
        assert materialization
        assert materialization.tags["dagster/data_version"] == manifest.data_version
        assert "content_hash" in materialization.metadata


def test_nothing_changed_means_nothing_is_made_again(graph: Graph, instance: dg.DagsterInstance) -> None:
    assert made(graph, instance) == []


def test_a_second_stage_is_made_when_asked_for_and_changes_nothing_else(
    graph: Graph, instance: dg.DagsterInstance, tiny_settings: Settings
) -> None:
    reinforced = tiny_graph(tiny_settings.model_copy(update={"second_stage": "grpo"}))
    stages = ["reinforced_adapter", "reinforced_eval"]
    assert made(reinforced, instance, only=ASSETS | set(stages)) == stages
    store = reinforced.runtime.store
    report = json.loads((store.folder("reinforced_eval") / "report.json").read_text())
    first = json.loads((store.folder("canary_eval") / "report.json").read_text())
    assert report["metrics"]["agreement_first"] == first["metrics"]["agreement"]
    assert {"canary_rate_adapter", "return_adapter", "return_adapter_first", "reward_gain"} <= set(report["metrics"])
    assert (store.folder("reinforced_eval") / "equity.png").is_file()
    origins = {each.name for each in provenance(store, "reinforced_eval", reinforced.runtime.externals)}
    assert {"reinforced_adapter", "lora_adapter", "synthetic_windows", f"raw_swaps/{DAYS[0]}"} <= origins
    assert made(graph, instance) == []


def test_what_apeagent_teach_asked_is_not_asked_again_by_the_graph(
    graph: Graph,
    instance: dg.DagsterInstance,
    tiny_settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    server = ScriptedServer(lambda number, body: (200, {}, completion(), 0))
    paid = tiny_settings.model_copy(
        update={"teacher": "openai", "teacher_base_url": server.url, "teacher_prices": {"qwen/qwq-32b": (0.2, 0.4)}}
    )
    monkeypatch.setattr(cli.teach, "load_settings", lambda: paid)
    monkeypatch.setattr(profiles, "PROFILES", {"demo": tiny.TINY})

    def teach(*options: str) -> str:
        command = ["teach", "--from", DAYS[0], "--to", DAYS[1], *options]
        done = CliRunner().invoke(cli.app, command, env={"COLUMNS": "160"})
        assert done.exit_code == 0, done.output
        return done.output + capfd.readouterr().out

    told = teach("--dry-run")
    assert "Given ETH price" in told or "portfolio" in told
    assert "84 of 84 prompts to ask." in told
    assert "expected, for answers of usual length" in told
    assert server.requests == []
    told = teach("--limit", "5")
    assert re.search(r"accepted +5 +100.0%", told)
    assert "Cost: 0.0002 USD" in told
    assert len(server.requests) == 5
    told = teach("--dry-run")
    assert "79 of 84 prompts to ask; the answers to 5 are kept." in told
    assert re.search(r"expected .* 79 .* 11,850 .* 2,370 .* 0.0033 USD", told)
    assert made(tiny_graph(paid), instance, only={"teacher_traces"}) == ["teacher_traces"]
    assert len(server.requests) == 84
    assert made(graph, instance, only={"teacher_traces"}) == ["teacher_traces"]


def test_a_deleted_day_is_made_again_and_only_that(graph: Graph, instance: dg.DagsterInstance) -> None:
    path = Path(str(graph.runtime.store.path("raw_swaps", DAYS[1])))
    before = path.read_bytes()
    path.unlink()
    assert made(graph, instance) == [f"raw_swaps/{DAYS[1]}"]
    assert path.read_bytes() == before, "the same day has other bytes than before"


def test_a_setting_remakes_what_depends_on_it(
    graph: Graph, instance: dg.DagsterInstance, tiny_settings: Settings
) -> None:
    asked_more = tiny_settings.model_copy(update={"eval_prompts": 7})
    upto_dataset = ASSETS - {"lora_adapter", "fused_model", "canary_eval", "backtest"}
    assert made(tiny_graph(asked_more), instance, only=upto_dataset) == ["teacher_traces", "distillation_dataset"]
    assert made(graph, instance, only=upto_dataset) == ["teacher_traces", "distillation_dataset"]


def test_a_changed_swap_changes_the_chain_below_it(graph: Graph, instance: dg.DagsterInstance) -> None:
    store = graph.runtime.store
    manifest = store.manifest("raw_swaps", DAYS[1])
    assert manifest
    swaps = store.scan("raw_swaps", DAYS[1]).collect()
    changed = swaps.with_columns(
        pl.when(pl.int_range(pl.len()) == 5).then(pl.lit("-1000")).otherwise("amount1").alias("amount1")
    )
    fields = manifest.model_dump(include={"asset", "partition", "code_version", "config", "inputs"})
    store.publish_table(changed, **fields)
    first_assets = {"raw_swaps", "swap_features", "training_windows", "trained_gan"}
    assert made(graph, instance, only=first_assets) == [f"swap_features/{DAYS[1]}", "training_windows", "trained_gan"]
