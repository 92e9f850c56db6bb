"""The whole graph at tiny scale: the same code, sizes that a test can afford."""

from apeagent_pipeline.defs.build import Graph, build_graph
from apeagent_pipeline.defs.profiles import Profile, TeachingConfig
from apeagent_pipeline.defs.watcher import Watcher
from apeagent_pipeline.distillation.dataset import DatasetConfig
from apeagent_pipeline.evaluation.canary.config import CanaryEvalConfig
from apeagent_pipeline.evaluation.service.config import ServiceReportConfig
from apeagent_pipeline.gan.config import GanConfig
from apeagent_pipeline.gan.quality.config import QualityConfig
from apeagent_pipeline.gan.sampling import SamplingConfig
from apeagent_pipeline.settings import Settings
from apeagent_pipeline.student.fine_tuning import FineTuningConfig
from apeagent_pipeline.student.reinforcement import ReinforcementConfig

TINY = Profile(
    trained_gan=GanConfig(
        hidden=16, layers=1, heads=2, batch=8, likelihood_steps=6, adversarial_steps=2, control_steps=2,
        judged_windows=100,
    ),
    synthetic_windows=SamplingConfig(n_windows=300),
    # A GAN trained for eight steps is bad: the limits must not stop the graph that is tested here.
    synthetic_quality=QualityConfig(windows=60, folds=2, gru_epochs=1, largest_auc=1.0, largest_ks=1.0),
    teacher_traces=TeachingConfig(train_prompts=60, valid_prompts=16, prompts_per_window=4),
    distillation_dataset=DatasetConfig(n_train=24, n_valid=6),
    lora_adapter=FineTuningConfig(
        steps=4, batch_size=4, last_blocks=0, valid_examples=4, valid_every=2, checkpoint_seconds=0, max_tokens=2_048
    ),
    # Nor a student of four steps, which says anything. That the check refuses leaks is tested where it is defined.
    canary_eval=CanaryEvalConfig(
        n_disabled=4, max_new_tokens=8, min_canary_rate=0.0, min_agreement_gain=-1.0,
        max_control_leak=1.0, max_near_leak=1.0, max_near_leak_held_out=1.0,
    ),
    service_report=ServiceReportConfig(moments=3, window=8, horizon=6, max_new_tokens=8),
    reinforced_adapter=ReinforcementConfig(
        train_prompts=8, test_prompts=4, steps=2, batch_size=4, generations=2, max_new_tokens=8
    ),
)  # fmt: skip

# In the order in which they are made; all but the daily score, which only new days get, and the export to GGUF, whose
# converter knows real tokenizers only (tested with the student's room).
ASSETS = [
    "raw_swaps", "liquidity_changes", "swap_features", "training_windows", "trained_gan", "synthetic_windows",
    "synthetic_quality",
    "teacher_traces", "distillation_dataset", "lora_adapter", "backtest", "canary_eval", "promoted_adapter",
    "fused_model",
]  # fmt: skip


def tiny_graph(settings: Settings, watcher: Watcher | None = None) -> Graph:
    """The whole graph with the profile `TINY`."""
    return build_graph(settings, watcher, TINY)
