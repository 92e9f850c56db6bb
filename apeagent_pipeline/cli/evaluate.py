"""``apeagent eval``: evaluate the adapter in service again, on other prompts, or against ablations."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from apeagent_pipeline.cli.display import bar, metrics_table
from apeagent_pipeline.cli.serving import in_service
from apeagent_pipeline.settings import SettingsError

if TYPE_CHECKING:
    from apeagent_pipeline.defs.resources import Runtime
    from apeagent_pipeline.evaluation.own_prompts import OwnPrompt
    from apeagent_pipeline.reporting.progress import Progress
    from apeagent_pipeline.reporting.report import Report


def evaluate(
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts", metavar="FILE", help="Your own prompts: one a line, or JSONL with prompt, kind, side"
        ),
    ] = None,
    ablations: Annotated[
        bool, typer.Option("--ablations", help="Train students, each without one part of the recipe, and compare them")
    ] = False,
) -> None:
    """Evaluate the adapter in service: on the held-out prompts, on your own prompts, or against ablations.

    The report is written to APEAGENT_HOME/evaluations. In a JSONL file, a line such as
    {"prompt": "...", "side": "BUY"} states the right action; {"prompt": "...", "kind": "control"} marks a question
    that asks for no trade. The ablations train four more students; after an interruption they continue.
    """
    if prompts and ablations:
        raise SettingsError("--prompts and --ablations are different evaluations; give only one of them")
    from apeagent_pipeline.evaluation.own_prompts import read_prompts

    own = read_prompts(prompts) if prompts else []
    runtime, base, adapter = in_service()
    name = re.sub(r"[^\w-]+", "_", prompts.stem) if prompts else "ablations" if ablations else "held_out"
    with bar(name) as progress:
        if prompts:
            report = ask_own_prompts(runtime, base, adapter, own, progress)
        else:
            report = (ablate if ablations else evaluate_again)(runtime, base, adapter, progress)
    folder = runtime.settings.home.absolute() / "evaluations" / name
    report.save(folder, {"adapter": str(adapter)})
    console = Console()
    console.print(metrics_table(report.title, report.metrics, report.intervals))
    console.print(f"Report: {folder / 'report.md'}", highlight=False, soft_wrap=True)


def evaluate_again(runtime: "Runtime", base: Path, adapter: Path, progress: "Progress") -> "Report":
    """Run the canary evaluation on the stored dataset, without materializing ``canary_eval``."""
    from apeagent_pipeline.evaluation.canary.evaluate import evaluate_canary

    config = runtime.profile.canary_eval
    return evaluate_canary(base, adapter, _dataset(runtime), config, runtime.settings.seed, progress=progress)


def ask_own_prompts(
    runtime: "Runtime", base: Path, adapter: Path, prompts: "list[OwnPrompt]", progress: "Progress"
) -> "Report":
    """Ask base and adapter a user's own prompts."""
    from apeagent_pipeline.evaluation.own_prompts import evaluate_prompts

    return evaluate_prompts(base, adapter, prompts, runtime.profile.canary_eval, progress)


def ablate(runtime: "Runtime", base: Path, adapter: Path, progress: "Progress") -> "Report":
    """Train and evaluate the ablations with the configuration of the stored adapter."""
    from apeagent_pipeline.evaluation.ablations import run_ablations

    manifest = runtime.store.manifest("lora_adapter")
    recipe = runtime.profile.lora_adapter
    seed = runtime.settings.seed
    if manifest is not None:
        recipe = type(recipe).model_validate({**recipe.model_dump(), **manifest.config})
        seed = int(manifest.config.get("seed", seed))
    work = runtime.scratch("work/ablations")
    config = runtime.profile.canary_eval
    return run_ablations(base, adapter, _dataset(runtime), recipe, config, seed=seed, work=work, progress=progress)


def _dataset(runtime: "Runtime") -> Path:
    from apeagent_pipeline.artifacts.files import StorageError

    try:
        return runtime.store.local_folder("distillation_dataset")
    except StorageError as error:
        raise SettingsError(f"The held-out prompts are missing ({error}). Run `apeagent demo` first.") from None
