"""``kill -9`` of a run in the middle of each asset: found, failed, gone on with, and the same in the end."""

import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster import DagsterRunStatus

from apeagent_pipeline.defs.automation.orphans import fail_orphaned_runs
from apeagent_pipeline.defs.instance import open_instance
from apeagent_pipeline.defs.update import update
from apeagent_pipeline.settings import Settings
from apeagent_pipeline_tests.defs.killer import Killer
from apeagent_pipeline_tests.tiny_graph import ASSETS, tiny_graph

DAYS = ["2025-01-21", "2025-01-22"]
DAILY = ASSETS[:3]
LONG = ["trained_gan", "lora_adapter"]
"""Those that go on from a checkpoint; each of the others takes seconds, or keeps every finished answer or range."""

PRELOADED = [
    "apeagent_pipeline.defs.build", "apeagent_pipeline.gan.quality", "apeagent_pipeline.gan.training", "peft",
    "sklearn.ensemble", "transformers.models.qwen2.modeling_qwen2", "trl.trainer.sft_trainer",
]  # fmt: skip
"""What takes long to import; nothing that starts threads, which would not live on in a fork."""

pytestmark = pytest.mark.slow


def live(settings: Settings, asset: str, moment: str, told: Path) -> None:
    """A process that brings the graph up to date, as `apeagent demo` does, until it is killed."""
    import torch

    from apeagent_pipeline.gan import training

    torch.set_num_threads(1)
    training.CHECKPOINT_SECONDS = -1
    with open_instance(settings) as instance:
        rounds = update(tiny_graph(settings, Killer(asset, moment, told)), instance, DAYS, only=set(ASSETS))
    os._exit(0 if all(each.success for each in rounds) else 1)


@pytest.fixture(scope="module")
def processes() -> Iterator[Any]:
    """Starts processes that have the slow libraries loaded already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    yield context


def run(processes: Any, settings: Settings, asset: str, moment: str) -> list[tuple[str, int]]:
    """Bring the graph up to date in a process of its own; what it told of its progress."""
    told = settings.home / "told.jsonl"
    told.parent.mkdir(parents=True, exist_ok=True)
    told.write_text("")
    process = processes.Process(target=live, args=(settings, asset, moment, told))
    process.start()
    process.join(timeout=300)
    assert process.exitcode == (-signal.SIGKILL if asset else 0)
    return [tuple(json.loads(line)) for line in told.read_text().splitlines()]


def versions(settings: Settings) -> dict[str, str]:
    """Data version of every artifact, each checked byte by byte."""
    store = tiny_graph(settings).runtime.store
    found = {}
    for asset in ASSETS:
        for day in DAYS if asset in DAILY else [None]:
            manifest = store.manifest(asset, day)
            if manifest is None:
                continue
            for name, file in manifest.files.items():
                content = (store.folder(asset) / name).read_bytes()
                assert hashlib.sha256(content).hexdigest() == file.sha256, f"{asset}/{name} is torn"
            found[f"{asset} {day or ''}"] = manifest.data_version
    return found


def test_a_run_killed_anywhere_is_found_gone_on_with_and_ends_in_the_same_data(
    processes: Any, tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")  # open_instance sets it
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # for the processes, which import this module by its name
    undisturbed = Settings(home=tmp_path / "undisturbed", student=str(tiny_student), eval_prompts=6)
    settings = undisturbed.model_copy(update={"home": tmp_path / "killed"})
    run(processes, undisturbed, "", "")
    expected = versions(undisturbed)
    assert len(expected) == len(ASSETS) + len(DAILY)  # each daily asset has two days

    kills = [(asset, moment) for asset in ASSETS for moment in (["working"] if asset in LONG else []) + ["writing"]]
    with open_instance(settings) as instance:
        for asset, moment in kills:
            told = run(processes, settings, asset, moment)
            (killed,) = instance.get_runs(dg.RunsFilter(statuses=[DagsterRunStatus.STARTED]))
            assert fail_orphaned_runs(instance) == [killed.run_id]
            assert instance.get_runs(dg.RunsFilter(statuses=[DagsterRunStatus.STARTED])) == []
            published = versions(settings)
            assert not any(name.startswith(f"{asset} ") for name in published), f"{asset} was killed {moment}"
            assert published.items() <= expected.items()
            if asset in LONG and moment == "writing":
                first = next(done for name, done in told if name == asset)
                assert first > 1, f"{asset} began anew"
    run(processes, settings, "", "")
    assert versions(settings) == expected
    assert not list(Path(settings.storage_url).rglob("*.tmp")), "half-written files are left"
