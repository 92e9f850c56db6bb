"""Artifacts in a real S3 server, and under writers that compete, die or lose their network; the same on a disk."""

import itertools
import logging
import multiprocessing
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import fsspec
import polars as pl
import pytest

from apeagent_pipeline.artifacts import store as storage_module
from apeagent_pipeline.artifacts.files import StorageError
from apeagent_pipeline.artifacts.store import ArtifactStore
from apeagent_pipeline.cli.examination import examine
from apeagent_pipeline.defs.build import Graph, build_graph
from apeagent_pipeline.defs.update import update
from apeagent_pipeline.settings import Settings, SettingsError
from apeagent_pipeline_tests.defs.dropping_proxy import DroppingProxy, dropping_proxy

MADE_FROM = {"code_version": "1", "inputs": {}, "config": {}}
SECRET = "s3cr3t-of-the-store"
DAYS = ["2025-01-21", "2025-01-22"]


@pytest.fixture(scope="module")
def s3_port() -> Iterator[int]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture
def proxy(s3_port: int) -> Iterator[DroppingProxy]:
    with dropping_proxy(s3_port) as proxy:
        yield proxy


@pytest.fixture
def bucket(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty bucket, whose server the standard variables name."""
    import boto3

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ape")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3_port}")
    forget_connections()
    name = f"bucket-{time.time_ns()}"
    boto3.client("s3").create_bucket(Bucket=name)
    yield f"s3://{name}/artifacts"
    forget_connections()


def forget_connections() -> None:
    """fsspec keeps one client for all; it reads the environment only when it is made."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "storage") if request.param == "disk" else request.getfixturevalue("bucket")


@pytest.fixture
def store(root: str, tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(root, tmp_path / "cache")


def content(letter: str) -> dict[str, bytes]:
    """Files that all say the same, but for one name that only this content has."""
    return {name: letter.encode() * 1000 for name in ("a.bin", "sub/b.bin", f"only-{letter}.bin")}


def letter_in(store: ArtifactStore) -> str:
    """Which content is stored, read as assets read it.

    Raises:
        AssertionError: It is a mixture.
    """
    folder = store.local_folder("gan")
    said = {path.read_bytes() for path in folder.rglob("*.bin")}
    (letters,) = said
    letter = chr(letters[0])
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.bin")} == set(content(letter))
    return letter


def letter_for_people(store: ArtifactStore) -> str:
    """The same, read under the names without versions."""
    (letters,) = {(store.folder("gan") / name).read_bytes() for name in ("a.bin", "sub/b.bin")}
    return chr(letters[0])


def write_and_read(root: str, cache: Path, letters: str, rounds: int) -> None:
    store = ArtifactStore(root, cache)
    for _ in range(rounds):
        for letter in letters:
            store.publish_bytes(content(letter), asset="gan", **MADE_FROM)
            letter_in(store)


def test_writers_of_one_artifact_that_compete_never_mix(store: ArtifactStore, root: str, tmp_path: Path) -> None:
    rounds = 5 if root.startswith("s3") else 40
    failures: list[BaseException] = []

    def work(letters: str) -> None:
        try:
            write_and_read(root, tmp_path / "cache", letters, rounds)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(letters,)) for letters in ("A", "BC", "D")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert letter_for_people(store) == letter_in(store)


class DiesAtCall:
    """The files of a store whose writer is killed at its nth operation; after that it does nothing more."""

    def __init__(self, files: Any, number: int) -> None:
        self._files, self._left = files, number

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self._left -= 1
            if self._left < 0:
                raise SystemExit("killed")
            return getattr(self._files, name)(*arguments)

        return call


def test_wherever_a_writer_is_killed_the_old_or_the_new_artifact_is_whole(store: ArtifactStore, root: str) -> None:
    store.publish_bytes(content("A"), asset="gan", **MADE_FROM)
    for number in itertools.count():
        writer = ArtifactStore(root, store.cache)
        writer._files = DiesAtCall(writer._files, number)  # type: ignore[assignment]
        try:
            writer.publish_bytes(content("B"), asset="gan", **MADE_FROM)
        except SystemExit:
            letter = letter_in(store)
            assert letter in "AB"
            store.publish_bytes(content("A"), asset="gan", **MADE_FROM)
            assert letter_for_people(store) == letter_in(store) == "A"
        else:
            break
    assert number >= 6
    assert letter_for_people(store) == letter_in(store) == "B"


def test_a_writer_killed_by_the_system_leaves_one_version_whole(tmp_path: Path) -> None:
    root, cache = str(tmp_path / "storage"), tmp_path / "cache"
    store = ArtifactStore(root, cache)
    store.publish_bytes(content("A"), asset="gan", **MADE_FROM)
    context = multiprocessing.get_context("fork")
    moments = random.Random(1)
    for _ in range(15):
        writer = context.Process(target=write_and_read, args=(root, cache, "BCD", 10_000))
        writer.start()
        time.sleep(moments.uniform(0.01, 0.1))
        writer.kill()
        writer.join()
        letter_in(store)
    store.publish_bytes(content("A"), asset="gan", **MADE_FROM)
    assert letter_for_people(store) == letter_in(store) == "A"


def test_a_reader_keeps_its_version_and_old_ones_are_removed(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def publish(number: int) -> pl.LazyFrame:
        store.publish_table(pl.DataFrame({"x": [number]}), asset="swaps", partition=DAYS[0], **MADE_FROM)
        return store.scan("swaps", DAYS[0])

    first = publish(1)
    publish(2)
    assert first.collect().item() == 1
    monkeypatch.setattr(storage_module, "_KEPT_AFTER_ITS_SUCCESSOR", timedelta(seconds=-1))
    assert publish(3).collect().item() == 3
    left = {name.split("/")[2] for name in store._files.find("swaps") if name.startswith(".versions")}
    assert len(left) == 2, "the present version, and the one before, which somebody may be reading"


def test_files_that_no_version_has_any_more_go_with_the_last_that_had_them(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store.root / "gan").mkdir(parents=True, exist_ok=True)
    (store.root / "gan" / "notes.txt").write_text("of the user")
    monkeypatch.setattr(storage_module, "_KEPT_AFTER_ITS_SUCCESSOR", timedelta(seconds=-1))
    for letter in "ABC":
        store.publish_bytes(content(letter), asset="gan", **MADE_FROM)
    names = {name for name in store._files.find("gan") if not name.startswith(".")}
    assert names == {*content("B"), *content("C"), "manifest.json", "notes.txt"}


def test_days_far_away_cost_few_requests(bucket: str, tmp_path: Path, proxy: DroppingProxy) -> None:
    store = ArtifactStore(bucket, tmp_path / "cache")
    calls = []
    counted = store._files
    store._files = type("Counted", (), {"__getattr__": lambda _, name: calls.append(name) or getattr(counted, name)})()
    days = [f"2025-03-{day:02d}" for day in range(1, 11)]
    for day in days:
        store.publish_table(pl.DataFrame({"day": [day]}), asset="raw_swaps", partition=day, **MADE_FROM)
    calls.clear()
    assert all(store.manifests("raw_swaps").values())
    assert sorted(calls) == ["find", "read"]
    assert [table.collect().item() for table in store.scan_days("raw_swaps", store.days("raw_swaps")).values()] == days
    calls.clear()
    store.scan_days("raw_swaps", store.days("raw_swaps"))
    assert "fetch" not in calls


def made(root: str, home: Path) -> tuple[Graph, bool]:
    """Bring the cheap assets of two days up to date; whether all runs succeeded."""
    graph = build_graph(Settings(home=home, storage=root))
    only = {"raw_swaps", "swap_features", "training_windows"}
    with dg.DagsterInstance.ephemeral() as instance:
        rounds = update(graph, instance, DAYS, only=only)
    return graph, all(each.success for each in rounds)


def versions(graph: Graph) -> dict[str, str]:
    names = [*itertools.product(("raw_swaps", "swap_features"), DAYS), ("training_windows", None)]
    return {f"{asset}/{day}": graph.runtime.store.whole(asset, day).data_version for asset, day in names}


@pytest.mark.slow
def test_the_graph_makes_the_same_data_in_s3_as_on_disk_also_through_a_network_that_drops_and_breaks(
    bucket: str, proxy: DroppingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk, succeeded = made(str(tmp_path / "storage"), tmp_path / "one")
    assert succeeded
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setitem(proxy_retries(), "max_attempts", 2)
    forget_connections()

    # The network breaks when the first day is stored, and stays away.
    publish_table, stored = ArtifactStore.publish_table, []

    def publish_and_cut(self: ArtifactStore, table: pl.DataFrame, *beside: Any, **made_from: Any) -> Any:
        manifest = publish_table(self, table, *beside, **made_from)
        stored.append(manifest)
        proxy.cut_all()
        return manifest

    monkeypatch.setattr(ArtifactStore, "publish_table", publish_and_cut)
    monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "retries", 1)
    graph = build_graph(Settings(home=tmp_path / "two", storage=bucket))
    with dg.DagsterInstance.ephemeral() as instance:
        try:
            rounds = update(graph, instance, DAYS, only={"raw_swaps", "swap_features"})
            told = " ".join(rounds[-1].errors)
            assert not rounds[-1].success
        except StorageError as error:
            told = str(error)
    assert f"APEAGENT_STORAGE={bucket}" in told
    assert "run the command again" in told
    assert SECRET not in told
    assert len(stored) == 1

    # It is back, but drops connections.
    monkeypatch.setattr(ArtifactStore, "publish_table", publish_table)
    monkeypatch.setitem(proxy_retries(), "max_attempts", 6)
    monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "retries", 5)
    forget_connections()
    proxy.cut, proxy.chance = False, 0.02
    in_s3, succeeded = made(bucket, tmp_path / "two")
    assert succeeded
    assert proxy.drops > 0
    proxy.chance = 0
    assert versions(in_s3) == versions(on_disk)
    assert in_s3.runtime.store.whole("raw_swaps", DAYS[0]).created_at == stored[0].created_at


def proxy_retries() -> dict[str, Any]:
    from apeagent_pipeline.artifacts import files

    return files._S3_OPTIONS["config_kwargs"]["retries"]  # type: ignore[index,return-value]


def test_what_is_wrong_with_the_store_is_told_with_the_remedy_and_without_a_secret(
    bucket: str, tmp_path: Path, s3_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import requests

    def told(url: str) -> str:
        forget_connections()
        with pytest.raises((SettingsError, StorageError)) as error:
            ArtifactStore(url, tmp_path / "cache").manifest("gan")
        assert url in str(error.value)
        assert SECRET not in str(error.value)
        return str(error.value)

    assert "Does the bucket exist?" in told("s3://no-such-bucket/prefix")
    assert "expected a folder or a URL such as s3://" in told("s4://bucket/prefix")
    requests.post(f"http://127.0.0.1:{s3_port}/moto-api/reset-auth", data="0", timeout=10)
    try:
        assert "AWS_SECRET_ACCESS_KEY" in told(bucket)
    finally:
        requests.post(f"http://127.0.0.1:{s3_port}/moto-api/reset-auth", data="inf", timeout=10)
    with monkeypatch.context() as patch:
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        assert "credentials" in told(bucket)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "s3fs", None)
        patch.delitem(sys.modules["fsspec.registry"]._registry, "s3")
        with pytest.raises(SettingsError, match=r"pip install 'apeagent_pipeline\[s3\]'"):
            ArtifactStore(bucket, tmp_path / "cache").manifest("gan")


def test_the_doctor_looks_at_the_store(bucket: str, tmp_path: Path) -> None:
    def finding(url: str) -> tuple[str, str]:
        found = next(each for each in examine(Settings(home=tmp_path, storage=url)) if each.part == "storage")
        return found.state, found.finding

    assert finding(bucket) == ("ok", bucket)
    state, text = finding("s3://no-such-bucket/prefix")
    assert state == "wrong"
    assert "Does the bucket exist?" in text
    assert not list(ArtifactStore(bucket, tmp_path)._files.find(""))
