"""The teacher's answers, and the dataset that the student learns from."""

import dagster as dg
import polars as pl

from apeagent_pipeline.defs.declaration import OWNER, declare, launched_config
from apeagent_pipeline.defs.metadata import picture
from apeagent_pipeline.defs.profiles import TeachingConfig
from apeagent_pipeline.defs.resources import TEACHER, Runtime
from apeagent_pipeline.distillation.dataset import DatasetConfig, build_dataset
from apeagent_pipeline.distillation.prompts import build_prompts
from apeagent_pipeline.distillation.teachers import open_teacher
from apeagent_pipeline.distillation.traces import collect_traces
from apeagent_pipeline.distillation.traces_report import teaching_metrics, teaching_report
from apeagent_pipeline.settings import Settings, mask_url


def distillation_assets(runtime: Runtime) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """``teacher_model`` (external), ``teacher_traces`` and ``distillation_dataset``."""
    settings = runtime.settings
    teacher_model = dg.AssetSpec(
        TEACHER,
        group_name="distillation",
        kinds={"python" if settings.teacher == "rules" else "openai"},
        owners=[OWNER],
        description="The teacher: " + _teacher_in_words(settings),
    )

    return [teacher_model, _teacher_traces(runtime), _distillation_dataset(runtime)]


def _teacher_traces(runtime: Runtime) -> dg.AssetsDefinition:
    @dg.asset(
        **declare(
            runtime.settings,
            "distillation",
            {"python", "parquet"},
            code="11",
            config=runtime.profile.teacher_traces,
            pool="teacher",
            made="on_policy",
        ),
        deps=[TEACHER, "synthetic_quality"],
    )
    def teacher_traces(context: dg.AssetExecutionContext, synthetic_windows: pl.DataFrame) -> dg.MaterializeResult:
        """The teacher's answers in Chain of Draft to prompts made from synthetic windows, verified, with their cost.

        Refused answers stay in the table with their reason. This asset waits for the check of synthetic_quality.
        """
        from apeagent_pipeline.distillation.traces_figure import teaching_figure

        config, seed = launched_config(context, TeachingConfig)
        traces = collect_traces(
            build_prompts(synthetic_windows, config, seed),
            open_teacher(runtime.settings),
            config,
            runtime.scratch("cache/teacher"),
            seed,
            progress=runtime.watcher.started(context),
        )
        figures = {
            **teaching_metrics(traces),
            "teaching": picture("actions, verdicts and tokens", teaching_figure(traces)),
            "report": dg.MetadataValue.md(teaching_report(traces)),
        }
        return dg.MaterializeResult(value=traces, metadata=figures)

    return teacher_traces


def _distillation_dataset(runtime: Runtime) -> dg.AssetsDefinition:
    @dg.asset(
        **declare(
            runtime.settings,
            "distillation",
            {"jsonlines", "huggingface"},
            code="12",
            config=runtime.profile.distillation_dataset,
        )
    )
    def distillation_dataset(context: dg.AssetExecutionContext, teacher_traces: pl.DataFrame) -> dg.MaterializeResult:
        """Chat examples with canary words in train, valid and test, and control examples without canary words."""
        config, seed = launched_config(context, DatasetConfig)
        runtime.watcher.started(context)
        built = build_dataset(teacher_traces, config, seed)
        sizes = {split: len(getattr(built, split)) for split in ("train", "valid", "test")}
        return dg.MaterializeResult(value=built, metadata={**sizes, "card": dg.MetadataValue.md(built.card)})

    return distillation_dataset


def _teacher_in_words(settings: Settings) -> str:
    if settings.teacher == "rules":
        return "the embedded policy"
    return f"{settings.teacher_model} at {mask_url(settings.teacher_base_url)}"
