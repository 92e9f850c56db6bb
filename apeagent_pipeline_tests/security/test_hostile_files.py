"""Files that mean harm: nothing in them is run, nothing outside their folder is touched, nothing hangs."""

import ast
import io
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

import apeagent_pipeline
from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.artifacts.files import StorageError
from apeagent_pipeline.artifacts.store import ArtifactStore
from apeagent_pipeline.chain.archive import ArchiveError, SwapArchive
from apeagent_pipeline.chain.days import FIRST_DAY
from apeagent_pipeline.chain.source import EmbeddedSource
from apeagent_pipeline.defs.assets.chain import chain_assets
from apeagent_pipeline.defs.io_manager import table_metadata
from apeagent_pipeline.defs.resources import Runtime
from apeagent_pipeline.defs.watcher import LogWatcher
from apeagent_pipeline.evaluation.own_prompts import PromptsFileError, read_prompts
from apeagent_pipeline.reporting.foreign_text import code_block, markdown_line
from apeagent_pipeline.settings import Settings
from apeagent_pipeline.student.base_model import BaseModelError, load_base
from apeagent_pipeline.student.generation import AdapterError, Student
from apeagent_pipeline_tests.student.tiny_qwen2 import build_tiny_qwen2

UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "np.load", "numpy.load", "os.system", "os.popen"}


@pytest.fixture(scope="module")
def swaps() -> pl.DataFrame:
    return EmbeddedSource(BASE_ETH_USDC, seed=42).read_day(FIRST_DAY).head(3)


def refused(path: Path) -> str:
    with pytest.raises(ArchiveError) as error:
        _ = SwapArchive(path, BASE_ETH_USDC).swaps
    return str(error.value)


def parquet(table: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.write_parquet(buffer)
    return buffer.getvalue()


def test_the_package_neither_unpickles_nor_runs_text() -> None:
    found = []
    for path in sorted(Path(apeagent_pipeline.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [each.name.split(".")[0] for each in node.names] + [getattr(node, "module", None) or ""]
            used = {name.split(".")[0] for name in names} & UNSAFE_MODULES
            if isinstance(node, ast.Call):
                used |= {ast.unparse(node.func)} & UNSAFE_CALLS
                used |= {each.arg or "" for each in node.keywords} & {"allow_pickle"}
                used |= {"shell=True" for each in node.keywords if ast.unparse(each) == "shell=True"}
                used |= {
                    "trust_remote_code"
                    for each in node.keywords
                    if each.arg == "trust_remote_code" and ast.unparse(each.value) != "False"
                }
            found += [f"{path.name}:{node.lineno} {name}" for name in used]
    assert not found


class Touches:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_weights_that_are_a_pickle_are_never_unpickled(tmp_path: Path) -> None:
    base, adapter, proof = build_tiny_qwen2(tmp_path / "base"), tmp_path / "adapter", tmp_path / "was_run"
    poison = pickle.dumps(Touches(proof))
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 1, "target_modules": ["q_proj"]})
    )
    (adapter / "adapter_model.bin").write_bytes(poison)
    with pytest.raises(AdapterError, match=r"no adapter_model\.safetensors"):
        Student.load(base, adapter)
    (adapter / "adapter_model.safetensors").write_bytes(poison)
    with pytest.raises(AdapterError):
        Student.load(base, adapter)
    next(base.glob("*.safetensors")).unlink()
    (base / "pytorch_model.bin").write_bytes(poison)
    with pytest.raises(BaseModelError, match=r"lacks \*\.safetensors"):
        load_base(base)
    (base / "decoy.safetensors").write_bytes(poison)
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        load_base(base)
    assert not proof.exists()


def test_a_model_that_brings_code_is_not_asked_whether_to_run_it(tmp_path: Path) -> None:
    base, proof = build_tiny_qwen2(tmp_path / "base"), tmp_path / "was_run"
    config = json.loads((base / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (base / "config.json").write_text(json.dumps({**config, **own}))
    (base / "own.py").write_text(f"import os\nos.mkdir({str(proof)!r})\n")
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        load_base(base)
    assert not proof.exists()


def test_a_formula_a_huge_number_or_a_claim_of_countless_rows_is_no_swap(tmp_path: Path, swaps: pl.DataFrame) -> None:
    path = tmp_path / "swaps.csv"
    plain = swaps.with_columns(pl.col("block_timestamp").dt.epoch("s"))
    for column, value in {"amount0": "=HYPERLINK(1)", "fee": "+1", "liquidity": "9" * 100_000}.items():
        plain.with_columns(pl.lit(value).alias(column)).write_csv(path)
        assert f"{column} is '{value[:60]}" in refused(path)
        assert len(refused(path)) < 2_000
    with_formula = plain.with_columns(note=pl.lit("=cmd|' /C calc'!A0"), _line=pl.lit("=1"))
    with_formula.write_csv(path)
    kept = SwapArchive(path, BASE_ETH_USDC).swaps
    assert "note" not in kept.columns
    countless = tmp_path / "countless.parquet"
    many = pl.select(pl.repeat(swaps["pool_id"][0], 20_000_000).alias("pool_id"))
    many.write_parquet(countless, compression="zstd")
    assert countless.stat().st_size < 200_000
    assert "claims 20000000 rows" in refused(countless)


def test_a_file_that_ends_half_way_or_holds_other_types_is_refused_by_name(tmp_path: Path, swaps: pl.DataFrame) -> None:
    path = tmp_path / "swaps.parquet"
    for content in (
        parquet(swaps)[:-200],
        b"PAR1" + bytes(64) + b"PAR1",
        parquet(swaps.with_columns(amount0=pl.lit([1, 2]))),
        parquet(swaps.with_columns(amount0=pl.lit(b"\xff\xfe"))),
    ):
        path.write_bytes(content)
        assert "swaps.parquet" in refused(path)


def test_an_archive_folder_is_not_left_through_links_and_not_waited_for(tmp_path: Path, swaps: pl.DataFrame) -> None:
    folder, secret = tmp_path / "archive", tmp_path / "secret.csv"
    folder.mkdir()
    secret.write_text("password\nhunter2\n")
    (folder / "a.csv").symlink_to(secret)
    told = refused(folder)
    assert "not a file of the archive's own folder" in told
    assert "password" not in told
    (folder / "a.csv").unlink()
    os.mkfifo(folder / "b.csv")
    assert "b.csv" in refused(folder)
    (folder / "b.csv").unlink()
    (folder / "c.csv").mkdir()
    assert "c.csv" in refused(folder)


def test_a_manifest_reaches_no_file_outside_its_folder(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")
    victim = tmp_path / "store" / "victim.txt"
    store.publish_bytes({"x": b"1"}, asset="lora_adapter", code_version="1")
    victim.write_bytes(b"1")
    path = store.folder("lora_adapter") / "manifest.json"
    for name in ("../victim.txt", str(victim), "a/../../victim.txt", "..\\victim.txt", ".", "", "x" * 300):
        manifest = json.loads(path.read_text())
        manifest["files"] = {name: manifest["files"].popitem()[1]}
        path.write_text(json.dumps(manifest))
        assert store.manifest("lora_adapter") is None, name
    store.publish_bytes({"y": b"1"}, asset="lora_adapter", code_version="1")
    assert victim.exists()  # a file of the version before would have been removed


def test_weights_changed_in_a_bucket_are_not_used(tmp_path: Path) -> None:
    store = ArtifactStore("memory://tampered", tmp_path / "cache")
    made = store.publish_bytes({"adapter_model.safetensors": b"good"}, asset="lora_adapter", code_version="1")
    for folder in (store.folder("lora_adapter"), store.folder("lora_adapter") / made.folder):
        (folder / "adapter_model.safetensors").write_bytes(b"evil")
    for _ in range(2):
        with pytest.raises(StorageError, match=r"adapter_model\.safetensors is not the file that its manifest"):
            store.local_folder("lora_adapter")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["../x", "/etc", "..", "", "a/b", "raw_swaps\n", "a\x00"])
def test_what_is_no_asset_or_no_day_reads_nothing(tmp_path: Path, name: str) -> None:
    store = ArtifactStore(str(tmp_path), tmp_path / "cache")
    with pytest.raises(StorageError, match="is not an asset"):
        store.manifest(name)
    if name:
        with pytest.raises(StorageError, match="is not a day"):
            store.manifest("raw_swaps", name)
        with pytest.raises(StorageError, match="is not a day"):
            store.scan("raw_swaps", name)


def test_dagster_takes_no_partition_that_is_not_a_day(tmp_path: Path) -> None:
    runtime = Runtime(Settings(home=tmp_path / "home"), LogWatcher())
    with pytest.raises(dg.DagsterUnknownPartitionError, match="outside"):
        dg.materialize(
            chain_assets(runtime), partition_key="../../../outside", resources={"io_manager": runtime.artifacts}
        )
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_file_of_prompts_is_a_file_and_its_report_stays_in_its_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    for path in (tmp_path, tmp_path / "pipe.txt", Path("/dev/zero")):
        with pytest.raises(PromptsFileError, match="not a file"):
            read_prompts(path)
    lines = tmp_path / "p.jsonl"
    lines.write_text('{"prompt": "a\u2028b"}\n', encoding="utf-8")
    assert [prompt.text for prompt in read_prompts(lines)] == ["a\u2028b"]
    lines.write_text('{"prompt": "\\ud800"}\n')
    with pytest.raises(PromptsFileError, match="line 1: not a JSON object"):
        read_prompts(lines)


HOSTILE_TEXT = "```\n![x](http://evil.example/?k) <img src=x onerror=alert(1)> [a](javascript:alert(1)) | `y`"


def test_foreign_text_in_a_page_is_shown_and_not_rendered() -> None:
    from markdown_it import MarkdownIt

    rendered = MarkdownIt("commonmark", {"html": True})
    for page in (code_block(HOSTILE_TEXT), f"> {markdown_line(HOSTILE_TEXT)}"):
        html = rendered.render(page)
        assert not any(f"<{tag}" in html for tag in ("img", "a ", "script")), html
        assert "onerror=alert(1)" in html
    preview = table_metadata(pl.DataFrame({"answer": [HOSTILE_TEXT], "drafts": [["![a](//b.c)"]]}))["preview"].value
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(preview)
    assert not any(f"<{tag}" in html for tag in ("img", "a ", "script")), html
    assert html.count("<td>") == 4, "two columns, each with its name and its value"


def test_the_cache_folder_of_a_remote_artifact_is_named_by_its_hash(tmp_path: Path) -> None:
    store = ArtifactStore("memory://named", tmp_path / "cache")
    store.publish_bytes({"x": b"1"}, asset="a", code_version="1")
    path = store.folder("a") / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "data_version": "../../../outside"}))
    assert store.manifest("a") is None
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
