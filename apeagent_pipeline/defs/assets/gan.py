"""The generator of swaps and the proof of its quality."""

from dataclasses import replace
from pathlib import Path

import dagster as dg
import polars as pl

from apeagent_pipeline.defs.declaration import declare, launched_config
from apeagent_pipeline.defs.metadata import picture
from apeagent_pipeline.defs.resources import Runtime
from apeagent_pipeline.gan.config import GanConfig
from apeagent_pipeline.gan.quality.config import QualityConfig
from apeagent_pipeline.gan.quality.report import quality_report
from apeagent_pipeline.gan.sampling import SamplingConfig, sample_windows
from apeagent_pipeline.market.windows import TrainingWindows


def gan_assets(runtime: Runtime) -> list[dg.AssetsDefinition]:
    """``trained_gan``, ``synthetic_windows`` and ``synthetic_quality``."""
    return [_trained_gan(runtime), _synthetic_windows(runtime), _synthetic_quality(runtime)]


def _trained_gan(runtime: Runtime) -> dg.AssetsDefinition:
    @dg.asset(
        **declare(
            runtime.settings,
            "gan",
            {"pytorch"},
            code="4",
            config=runtime.profile.trained_gan,
            pool="training",
            memory_gib=4,
            gpu=True,
            made="on_policy",
        )
    )
    def trained_gan(context: dg.AssetExecutionContext, training_windows: TrainingWindows) -> dg.MaterializeResult:
        """Transformer generator and critic (WGAN-GP), with their configuration and training history."""
        from apeagent_pipeline.gan.quality.figures import training_figure
        from apeagent_pipeline.gan.training import train_gan

        config, seed = launched_config(context, GanConfig)
        gan = train_gan(
            training_windows,
            config,
            seed=seed,
            progress=runtime.watcher.started(context),
            checkpoint_dir=runtime.scratch("checkpoints/trained_gan"),
            log_dir=runtime.scratch("tensorboard/trained_gan"),
        )
        training = picture("losses and scores", training_figure(gan.history))
        return dg.MaterializeResult(value=gan, metadata={**gan.summary(), "training": training})

    return trained_gan


def _synthetic_windows(runtime: Runtime) -> dg.AssetsDefinition:
    @dg.asset(
        **declare(
            runtime.settings,
            "gan",
            {"pytorch", "parquet"},
            memory_gib=4,
            gpu=True,
            code="3",
            config=runtime.profile.synthetic_windows,
        )
    )
    def synthetic_windows(
        context: dg.AssetExecutionContext, trained_gan: Path, training_windows: TrainingWindows
    ) -> dg.MaterializeResult:
        """Generated windows of swaps. Every row obeys the pool's own arithmetic."""
        from apeagent_pipeline.gan.trained_gan import TrainedGan

        config, seed = launched_config(context, SamplingConfig)
        windows = sample_windows(
            TrainedGan.load(trained_gan),
            training_windows,
            runtime.source.pool,
            config,
            seed=seed,
            progress=runtime.watcher.started(context),
        )
        return dg.MaterializeResult(value=windows)

    return synthetic_windows


def _synthetic_quality(runtime: Runtime) -> dg.AssetsDefinition:
    @dg.asset(
        **declare(
            runtime.settings,
            "gan",
            {"python", "markdown"},
            memory_gib=4,
            gpu=True,
            code="5",
            config=runtime.profile.synthetic_quality,
        )
    )
    def synthetic_quality(
        context: dg.AssetExecutionContext,
        synthetic_windows: pl.DataFrame,
        training_windows: TrainingWindows,
        trained_gan: Path,
    ) -> dg.MaterializeResult:
        """How close the synthetic windows are to held-out real ones. Its check keeps bad windows from the teacher."""
        from apeagent_pipeline.gan.trained_gan import TrainedGan

        config, seed = launched_config(context, QualityConfig)
        progress = runtime.watcher.started(context)
        pool = runtime.source.pool
        holdout = SamplingConfig(n_windows=config.windows, conditions=["holdout"])
        gan = TrainedGan.load(trained_gan)
        later = sample_windows(gan, training_windows, pool, holdout, seed=seed)
        control = None
        if gan.control is not None:
            alone, judged = replace(gan, generator=gan.control), SamplingConfig(n_windows=2 * config.windows)
            control = sample_windows(alone, training_windows, pool, judged, seed=seed)
        report = quality_report(
            synthetic_windows,
            training_windows,
            pool,
            config,
            seed=seed,
            progress=progress,
            history=trained_gan / "history.json",
            later=later,
            control=control,
        )
        return dg.MaterializeResult(value=report)

    return synthetic_quality
