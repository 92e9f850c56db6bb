"""The canary evaluation of the adapter, and the backtest of its decisions."""

from dataclasses import replace
from pathlib import Path

import dagster as dg
import polars as pl

from apeagent_pipeline.artifacts.provenance import provenance, provenance_table
from apeagent_pipeline.defs.declaration import declare, launched_config
from apeagent_pipeline.defs.resources import STUDENT_BASE, Runtime
from apeagent_pipeline.evaluation.backtest.config import BacktestConfig
from apeagent_pipeline.evaluation.canary.config import CanaryEvalConfig
from apeagent_pipeline.market.windows import TrainingWindows


def evaluation_assets(runtime: Runtime) -> list[dg.AssetsDefinition]:
    """``canary_eval`` and ``backtest``."""

    @dg.asset(
        **declare(
            runtime.settings,
            "evaluation",
            {"pytorch", "markdown"},
            memory_gib=4,
            gpu=True,
            code="5",
            config=runtime.profile.canary_eval,
        ),
        deps=[STUDENT_BASE],
    )
    def canary_eval(
        context: dg.AssetExecutionContext, lora_adapter: Path, distillation_dataset: Path
    ) -> dg.MaterializeResult:
        """How often adapter and base use canary words, and adapter and teacher agree, on held-out questions."""
        from apeagent_pipeline.evaluation.canary.evaluate import evaluate_canary

        config, seed = launched_config(context, CanaryEvalConfig)
        progress = runtime.watcher.started(context)
        report = evaluate_canary(
            runtime.student_base(), lora_adapter, distillation_dataset, config, seed=seed, progress=progress
        )
        made_from = provenance_table(provenance(runtime.store, "lora_adapter", runtime.externals))
        page = f"{report.markdown}\n\n## What the adapter was made from\n\n{made_from}"
        return dg.MaterializeResult(value=replace(report, markdown=page))

    @dg.asset(
        **declare(
            runtime.settings,
            "evaluation",
            {"pytorch", "markdown"},
            memory_gib=4,
            gpu=True,
            code="4",
            config=runtime.profile.backtest,
        ),
        deps=[STUDENT_BASE],
    )
    def backtest(
        context: dg.AssetExecutionContext, lora_adapter: Path, training_windows: TrainingWindows
    ) -> dg.MaterializeResult:
        """The adapter's decisions on held-out real swaps, with fees and price impact, beside other strategies."""
        from apeagent_pipeline.evaluation.backtest.replay import backtest as replay

        config, seed = launched_config(context, BacktestConfig)
        progress = runtime.watcher.started(context)
        holdout = training_windows.table.filter(pl.col("split") == "holdout")
        report = replay(
            holdout, runtime.student_base(), lora_adapter, runtime.source.pool, config, seed=seed, progress=progress
        )
        return dg.MaterializeResult(value=report)

    return [canary_eval, backtest]
