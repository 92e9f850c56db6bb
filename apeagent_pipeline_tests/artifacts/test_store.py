"""What a user would lose if artifacts were stored carelessly."""

import json
import os
from pathlib import Path

import polars as pl
import pytest

from apeagent_pipeline.artifacts.files import StorageError
from apeagent_pipeline.artifacts.manifest import digest
from apeagent_pipeline.artifacts.store import ArtifactStore

MADE_FROM = {"code_version": "1.x", "inputs": {"raw_swaps": "abc"}, "config": {"seed": 1}}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "storage"), tmp_path / "cache")


def test_a_day_is_found_where_the_design_says_and_reads_back_equal(store: ArtifactStore) -> None:
    table = pl.DataFrame({"amount0": ["-1", "2"], "tick": [1, 2]})
    manifest = store.publish_table(table, asset="raw_swaps", partition="2025-02-01", **MADE_FROM)
    assert (store.root / "raw_swaps" / "2025-02-01.parquet").exists()
    assert store.scan("raw_swaps", "2025-02-01").collect().equals(table)
    assert store.days("raw_swaps") == ["2025-02-01"]
    assert store.manifest("raw_swaps", "2025-02-01") == manifest
    assert manifest.rows == 2


def test_the_same_rows_give_the_same_bytes_and_version_and_other_rows_another(store: ArtifactStore) -> None:
    table = pl.DataFrame({"tick": [1, 2, 3]})
    first = store.publish_table(table, asset="a", partition="2025-02-01", **MADE_FROM)
    first_bytes = (store.root / "a" / "2025-02-01.parquet").read_bytes()
    again = store.publish_table(table, asset="a", partition="2025-02-01", **{**MADE_FROM, "inputs": {"raw_swaps": "x"}})
    assert (store.root / "a" / "2025-02-01.parquet").read_bytes() == first_bytes
    assert again.data_version == first.data_version
    other = store.publish_table(table.reverse(), asset="a", partition="2025-02-01", **MADE_FROM)
    assert other.data_version != first.data_version


def test_an_interrupted_write_leaves_the_old_artifact_whole_and_nothing_aside(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.publish_bytes({"one.json": b"old", "two.json": b"old"}, asset="report", **MADE_FROM)

    def out_of_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", out_of_space)
    with pytest.raises(OSError, match="No space"):
        store.publish_bytes({"one.json": b"new", "two.json": b"new"}, asset="report", **MADE_FROM)
    monkeypatch.undo()
    folder = store.local_folder("report")
    assert {path.name: path.read_bytes() for path in folder.glob("*.json") if path.name != "manifest.json"} == {
        "one.json": b"old",
        "two.json": b"old",
    }
    assert not list(folder.glob(".*"))


def test_an_artifact_torn_or_deleted_in_part_counts_as_missing(store: ArtifactStore) -> None:
    store.publish_bytes({"a.bin": b"12345", "b.bin": b"1"}, asset="gan", **MADE_FROM)
    (Path(str(store.folder("gan"))) / "a.bin").write_bytes(b"123")
    assert store.manifest("gan") is None
    with pytest.raises(StorageError, match="materialize gan first"):
        store.local_folder("gan")
    store.publish_table(pl.DataFrame({"x": [1]}), asset="raw_swaps", partition="2025-02-01", **MADE_FROM)
    (Path(str(store.folder("raw_swaps"))) / "2025-02-01.parquet").unlink()
    assert store.manifest("raw_swaps", "2025-02-01") is None


def test_a_broken_manifest_means_making_the_artifact_again_not_a_crash(store: ArtifactStore) -> None:
    store.publish_bytes({"a.bin": b"1"}, asset="gan", **MADE_FROM)
    for content in (b"{half", b"\x80", b"[" * 100_000, b'{"files": {"' + b"x" * 300 + b'": {}}}'):
        (Path(str(store.folder("gan"))) / "manifest.json").write_bytes(content)
        assert store.manifest("gan") is None


def test_files_of_an_older_version_do_not_linger(store: ArtifactStore) -> None:
    store.publish_bytes({"model/old.bin": b"1", "same.bin": b"1"}, asset="gan", **MADE_FROM)
    store.publish_bytes({"model/new.bin": b"1", "same.bin": b"1"}, asset="gan", **MADE_FROM)
    names = {str(path.relative_to(store.local_folder("gan"))) for path in store.local_folder("gan").rglob("*.bin")}
    assert names == {"model/new.bin", "same.bin"}


def test_reading_what_is_not_there_names_it_and_the_remedy(store: ArtifactStore) -> None:
    with pytest.raises(StorageError, match="materialize raw_swaps 2025-02-01 first"):
        store.scan("raw_swaps", "2025-02-01")


def test_an_object_store_works_like_a_folder(tmp_path: Path) -> None:
    store = ArtifactStore("memory://bucket/prefix", tmp_path / "cache")
    table = pl.DataFrame({"tick": [1]})
    store.publish_table(table, asset="raw_swaps", partition="2025-02-01", **MADE_FROM)
    assert store.days("raw_swaps") == ["2025-02-01"]
    assert store.scan("raw_swaps", "2025-02-01").collect().equals(table)
    store.publish_bytes({"sub/weights.bin": b"123"}, asset="gan", **MADE_FROM)
    assert (store.local_folder("gan") / "sub" / "weights.bin").read_bytes() == b"123"


def test_the_manifest_says_what_an_artifact_was_made_from(store: ArtifactStore) -> None:
    store.publish_table(pl.DataFrame({"x": [1]}), asset="synthetic_windows", **MADE_FROM)
    stored = json.loads((store.root / "synthetic_windows" / "manifest.json").read_text())
    assert stored["inputs"] == {"raw_swaps": "abc"}
    assert stored["config"] == {"seed": 1}
    assert (store.root / "synthetic_windows" / "synthetic_windows.parquet").exists()


def test_digests_do_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})


def test_an_artifact_stored_before_there_were_versions_is_still_read(store: ArtifactStore) -> None:
    published = store.publish_bytes({"a.bin": b"1"}, asset="gan", **MADE_FROM)
    before = published.model_copy(update={"folder": ""})
    (store.root / "gan" / "manifest.json").write_text(before.model_dump_json(exclude={"folder"}))
    assert store.manifest("gan") == before
    assert (store.local_folder("gan") / "a.bin").read_bytes() == b"1"
