"""The daily score of the adapter in service: made for new days by itself, for old ones on request, and judged."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from typer.testing import CliRunner

from apeagent_pipeline import cli
from apeagent_pipeline.artifacts.manifest import Manifest
from apeagent_pipeline.artifacts.provenance import Origin
from apeagent_pipeline.artifacts.store import ArtifactStore
from apeagent_pipeline.defs import profiles
from apeagent_pipeline.defs.build import Graph
from apeagent_pipeline.defs.instance import open_instance
from apeagent_pipeline.defs.service_days import service_reports, training_days
from apeagent_pipeline.defs.staleness import stale_artifacts
from apeagent_pipeline.evaluation.service.answers import SERVICE_SCHEMA
from apeagent_pipeline.evaluation.service.drift import Drift
from apeagent_pipeline.settings import Settings
from apeagent_pipeline.student.promotion import PROMOTED, PromotionError, find_service, promote
from apeagent_pipeline_tests.evaluation.service_days import day_of_swaps
from apeagent_pipeline_tests.tiny_graph import TINY, tiny_graph

DAYS = ["2025-01-21", "2025-01-22", "2025-01-23"]
FIRST, SECOND = "aaaa1111", "bbbb2222"


def untrained_adapter(base: Path, folder: Path, seed: int) -> Path:
    """A LoRA adapter with random weights."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base),
            LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
        )
        model.save_pretrained(folder)
    return folder


def put_into_service(store: ArtifactStore, adapter: Path, version: str, days: list[str]) -> None:
    """Promote an adapter as the asset does."""
    report = {
        "provenance": {"inputs": {"lora_adapter": version}},
        "metrics": {"canary_rate_adapter": 1.0, "canary_rate_plain": 1.0, "agreement_plain": 0.9},
        "intervals": {},
    }
    origins = [Origin(name=f"swap_features/{day}", data_version="1", state="stored") for day in days]
    out = adapter.parent / "out"
    assert promote(store, adapter, version, report, failures=[], origins=origins, out=out) == []
    store.publish_folder(out, asset=PROMOTED, code_version="1", inputs={"lora_adapter": version})


class House:
    """Three days of features, and two adapters that went into service one after the other."""

    def __init__(self, settings: Settings, instance: dg.DagsterInstance) -> None:
        self.settings, self.instance = settings, instance
        self.graph: Graph = tiny_graph(settings)
        self.store = self.graph.runtime.store

    def read(self, day: str, seed: int) -> None:
        """Store the features of a day, and tell Dagster, as the nightly re-sync does."""
        made = self.store.publish_table(
            day_of_swaps(seed, day=day), asset="swap_features", partition=day, code_version="1"
        )
        tags = {"dagster/data_version": made.data_version}
        self.instance.report_runless_asset_event(dg.AssetMaterialization("swap_features", partition=day, tags=tags))

    def run(self, assets: str, *days: str, **options: object) -> dg.ExecuteInProcessResult:
        tags = {"dagster/asset_partition_range_start": days[0], "dagster/asset_partition_range_end": days[-1]}
        return self.graph.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=self.instance,
            asset_selection=[dg.AssetKey(name) for name in assets.split()],
            tags=tags,
            run_config={"ops": {"service_report": {"config": options}}} if options else {},
            raise_on_error=False,
        )

    def verdict(self) -> dg.AssetCheckEvaluation:
        """The check alone, as the UI runs it."""
        (check,) = [each for each in self.graph.definitions.asset_checks if each.check_key.name == "still_good"]
        selection = dg.AssetSelection.checks(check)
        defs = dg.Definitions(
            assets=self.graph.assets, asset_checks=[check], jobs=[dg.define_asset_job("judge", selection)],
            resources=self.graph.definitions.resources,
        )  # fmt: skip
        return defs.resolve_job_def("judge").execute_in_process(instance=self.instance).get_asset_check_evaluations()[0]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, tiny_student: Path) -> Iterator[House]:
    home = tmp_path_factory.mktemp("home")
    settings = Settings(home=home, student=str(tiny_student), eval_prompts=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", "")
        with open_instance(settings) as instance:
            house = House(settings, instance)
            for number, day in enumerate(DAYS):
                house.read(day, number)
            for seed, (version, days) in enumerate({FIRST: DAYS[:1], SECOND: DAYS[:2]}.items()):
                put_into_service(house.store, untrained_adapter(tiny_student, home / version, seed), version, days)
            yield house


def metadata(house: House, day: str) -> dict[str, object]:
    key = dg.AssetRecordsFilter(dg.AssetKey("service_report"), asset_partitions=[day])
    event = house.instance.fetch_materializations(key, limit=1).records[0].asset_materialization
    assert event
    return {name: value.value for name, value in event.metadata.items()}


def test_a_day_has_answers_a_report_a_page_and_figures_that_the_ui_plots(house: House) -> None:
    assert house.run("service_report", DAYS[2]).success
    storage = Path(str(house.store.folder("service_report")))
    answers = house.store.scan("service_report", DAYS[2]).collect()
    assert answers.columns == list(SERVICE_SCHEMA)
    assert set(answers["adapter"]) == {SECOND}
    assert answers.height == 2 * TINY.service_report.moments
    report = json.loads((storage / f"{DAYS[2]}.report.json").read_text())
    assert report["metrics"]["n_answers"] == answers.height
    assert report["provenance"]["inputs"].keys() == {f"swap_features/{DAYS[2]}"}
    page = (storage / f"{DAYS[2]}.report.md").read_text()
    assert f"({DAYS[2]}.service.png)" in page
    assert (storage / f"{DAYS[2]}.service.png").is_file()
    told = metadata(house, DAYS[2])
    assert {"canary_rate", "feasible_rate", "worth_bps", "largest_psi"} <= told.keys()
    assert "data:image/png" in str(told["report"])


def test_a_backfill_asks_any_adapter_of_the_history_about_past_days(house: House) -> None:
    assert not house.run("service_report", DAYS[0], adapter="cccc").success
    assert house.run("service_report", *DAYS[:2], adapter=FIRST).success
    assert [each.day for each in service_reports(house.store, FIRST, 9)] == DAYS[:2]
    assets = [each for each in house.graph.assets if each.key.to_user_string() == "service_report"]
    assert stale_artifacts(assets, house.graph.runtime, DAYS[:2]) == [], "nothing asks the adapter in service instead"
    with pytest.raises(PromotionError, match="no adapter of the history has the version 'cccc': expected one of"):
        find_service(house.store, "cccc")
    assert find_service(house.store, FIRST[:3]).adapter == FIRST


def test_neither_a_new_adapter_nor_a_day_without_report_is_out_of_date(house: House, tmp_path: Path) -> None:
    house.run("service_report", *DAYS[1:])
    assets = [each for each in house.graph.assets if each.key.to_user_string() == "service_report"]
    days = [*DAYS[1:], "2025-01-24"]
    assert stale_artifacts(assets, house.graph.runtime, days) == []
    manifest = house.store.whole(PROMOTED)
    assert manifest.inputs == {"lora_adapter": SECOND}
    changed = house.store.scan("swap_features", DAYS[2]).collect()
    fields = house.store.whole("swap_features", DAYS[2]).model_dump(
        include={"asset", "partition", "code_version", "config", "inputs"}
    )
    house.store.publish_table(changed.head(-1), **fields)
    (stale,) = stale_artifacts(assets, house.graph.runtime, days)
    assert stale.changed_inputs == (f"swap_features/{DAYS[2]}",)
    house.store.publish_table(changed, **fields)


def test_the_days_of_training_come_from_the_origins_or_are_the_last_before_the_promotion(house: House) -> None:
    service = find_service(house.store, FIRST)
    assert training_days(house.graph.runtime, service) == DAYS[:1]
    unknown = service.model_copy(update={"origins": [], "at": "2025-01-23T05:00:00+00:00"})
    assert training_days(house.graph.runtime, unknown) == DAYS[:2]
    # Its own manifest tells them, also when the windows below it were built again before it went into service.
    own = Manifest(asset="lora_adapter", data_version="1", code_version="1", files={}, days=DAYS[1:2])
    broken = Origin(name="lora_adapter", data_version="1", state="stored", manifest=own)
    told = service.model_copy(update={"origins": [broken]})
    assert training_days(house.graph.runtime, told) == DAYS[1:2]


def test_the_daemon_makes_the_report_of_a_new_day_and_leaves_old_days_alone(house: House) -> None:
    def due(day: int, cursor: object) -> tuple[set[str | None], object]:
        result = dg.evaluate_automation_conditions(
            house.graph.definitions,
            house.instance,
            asset_selection=dg.AssetSelection.assets("service_report"),
            evaluation_time=datetime(2025, 1, 24, 3, tzinfo=UTC) + timedelta(days=day),
            cursor=cursor,
        )
        return set(result.get_requested_partitions(dg.AssetKey("service_report"))), result.cursor

    house.instance.report_runless_asset_event(dg.AssetMaterialization(PROMOTED, tags={"dagster/data_version": "1"}))
    _, cursor = due(0, None)
    assert due(0, cursor)[0] == set()
    house.read("2025-01-24", 9)
    wanted, after = due(1, cursor)
    assert wanted == {"2025-01-24"}
    house.instance.report_runless_asset_event(dg.AssetMaterialization(PROMOTED, tags={"dagster/data_version": "2"}))
    assert due(1, after)[0] == set(), "a new adapter asks about no past day"
    assert due(60, cursor)[0] == set(), "by then the day is old"


def test_the_check_warns_and_says_what_to_do(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.run("service_report", DAYS[2])
    told = house.verdict()
    assert not told.passed, "random weights speak no canary words, and the promise was 100 %"
    assert told.severity is dg.AssetCheckSeverity.WARN
    assert "the form of the answers deteriorates: canary answers in the form plain 0/" in str(told.description)
    assert f"`apeagent demo --from {DAYS[0]} --to " in str(told.description)
    assert "the teacher costs nothing" in str(told.description)


def test_compare_shows_both_adapters_with_intervals(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "PROFILES", {"demo": TINY})
    environment = {
        "APEAGENT_HOME": str(house.settings.home), "APEAGENT_STUDENT": house.settings.student,
        "APEAGENT_EVAL_PROMPTS": "6", "COLUMNS": "200",
    }  # fmt: skip

    def compare(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(cli.app, ["compare", *arguments], env=environment)
        return done.exit_code, done.output or str(done.exception)

    code, told = compare(FIRST[:4], SECOND[:4], "--days", "2", "--to", DAYS[2])
    assert code == 0, told
    assert "not distinguishable" in told
    folder = house.settings.home / "evaluations" / f"compare_{FIRST}_{SECOND}"
    report = json.loads((folder / "report.json").read_text())
    assert report["metrics"]["n_pairs"] == 4 * TINY.service_report.moments
    assert f"{SECOND} was trained on 1 of them" in (folder / "report.md").read_text()
    code, told = compare(FIRST, FIRST)
    assert code != 0
    assert "are the same adapter" in told


def test_drift_of_a_report_can_be_read_again(house: House) -> None:
    house.run("service_report", DAYS[2])
    (report,) = [each for each in service_reports(house.store, SECOND, 9) if each.day == DAYS[2]]
    assert all(isinstance(each, Drift) for each in report.drift.values())
    assert report.drift.keys() >= {"volatility", "volume_usdc"}
