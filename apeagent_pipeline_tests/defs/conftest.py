"""The whole graph at tiny scale: the same code, sizes that a test can afford."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from apeagent_pipeline.distillation.dataset import DatasetConfig
from apeagent_pipeline.distillation.prompts import PromptsConfig
from apeagent_pipeline.evaluation.backtest import BacktestConfig
from apeagent_pipeline.evaluation.canary import CanaryEvalConfig
from apeagent_pipeline.gan.config import GanConfig
from apeagent_pipeline.gan.quality import QualityConfig
from apeagent_pipeline.gan.sampling import SamplingConfig
from apeagent_pipeline.settings import Settings
from apeagent_pipeline.student.fine_tuning import FineTuningConfig
from apeagent_pipeline.student.reinforcement import ReinforcementConfig
from apeagent_pipeline_tests.student.tiny_qwen2 import build_tiny_qwen2

TINY: dict[type[BaseModel], dict[str, Any]] = {
    GanConfig: {
        "hidden": 16, "layers": 1, "heads": 2, "batch": 8,
        "likelihood_steps": 6, "adversarial_steps": 2, "control_steps": 2, "judged_windows": 100,
    },
    SamplingConfig: {"n_windows": 300},
    # What a GAN of eight steps makes is bad: the limits must not stop the graph that is tested here.
    QualityConfig: {"windows": 60, "folds": 2, "gru_epochs": 1, "largest_auc": 1.0, "largest_ks": 1.0},
    PromptsConfig: {"train_prompts": 60, "valid_prompts": 16},
    DatasetConfig: {"n_train": 24, "n_valid": 6},
    FineTuningConfig: {"steps": 4, "last_blocks": 0, "valid_examples": 4, "valid_every": 2, "checkpoint_seconds": 0},
    CanaryEvalConfig: {"n_disabled": 4, "max_new_tokens": 8, "min_canary_rate": 0.0, "min_agreement_gain": -1.0},
    BacktestConfig: {},
    ReinforcementConfig: {
        "train_prompts": 8, "test_prompts": 4, "steps": 2, "batch_size": 4, "generations": 2, "max_new_tokens": 8,
    },
}  # fmt: skip

# In the order in which they are made; all but the export to GGUF, whose converter knows real tokenizers only (tested
# with the student's room).
ASSETS = [
    "raw_swaps", "swap_features", "training_windows", "trained_gan", "synthetic_windows", "synthetic_quality",
    "teacher_traces", "distillation_dataset", "lora_adapter", "backtest", "canary_eval", "promoted_adapter",
    "fused_model",
]  # fmt: skip


@pytest.fixture(scope="session")
def tiny_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised Qwen2 with a tokenizer made on the spot."""
    return build_tiny_qwen2(tmp_path_factory.mktemp("student"))


@contextmanager
def tiny_presets() -> Iterator[None]:
    """While it lasts, the presets of the demo are tiny ones."""
    with pytest.MonkeyPatch.context() as patch:
        for model, values in TINY.items():
            patch.setattr(model, "preset", classmethod(lambda cls, profile, values=values: cls(**values)))
        yield


@pytest.fixture(scope="module")
def tiny_settings(tmp_path_factory: pytest.TempPathFactory, tiny_student: Path) -> Iterator[Settings]:
    """Settings of a graph that runs in seconds."""
    with tiny_presets():
        yield Settings(home=tmp_path_factory.mktemp("home"), student=str(tiny_student), eval_prompts=6)
