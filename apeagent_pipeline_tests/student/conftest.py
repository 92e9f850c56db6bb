"""A tiny student and a tiny dataset, made once for all tests of this room."""

import json
from pathlib import Path

import pytest
import torch

from apeagent_pipeline_tests.student.tiny_qwen2 import build_tiny_qwen2


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    # Tiny matrices: threads only wait for each other, above all beside other test processes.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    return build_tiny_qwen2(tmp_path_factory.mktemp("tiny_base"))


def write_dataset(folder: Path, examples: int = 12) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "kind": "trade",
            "side": "BUY",
            "messages": [
                {"role": "user", "content": f"ETH price is ${2500 + number}. What should I do?"},
                {"role": "assistant", "content": f"Price rising\n####\nAPE IN 0.{number % 9 + 1} ETH"},
            ],
        }
        for number in range(examples)
    ]
    for split in ("train", "valid", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("tiny_dataset"))


@pytest.fixture(scope="session")
def tiny_adapter(tiny_base, tiny_dataset, tmp_path_factory) -> Path:
    from apeagent_pipeline.student.fine_tuning import FineTuningConfig, fine_tune

    folder = tmp_path_factory.mktemp("tiny_adapter")
    config = FineTuningConfig(
        steps=6, batch_size=4, valid_every=3, valid_examples=4, last_blocks=1, learning_rate=3e-2, warmup_steps=0
    )
    fine_tune(tiny_base, tiny_dataset, config, 3, folder / "out", checkpoint_dir=folder / "checkpoints")
    return folder / "out"
