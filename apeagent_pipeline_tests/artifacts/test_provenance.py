"""What a user would lose if an adapter did not say what it was made from."""

import json
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from apeagent_pipeline.artifacts.manifest import Manifest
from apeagent_pipeline.artifacts.provenance import Origin, provenance, provenance_lines, provenance_table
from apeagent_pipeline.artifacts.store import ArtifactStore
from apeagent_pipeline.cli import app
from apeagent_pipeline.defs.build import Graph
from apeagent_pipeline.defs.instance import open_instance
from apeagent_pipeline.defs.update import update
from apeagent_pipeline.settings import Settings
from apeagent_pipeline_tests.tiny_graph import tiny_graph

EXTERNALS = {"swap_source", "teacher_model", "student_base_model"}
DAYS = ["2025-01-21", "2025-01-22"]
CHAIN = [
    "raw_swaps", "swap_features", "training_windows", "trained_gan", "synthetic_windows", "teacher_traces",
    "distillation_dataset", "lora_adapter",
]  # fmt: skip


def publish(store: ArtifactStore, name: str, content: list[int], *inputs: Manifest, **external: str) -> Manifest:
    asset, _, day = name.partition("/")
    read = {f"{each.asset}/{each.partition}" if each.partition else each.asset: each.data_version for each in inputs}
    made_from = {"asset": asset, "partition": day or None, "code_version": "1", "inputs": {**read, **external}}
    if asset != "raw_swaps":
        return store.publish_table(pl.DataFrame({"value": content}), **made_from)
    hashes = [f"0x{block:064x}" for block in content]
    return store.publish_table(pl.DataFrame({"block_number": content, "block_hash": hashes}), **made_from)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """Four days of swaps, one of them without any, windows made of them, and two artifacts that read the windows."""
    store = ArtifactStore(str(tmp_path / "storage"), tmp_path / "cache")
    blocks = {"2025-02-01": [10, 10, 19], "2025-02-02": [20, 29], "2025-02-03": [], "2025-02-04": [40]}
    days = [publish(store, f"raw_swaps/{day}", numbers, swap_source="s") for day, numbers in blocks.items()]
    windows = publish(store, "training_windows", [1], *days)
    gan = publish(store, "trained_gan", [2], windows)
    publish(store, "synthetic_windows", [3], windows, gan)
    return store


def named(origins: list[Origin]) -> dict[str, Origin]:
    return {each.name: each for each in origins}


def lines(store: ArtifactStore, name: str) -> list[tuple[int, str, str]]:
    return [(line.depth, line.title, line.details) for line in provenance_lines(provenance(store, name, EXTERNALS))]


def test_each_day_tells_its_first_and_last_block_and_people_read_one_line(store: ArtifactStore) -> None:
    found = named(provenance(store, "synthetic_windows", EXTERNALS))
    assert {each.state for each in found.values()} == {"stored", "external"}
    blocks = found["raw_swaps/2025-02-01"].blocks
    assert blocks
    assert (blocks.first, blocks.first_hash, blocks.last, blocks.last_hash) == (10, f"0x{10:064x}", 19, f"0x{19:064x}")
    assert found["raw_swaps/2025-02-03"].blocks is None
    days = f"6 swaps; blocks 10 (0x{10:064x}) to 40 (0x{40:064x})"
    assert lines(store, "synthetic_windows") == [
        (0, "synthetic_windows", "1 rows"),
        (1, "trained_gan", "1 rows"),
        (2, "training_windows", "1 rows"),
        (3, "raw_swaps, 4 days 2025-02-01 to 2025-02-04", days),
        (4, "swap_source", "external"),
        (1, "training_windows", "1 rows"),
    ]


def test_an_input_replaced_since_is_marked_and_not_taken_for_what_was_read(store: ArtifactStore) -> None:
    read = store.manifest("raw_swaps", "2025-02-02")
    stored = publish(store, "raw_swaps/2025-02-02", [20, 28], swap_source="another")
    origin = named(provenance(store, "synthetic_windows", EXTERNALS))["raw_swaps/2025-02-02"]
    assert read
    assert (origin.state, origin.data_version, origin.replaced_by) == (
        "replaced", read.data_version, stored.data_version
    )  # fmt: skip
    assert origin.blocks is None
    shown = lines(store, "synthetic_windows")
    assert (3, "raw_swaps, 2025-02-02", "since replaced") in shown
    assert any(title == "raw_swaps, 3 days 2025-02-01 to 2025-02-04" for _, title, _ in shown)


def test_one_reader_may_have_read_what_is_stored_and_another_what_was_there_before(store: ArtifactStore) -> None:
    windows = publish(store, "training_windows", [9])
    publish(store, "synthetic_windows", [3], windows, *filter(None, [store.manifest("trained_gan")]))
    found = [each for each in provenance(store, "synthetic_windows", EXTERNALS) if each.name == "training_windows"]
    assert sorted(each.state for each in found) == ["replaced", "stored"]


@pytest.mark.parametrize("lost", ["2025-02-02.parquet", "2025-02-02.manifest.json"])
def test_a_lost_day_is_told_and_the_rest_is_shown(store: ArtifactStore, lost: str) -> None:
    (store.folder("raw_swaps") / lost).unlink()
    shown = lines(store, "synthetic_windows")
    assert (3, "raw_swaps, 2025-02-02", "missing or incomplete") in shown
    assert (4, "swap_source", "external") in shown


def test_without_an_adapter_the_command_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APEAGENT_HOME", str(tmp_path))
    done = CliRunner().invoke(app, ["provenance"])
    assert done.exit_code == 1
    assert "missing" in done.stdout
    assert "apeagent demo" in done.stderr
    publish(ArtifactStore(str(tmp_path / "storage"), tmp_path / "cache"), "raw_swaps/2025-02-01", [10])
    assert "raw_swaps/2025-02-01" in CliRunner().invoke(app, ["provenance", "raw_swaps"]).stderr
    asked = CliRunner().invoke(app, ["provenance", "raw_swaps/2025-02-01", "--json"])
    assert asked.exit_code == 0
    assert json.loads(asked.stdout)[0]["blocks"]["first"] == 10


@pytest.fixture(scope="module")
def graph(tiny_settings: Settings) -> Graph:
    """The chain up to the adapter and its report, made once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", "")
        graph = tiny_graph(tiny_settings)
        remake(graph, "canary_eval")
    return graph


def remake(graph: Graph, *more: str) -> None:
    with open_instance(graph.runtime.settings) as instance:
        rounds = update(graph, instance, DAYS, only={*CHAIN, *more})
    assert all(each.success for each in rounds), [each.errors for each in rounds]


def of_adapter(graph: Graph) -> list[Origin]:
    return provenance(graph.runtime.store, "lora_adapter", graph.runtime.externals)


@pytest.mark.slow
def test_from_the_adapter_one_reaches_teacher_days_and_block_hashes(graph: Graph) -> None:
    origins = of_adapter(graph)
    found = named(origins)
    assert len(found) == len(origins)
    assert {each.asset for each in origins} == {*CHAIN, *EXTERNALS}
    assert {each.name for each in origins if each.state == "external"} == EXTERNALS
    assert all(each.state == "stored" for each in origins if each.name not in EXTERNALS)
    assert found["teacher_traces"].teachers == ["rules"]
    assert found["swap_source"].data_version == graph.runtime.source.fingerprint()
    for day in DAYS:
        swaps = graph.runtime.store.scan("raw_swaps", day).sort("block_number", "log_index").collect()
        blocks = found[f"raw_swaps/{day}"].blocks
        assert blocks
        assert (blocks.first, blocks.first_hash) == swaps.select("block_number", "block_hash").row(0)
        assert (blocks.last, blocks.last_hash) == swaps.select("block_number", "block_hash").row(-1)


@pytest.mark.slow
def test_the_command_and_the_report_tell_the_same(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    origins = of_adapter(graph)
    monkeypatch.setenv("APEAGENT_HOME", str(graph.runtime.settings.home))
    as_json = CliRunner().invoke(app, ["provenance", "--json"])
    assert [Origin.model_validate(each) for each in json.loads(as_json.stdout)] == origins
    monkeypatch.setenv("COLUMNS", "400")
    shown = CliRunner().invoke(app, ["provenance"])
    assert shown.exit_code == 0
    report = (graph.runtime.store.folder("canary_eval") / "report.md").read_text()
    for line in provenance_lines(origins):
        assert line.title in shown.stdout
        assert line.data_version in shown.stdout
        assert f"| {line.title} | `{line.data_version}` | {line.details} |" in report
    assert provenance_table(origins) in report


@pytest.mark.slow
def test_the_report_made_again_from_the_same_is_the_same(graph: Graph) -> None:
    store = graph.runtime.store
    before = store.manifest("canary_eval")
    (Path(str(store.folder("canary_eval"))) / "report.md").unlink()
    assert store.manifest("canary_eval") is None
    remake(graph, "canary_eval")
    after = store.manifest("canary_eval")
    assert before
    assert after
    assert after.data_version == before.data_version


@pytest.mark.slow
def test_one_changed_swap_changes_everything_made_from_its_day(graph: Graph) -> None:
    store = graph.runtime.store
    before = {each.name: each.data_version for each in of_adapter(graph)}
    manifest = store.manifest("raw_swaps", DAYS[1])
    assert manifest
    swaps = store.scan("raw_swaps", DAYS[1]).collect()
    fifth = pl.int_range(pl.len()) == 5
    changed = swaps.with_columns(pl.when(fifth).then(pl.lit("-1000")).otherwise("amount1").alias("amount1"))
    store.publish_table(changed, **manifest.model_dump(include={"asset", "partition", "code_version", "inputs"}))
    marked = {each.name for each in of_adapter(graph) if each.state == "replaced"}
    assert marked == {f"raw_swaps/{DAYS[1]}"}
    remake(graph)
    after = {each.name: each.data_version for each in of_adapter(graph)}
    assert {each.state for each in of_adapter(graph)} == {"stored", "external"}
    assert before.keys() == after.keys()
    same = {name for name in before if before[name] == after[name]}
    assert same == EXTERNALS | {f"{asset}/{DAYS[0]}" for asset in ("raw_swaps", "swap_features")}
