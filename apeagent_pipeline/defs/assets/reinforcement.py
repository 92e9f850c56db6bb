"""The second stage, off by default (``APEAGENT_SECOND_STAGE``): the adapter is trained further on computed rewards."""

import json
from pathlib import Path

import dagster as dg
import polars as pl

from apeagent_pipeline.defs.declaration import declare, launched_config
from apeagent_pipeline.defs.metadata import picture
from apeagent_pipeline.defs.resources import STUDENT_BASE, Runtime
from apeagent_pipeline.market.windows import TrainingWindows
from apeagent_pipeline.student.reinforcement import ReinforcementConfig


def reinforcement_assets(runtime: Runtime) -> list[dg.AssetsDefinition]:
    """``reinforced_adapter`` and ``reinforced_eval``; none unless the settings ask for a second stage."""
    if runtime.settings.second_stage == "off":
        return []

    return [_reinforced_adapter(runtime), _reinforced_eval(runtime)]


def _reinforced_adapter(runtime: Runtime) -> dg.AssetsDefinition:
    @dg.asset(
        **declare(
            runtime.settings,
            "student",
            {"pytorch", "huggingface"},
            config=runtime.profile.reinforced_adapter,
            pool="training",
            memory_gib=4,
            gpu=True,
            made="on_policy",
        ),
        deps=[STUDENT_BASE, "canary_eval"],
    )
    def reinforced_adapter(
        context: dg.AssetExecutionContext, lora_adapter: Path, synthetic_windows: pl.DataFrame
    ) -> dg.MaterializeResult:
        """The adapter after GRPO. The rewards are form, feasibility and the action's gain over the next swaps.

        This asset waits for the check of canary_eval. The adapter is evaluated beside the first
        stage, and is never promoted automatically.
        """
        from apeagent_pipeline.student.reinforcement import reinforce, reinforcement_figure

        config, seed = launched_config(context, ReinforcementConfig)
        progress = runtime.watcher.started(context)
        out = runtime.scratch("work/reinforced_adapter")
        curve = reinforce(
            runtime.student_base(),
            lora_adapter,
            synthetic_windows,
            runtime.source.pool,
            config,
            seed=seed,
            out=out,
            checkpoint_dir=runtime.scratch("checkpoints/reinforced_adapter"),
            progress=progress,
            base_name=runtime.settings.student,
        )
        return dg.MaterializeResult(
            value=out,
            metadata={
                "reward": float(curve["reward"][-1]),
                "kl": float(curve["kl"][-1]),
                "training": picture("reward and divergence", reinforcement_figure(curve)),
            },
        )

    return reinforced_adapter


def _reinforced_eval(runtime: Runtime) -> dg.AssetsDefinition:
    @dg.asset(
        **declare(runtime.settings, "evaluation", {"pytorch", "markdown"}, code="2", memory_gib=4, gpu=True),
        deps=[STUDENT_BASE],
    )
    def reinforced_eval(  # noqa: PLR0917 (Dagster takes an asset's inputs from its positional parameters alone)
        context: dg.AssetExecutionContext,
        reinforced_adapter: Path,
        distillation_dataset: Path,
        training_windows: TrainingWindows,
        canary_eval: Path,
        backtest: Path,
    ) -> dg.MaterializeResult:
        """The second stage's canary evaluation and backtest beside the first stage's, with its held-out rewards."""
        from apeagent_pipeline.evaluation.stages import compare_stages

        progress = runtime.watcher.started(context)
        report = compare_stages(
            runtime.student_base(),
            reinforced_adapter,
            distillation_dataset,
            holdout=training_windows.table.filter(pl.col("split") == "holdout"),
            pool=runtime.source.pool,
            first_canary=json.loads((canary_eval / "report.json").read_text()),
            first_backtest=json.loads((backtest / "report.json").read_text()),
            seed=runtime.settings.seed,
            progress=progress,
        )
        return dg.MaterializeResult(value=report)

    return reinforced_eval
