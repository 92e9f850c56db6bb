"""``apeagent clean``: frees what can be made again, and nothing that was paid for or is in service."""

import os
import shutil
import time
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from apeagent_pipeline import cli
from apeagent_pipeline.artifacts import store as artifact_store
from apeagent_pipeline.artifacts.store import ArtifactStore
from apeagent_pipeline.cli import clean
from apeagent_pipeline.student.promotion import KEPT, PROMOTED, archived, history, promote

DAY_SECONDS = 86_400


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three versions of an artifact and of a day, old and new files in every folder of the rule."""
    monkeypatch.setenv("APEAGENT_HOME", str(tmp_path))
    store = ArtifactStore(str(tmp_path / "storage"), tmp_path / "cache" / "artifacts")
    for text in (b"one", b"two", b"three"):
        store.publish_bytes({"model.bin": text * 1_000}, asset="trained_gan", code_version="1")
        store.publish_bytes({"2025-01-21.parquet": text}, asset="raw_swaps", partition="2025-01-21", code_version="1")
    for folder in [*(rule.folder for rule in clean.EXPIRING), *(folder for _, folder in clean.KEPT[1:])]:
        for name, age in (("old", 400), ("new", 0)):
            path = tmp_path / folder / name / "file"
            path.parent.mkdir(parents=True)
            path.write_bytes(b"x" * 100)
            for each in (path, path.parent):
                os.utime(each, (time.time() - age * DAY_SECONDS,) * 2)
    return tmp_path


def run(*arguments: str) -> str:
    done = CliRunner().invoke(cli.app, ["clean", *arguments])
    assert done.exit_code == 0, done.exception
    return done.output


def files(home: Path) -> set[str]:
    return {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}


def test_a_dry_run_deletes_nothing_and_says_how_much_would_be_freed(home: Path) -> None:
    before = files(home)
    assert "would free 600 bytes" in run("--dry-run")
    assert files(home) == before


def test_expired_files_go_and_everything_else_stays(home: Path) -> None:
    before = files(home)
    assert "Freed 600 bytes" in run()
    assert before - files(home) == {f"{rule.folder}/old/file" for rule in clean.EXPIRING}
    assert "Freed 0 bytes" in run()


def test_superseded_versions_go_and_the_present_one_is_read_as_before(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clean, "SUPERSEDED_AFTER", timedelta(0))
    run()
    store = ArtifactStore(str(home / "storage"), home / "cache" / "artifacts")
    assert (store.local_folder("trained_gan") / "model.bin").read_bytes() == b"three" * 1_000
    assert store.manifest("raw_swaps", "2025-01-21") is not None
    assert (
        len([name for name in files(home) if name.startswith("storage/trained_gan/.versions/") and "model" in name])
        == 1
    )
    assert (
        len([name for name in files(home) if name.startswith("storage/raw_swaps/.versions/") and "parquet" in name])
        == 1
    )


RETRAINED = {"trained_gan": 2_000, "training_windows": 3_000, "teacher_traces": 4_000, "lora_adapter": 20_000}
"""Asset -> bytes of its file, a thousandth of the demo's."""


class Retraining:
    """Retrainings, as far as the disk is concerned: the files of the demo's model, a thousand times smaller."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.store = ArtifactStore(str(home / "storage"), home / "cache" / "artifacts")

    def __call__(self, number: int) -> None:
        for asset, size in RETRAINED.items():
            self.publish(asset, asset, size)
        adapter = self.store.local_folder("lora_adapter")
        report = {"metrics": {}, "intervals": {}, "provenance": {"inputs": {"lora_adapter": str(number)}}}
        out = self.home / "work" / "promoted_adapter"
        assert promote(self.store, adapter, str(number), report, failures=[], origins=[], out=out) == []
        self.store.publish_folder(out, asset=PROMOTED, code_version="1")
        shutil.rmtree(out)
        self.publish("fused_model", "model.safetensors", 269_000)
        self.publish("ollama_model", "model.gguf", 290_000)
        for folder in (f"tensorboard/{number}", "checkpoints/lora_adapter"):
            (self.home / folder).mkdir(parents=True, exist_ok=True)
            (self.home / folder / "events").write_bytes(os.urandom(5_000))

    def publish(self, asset: str, name: str, size: int) -> None:
        self.store.publish_bytes({name: os.urandom(size)}, asset=asset, code_version="1")

    @property
    def taken(self) -> int:
        """Bytes of the home, as ``du`` counts them."""
        return clean._bytes(self.home)


def test_ten_retrainings_within_a_day_take_less_than_three_times_the_disk_of_one_after_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APEAGENT_HOME", str(tmp_path))
    retrain = Retraining(tmp_path)
    retrain(0)
    after_one = retrain.taken
    for number in range(1, 10):
        retrain(number)
    assert retrain.taken > 8 * after_one
    monkeypatch.setattr(clean, "SUPERSEDED_AFTER", timedelta(0))  # an hour later
    run()
    assert retrain.taken < 1.5 * after_one
    assert len(history(retrain.store)) == 10
    for version in range(10 - KEPT, 10):
        assert archived(retrain.store, str(version)).is_dir(), "promoted adapters stay"


def test_weekly_retrainings_need_no_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact_store, "_KEPT_AFTER_ITS_SUCCESSOR", timedelta(0))  # a week is longer than a day
    retrain = Retraining(tmp_path)
    retrain(0)
    after_one = retrain.taken
    for number in range(1, 10):
        retrain(number)
    assert retrain.taken < 3 * after_one
