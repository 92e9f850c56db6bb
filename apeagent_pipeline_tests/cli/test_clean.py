"""``apeagent clean``: frees what can be made again, and nothing that was paid for or is in service."""

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from apeagent_pipeline import cli
from apeagent_pipeline.artifacts.store import ArtifactStore
from apeagent_pipeline.cli import clean

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
