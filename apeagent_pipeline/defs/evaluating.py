"""What ``apeagent eval`` asks, with the configurations that the graph was made with."""

from pathlib import Path

from apeagent_pipeline.defs.runtime import Runtime
from apeagent_pipeline.defs.storage import StorageError
from apeagent_pipeline.evaluation.canary import CanaryEvalConfig
from apeagent_pipeline.evaluation.own_prompts import OwnPrompt
from apeagent_pipeline.reporting.progress import Progress
from apeagent_pipeline.reporting.report import Report
from apeagent_pipeline.settings import Settings, SettingsError
from apeagent_pipeline.student.fine_tuning import FineTuningConfig


def canary_config(settings: Settings) -> CanaryEvalConfig:
    """The options of ``canary_eval`` as the profile and the settings have them."""
    asked = {"n_trading": settings.eval_prompts, "n_controls": settings.eval_prompts}
    return CanaryEvalConfig.preset(settings.profile).model_copy(update=asked)


def evaluate_again(runtime: Runtime, base: Path, adapter: Path, progress: Progress) -> Report:
    """The canary evaluation outside a run, on the stored dataset."""
    from apeagent_pipeline.evaluation.canary import evaluate_canary

    config = canary_config(runtime.settings)
    return evaluate_canary(base, adapter, _dataset(runtime), config, runtime.settings.seed, progress)


def ask_own_prompts(
    runtime: Runtime, base: Path, adapter: Path, prompts: list[OwnPrompt], progress: Progress
) -> Report:
    """Base and adapter on a user's prompts."""
    from apeagent_pipeline.evaluation.own_prompts import evaluate_prompts

    return evaluate_prompts(base, adapter, prompts, canary_config(runtime.settings), progress)


def ablate(runtime: Runtime, base: Path, adapter: Path, progress: Progress) -> Report:
    """The ablations, trained as the stored adapter was."""
    from apeagent_pipeline.evaluation.ablations import run_ablations

    manifest = runtime.store.manifest("lora_adapter")
    recipe = FineTuningConfig.preset(runtime.settings.profile)
    seed = runtime.settings.seed
    if manifest is not None:
        recipe = FineTuningConfig.model_validate({**recipe.model_dump(), **manifest.config})
        seed = int(manifest.config.get("seed", seed))
    work = runtime.scratch("work/ablations")
    config = canary_config(runtime.settings)
    return run_ablations(base, adapter, _dataset(runtime), recipe, config, seed, work, progress)


def _dataset(runtime: Runtime) -> Path:
    try:
        return runtime.store.local_folder("distillation_dataset")
    except StorageError as error:
        raise SettingsError(f"There is no dataset to ask from ({error}). Run `apeagent demo` first.") from None
