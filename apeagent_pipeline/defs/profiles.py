"""What each profile means for every asset that has options: one table.

The fields of `Profile` are named after the assets. The defaults of a configuration class are the values of ``laptop``,
so this table says only what the other profiles change.
"""

import math
from dataclasses import dataclass, field, replace

from apeagent_pipeline.distillation.dataset import DatasetConfig
from apeagent_pipeline.distillation.prompts import PromptsConfig
from apeagent_pipeline.distillation.traces import TracesConfig
from apeagent_pipeline.evaluation.backtest.config import BacktestConfig
from apeagent_pipeline.evaluation.canary.config import CanaryEvalConfig
from apeagent_pipeline.evaluation.service.config import ServiceReportConfig
from apeagent_pipeline.gan.config import GanConfig
from apeagent_pipeline.gan.quality.config import QualityConfig
from apeagent_pipeline.gan.sampling import SamplingConfig
from apeagent_pipeline.market.windows import WindowsConfig
from apeagent_pipeline.settings import Settings, SettingsError
from apeagent_pipeline.student.fine_tuning import FineTuningConfig
from apeagent_pipeline.student.gguf import ExportConfig
from apeagent_pipeline.student.reinforcement import ReinforcementConfig

_TEST_RESERVE = 1.3
"""Test prompts asked for each prompt that is evaluated: the teacher's answers to some are refused."""


class TeachingConfig(PromptsConfig, TracesConfig):
    """The options of ``teacher_traces``: which prompts are asked, and what an answer must satisfy."""


@dataclass(frozen=True)
class Profile:
    """The configuration of every asset that has one."""

    training_windows: WindowsConfig = field(default_factory=WindowsConfig)
    trained_gan: GanConfig = field(default_factory=GanConfig)
    synthetic_windows: SamplingConfig = field(default_factory=SamplingConfig)
    synthetic_quality: QualityConfig = field(default_factory=QualityConfig)
    teacher_traces: TeachingConfig = field(default_factory=TeachingConfig)
    distillation_dataset: DatasetConfig = field(default_factory=DatasetConfig)
    lora_adapter: FineTuningConfig = field(default_factory=FineTuningConfig)
    canary_eval: CanaryEvalConfig = field(default_factory=CanaryEvalConfig)
    backtest: BacktestConfig = field(default_factory=BacktestConfig)
    service_report: ServiceReportConfig = field(default_factory=ServiceReportConfig)
    ollama_model: ExportConfig = field(default_factory=ExportConfig)
    reinforced_adapter: ReinforcementConfig = field(default_factory=ReinforcementConfig)


LAPTOP = Profile()
DEMO = Profile(
    # A short training learns two forms in the source document's formats, and not the many ways in which people ask.
    # Near controls are reported here, and limited in ``laptop``.
    trained_gan=GanConfig(likelihood_steps=300, most_likelihood_steps=300, adversarial_steps=10, control_steps=0),
    synthetic_quality=QualityConfig(windows=800, deals=1),
    teacher_traces=TeachingConfig(
        train_prompts=1_010, valid_prompts=50, plain_share=0.55, agent_share=0, incomplete_share=0, far_share=0,
        varied=False,
    ),
    distillation_dataset=DatasetConfig(n_train=780, n_valid=32, control_share=0.1, near_share=0.25),
    lora_adapter=FineTuningConfig(steps=585, valid_every=585, last_blocks=10, near_kl=2),
    canary_eval=CanaryEvalConfig(
        n_base=25, n_disabled=4, n_merged=4, n_sampled=0, control_tokens=48, max_near_leak=1, max_near_leak_held_out=1
    ),
    backtest=BacktestConfig(base_decisions=1),
    ollama_model=ExportConfig(quantizations=["f16"]),
)  # fmt: skip
FULL = Profile(
    training_windows=WindowsConfig(days=90),
    trained_gan=GanConfig(
        hidden=256, condition_layers=2, dropout=0.25, likelihood_steps=3_000,
        most_likelihood_steps=3_000, likelihood_rate=4e-4,
        adversarial_steps=1_000, adversarial_ema=0.99, control_steps=4_500,
    ),
    synthetic_windows=SamplingConfig(n_windows=20_000),
    synthetic_quality=QualityConfig(windows=4_000, folds=5, gru_epochs=15),
    teacher_traces=TeachingConfig(train_prompts=6_000, valid_prompts=400, test_prompts=400, attempts=3),
    distillation_dataset=DatasetConfig(
        n_train=4_000, n_valid=300, n_test_trading=300, n_test_controls=300, n_test_near=300
    ),
    lora_adapter=FineTuningConfig(
        rank=16, alpha=32, last_blocks=0, learning_rate=2e-4, warmup_steps=20, steps=400, batch_size=8, accumulation=2,
        max_tokens=1_024, gradient_checkpointing=True, valid_examples=200, valid_answers=32, valid_every=50,
    ),
    canary_eval=CanaryEvalConfig(
        n_trading=300, n_controls=300, n_near=300, n_disabled=300, n_merged=300, n_sampled=300
    ),
    backtest=BacktestConfig(decisions=48, episodes=64, random_runs=1_000),
    service_report=ServiceReportConfig(moments=24),
    reinforced_adapter=ReinforcementConfig(
        train_prompts=2_000, test_prompts=400, batch_size=16, accumulation=4, steps=500, learning_rate=5e-5,
        warmup_steps=20, gradient_checkpointing=True,
    ),
)  # fmt: skip
PROFILES = {"demo": DEMO, "laptop": LAPTOP, "full": FULL}


def configured(settings: Settings, profile: Profile | None = None) -> Profile:
    """The profile that the settings name, with what other settings say about single options.

    Args:
        settings: ``profile``, ``eval_prompts`` and the budgets of the teacher are read.
        profile: A profile of one's own to take instead of the named one.

    Raises:
        SettingsError: There is no profile of that name.
    """
    if profile is None and settings.profile not in PROFILES:
        raise SettingsError(f"APEAGENT_PROFILE={settings.profile!r}: expected one of {', '.join(PROFILES)}")
    profile = profile or PROFILES[settings.profile]
    asked = settings.eval_prompts
    budgets = ("max_requests", "max_total_tokens", "max_cost_usd", "daily_requests", "daily_tokens")
    teaching = {name: getattr(settings, f"teacher_{name}") for name in budgets}
    return replace(
        profile,
        teacher_traces=profile.teacher_traces.model_copy(
            update={"test_prompts": math.ceil(asked * _TEST_RESERVE), **teaching}
        ),
        distillation_dataset=profile.distillation_dataset.model_copy(
            update={"n_test_trading": asked, "n_test_controls": asked, "n_test_near": asked}
        ),
        canary_eval=profile.canary_eval.model_copy(update={"n_trading": asked, "n_controls": asked, "n_near": asked}),
    )
