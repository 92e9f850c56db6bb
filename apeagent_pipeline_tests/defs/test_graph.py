"""The graph people see: names, dependencies, groups and checks. A change here changes everyone's lineage."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from apeagent_pipeline.defs.build import Graph, build_graph
from apeagent_pipeline.defs.service_checks import service_checks
from apeagent_pipeline.settings import Settings
from apeagent_pipeline_tests.defs.code_versions import PROFILES, RECORD, present_versions

GRAPH = {
    "swap_source": ("chain", []),
    "raw_swaps": ("chain", ["swap_source"]),
    "liquidity_changes": ("chain", ["raw_swaps"]),
    "swap_features": ("market", ["raw_swaps"]),
    "training_windows": ("market", ["swap_features"]),
    "trained_gan": ("gan", ["training_windows"]),
    "synthetic_windows": ("gan", ["trained_gan", "training_windows"]),
    "synthetic_quality": ("gan", ["synthetic_windows", "trained_gan", "training_windows"]),
    "teacher_model": ("distillation", []),
    "teacher_traces": ("distillation", ["synthetic_quality", "synthetic_windows", "teacher_model"]),
    "distillation_dataset": ("distillation", ["teacher_traces"]),
    "student_base_model": ("student", []),
    "lora_adapter": ("student", ["distillation_dataset", "student_base_model"]),
    "promoted_adapter": ("student", ["canary_eval", "lora_adapter"]),
    "fused_model": ("student", ["promoted_adapter", "student_base_model"]),
    "ollama_model": ("student", ["fused_model", "promoted_adapter"]),
    "canary_eval": ("evaluation", ["distillation_dataset", "lora_adapter", "student_base_model"]),
    "backtest": ("evaluation", ["lora_adapter", "student_base_model", "training_windows"]),
    "service_report": ("evaluation", ["promoted_adapter", "swap_features"]),
}
CHECKS = {
    "raw_swaps": ["each_swap_once", "no_swap_missing", "final_when_read"],
    "swap_features": ["no_broken_numbers"],
    "training_windows": ["splits_do_not_leak"],
    "synthetic_windows": ["no_broken_numbers"],
    "synthetic_quality": ["close_to_real"],
    "teacher_traces": ["enough_accepted", "well_formed"],
    "distillation_dataset": ["no_twins"],
    "canary_eval": ["speaks_and_only_then"],
}
HEAVY = ["torch", "transformers", "peft", "trl", "datasets", "accelerate", "web3", "matplotlib", "sklearn"]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graph]:
    # Dagster asks the instance opened last, which another file's test may have left behind closed.
    with dg.DagsterInstance.ephemeral():
        yield build_graph(Settings(home=tmp_path_factory.mktemp("home")))


def test_assets_have_the_designs_names_groups_and_dependencies(graph: Graph) -> None:
    specs = graph.definitions.resolve_all_asset_specs()
    assert {
        spec.key.to_user_string(): (spec.group_name, sorted(dep.asset_key.to_user_string() for dep in spec.deps))
        for spec in specs
    } == GRAPH


def test_a_second_stage_is_there_only_when_asked_for(tmp_path: Path) -> None:
    asked = build_graph(Settings(home=tmp_path, second_stage="grpo")).definitions.resolve_all_asset_specs()
    added = {
        spec.key.to_user_string(): (spec.group_name, sorted(dep.asset_key.to_user_string() for dep in spec.deps))
        for spec in asked
        if spec.key.to_user_string() not in GRAPH
    }
    assert added == {
        "reinforced_adapter": ("student", ["canary_eval", "lora_adapter", "student_base_model", "synthetic_windows"]),
        "reinforced_eval": (
            "evaluation",
            [
                "backtest", "canary_eval", "distillation_dataset", "reinforced_adapter", "student_base_model",
                "training_windows",
            ],
        ),
    }  # fmt: skip


def test_every_asset_tells_what_it_is_who_owns_it_and_which_code_made_it(graph: Graph) -> None:
    for asset in graph.assets:
        spec = asset.get_asset_spec(asset.key)
        assert spec.description, f"{spec.key} has no description"
        assert spec.owners, f"{spec.key} has no owner"
        assert spec.kinds, f"{spec.key} has no kinds"
        assert spec.code_version, f"{spec.key} has no code version"


def test_every_check_blocks_what_comes_after_it(graph: Graph) -> None:
    found: dict[str, list[str]] = {}
    for check in graph.checks:
        for spec in check.check_specs:
            found.setdefault(spec.asset_key.to_user_string(), []).append(spec.name)
            assert spec.blocking
    assert found == CHECKS


def test_the_other_checks_warn_and_hold_nothing_back(graph: Graph) -> None:
    specs = [spec for check in service_checks(graph.runtime) for spec in check.check_specs]
    assert {f"{spec.asset_key.to_user_string()}:{spec.name}" for spec in specs} == {
        "raw_swaps:one_market",
        "promoted_adapter:newest_in_service",
        "service_report:still_good",
    }
    assert not any(spec.blocking for spec in specs)


def test_days_start_when_the_pool_could_first_trade(graph: Graph) -> None:
    daily = {asset.key.to_user_string(): asset.partitions_def for asset in graph.assets if asset.partitions_def}
    assert set(daily) == {"raw_swaps", "liquidity_changes", "swap_features", "service_report"}
    assert graph.synced == [name for name in graph.daily if name != "service_report"]
    for partitions in daily.values():
        assert isinstance(partitions, dg.DailyPartitionsDefinition)
        assert partitions.get_first_partition_key() == "2025-01-21"


def test_changing_a_profile_or_seed_changes_the_code_versions_it_concerns(tmp_path: Path) -> None:
    def versions(**settings: object) -> dict[str, str | None]:
        assets = build_graph(Settings(home=tmp_path, **settings)).assets  # type: ignore[arg-type]
        return {asset.key.to_user_string(): asset.get_asset_spec(asset.key).code_version for asset in assets}

    plain, seeded, asked = versions(), versions(seed=7), versions(eval_prompts=20)
    assert plain == versions()
    assert {name for name in plain if plain[name] != asked[name]} == {
        "teacher_traces",
        "distillation_dataset",
        "canary_eval",
    }
    assert plain["raw_swaps"] == seeded["raw_swaps"]
    assert plain["trained_gan"] != seeded["trained_gan"]


@pytest.mark.parametrize("profile", PROFILES)
def test_stored_artifacts_stay_up_to_date_unless_a_code_version_is_raised_on_purpose(
    tmp_path: Path, profile: str
) -> None:
    """A moved module or a renamed function must not make anybody's artifacts stale."""
    assert present_versions(profile, tmp_path) == json.loads(RECORD.read_text())[profile], (
        "if the output or the configuration of an asset changed on purpose, record its new code version: "
        "python -m apeagent_pipeline_tests.defs.code_versions"
    )


def test_loading_the_graph_and_the_command_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys, apeagent_pipeline.cli; from apeagent_pipeline.definitions import defs; "
        "defs().resolve_all_asset_specs(); print([name for name in sys.argv[1:] if name in sys.modules])"
    )
    environment = {**os.environ, "APEAGENT_HOME": str(tmp_path), "APEAGENT_SECOND_STAGE": "grpo"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *HEAVY],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
