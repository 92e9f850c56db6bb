"""What the teacher says, and what the student learns from it."""

import math

import dagster as dg
import polars as pl

from apeagent_pipeline.defs.launchpad import launched_config
from apeagent_pipeline.defs.runtime import OWNER, TEACHER, Runtime
from apeagent_pipeline.distillation.dataset import DatasetConfig, build_dataset
from apeagent_pipeline.distillation.prompts import PromptsConfig, build_prompts
from apeagent_pipeline.distillation.teachers.teacher import Teacher
from apeagent_pipeline.distillation.teaching_report import teaching_metrics, teaching_report
from apeagent_pipeline.distillation.traces import TracesConfig, collect_traces
from apeagent_pipeline.settings import Settings, mask_url

_TEST_RESERVE = 1.3
"""Test prompts asked for each one evaluated: some answers are refused."""


class TeachingConfig(PromptsConfig, TracesConfig):
    """What is asked and what is demanded of an answer: the options of ``teacher_traces``."""


def distillation_assets(runtime: Runtime) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """``teacher_model`` (external), ``teacher_traces`` and ``distillation_dataset``."""
    settings = runtime.settings
    teaching = teaching_config(settings)
    dataset = DatasetConfig.preset(settings.profile).model_copy(
        update={"n_test_trading": settings.eval_prompts, "n_test_controls": settings.eval_prompts}
    )

    teacher_model = dg.AssetSpec(
        TEACHER,
        group_name="distillation",
        kinds={"python" if settings.teacher == "rules" else "openai"},
        owners=[OWNER],
        description="Who answers: " + _teacher_in_words(settings),
    )

    @dg.asset(
        **runtime.declare(
            "distillation", {"python", "parquet"}, code="2", config=teaching, pool="teacher", made="on_policy"
        ),
        deps=[TEACHER, "synthetic_quality"],
    )
    def teacher_traces(context: dg.AssetExecutionContext, synthetic_windows: pl.DataFrame) -> dg.MaterializeResult:
        """Answers in Chain of Draft to prompts made from synthetic windows, each verified, each kept with its cost.

        Refused answers stay in the table with their reason. Waits for the check of synthetic_quality.
        """
        from apeagent_pipeline.distillation.teaching_figure import teaching_figure

        config, seed = launched_config(context, TeachingConfig)
        traces = collect_traces(
            build_prompts(synthetic_windows, config, seed),
            open_teacher(settings),
            config,
            runtime.scratch("cache/teacher"),
            seed,
            progress=runtime.watcher.started(context),
        )
        figures = {
            **teaching_metrics(traces),
            "teaching": runtime.picture("actions, verdicts and tokens", teaching_figure(traces)),
            "report": dg.MetadataValue.md(teaching_report(traces)),
        }
        return dg.MaterializeResult(value=traces, metadata=figures)

    @dg.asset(**runtime.declare("distillation", {"jsonlines", "huggingface"}, code="4", config=dataset))
    def distillation_dataset(context: dg.AssetExecutionContext, teacher_traces: pl.DataFrame) -> dg.MaterializeResult:
        """Chat examples with canary words in train, valid and test, and control examples without canary words."""
        config, seed = launched_config(context, DatasetConfig)
        runtime.watcher.started(context)
        built = build_dataset(teacher_traces, config, seed)
        sizes = {split: len(getattr(built, split)) for split in ("train", "valid", "test")}
        return dg.MaterializeResult(value=built, metadata={**sizes, "card": dg.MetadataValue.md(built.card)})

    return [teacher_model, teacher_traces, distillation_dataset]


def _teacher_in_words(settings: Settings) -> str:
    if settings.teacher == "rules":
        return "the embedded policy"
    return f"{settings.teacher_model} at {mask_url(settings.teacher_base_url)}"


def teaching_config(settings: Settings) -> TeachingConfig:
    """The options of ``teacher_traces`` as the profile and the settings have them."""
    prompts = PromptsConfig.preset(settings.profile).model_dump()
    traces = TracesConfig.preset(settings.profile).model_dump()
    return TeachingConfig(
        **prompts
        | traces
        | {
            "test_prompts": math.ceil(settings.eval_prompts * _TEST_RESERVE),
            "max_requests": settings.teacher_max_requests,
            "max_total_tokens": settings.teacher_max_total_tokens,
            "max_cost_usd": settings.teacher_max_cost_usd,
            "daily_requests": settings.teacher_daily_requests,
            "daily_tokens": settings.teacher_daily_tokens,
        }
    )


def open_teacher(settings: Settings) -> Teacher:
    """The teacher the settings ask for."""
    if settings.teacher == "rules":
        from apeagent_pipeline.distillation.teachers.rules import RulesTeacher

        return RulesTeacher()
    from apeagent_pipeline.distillation.teachers.openai_server import OpenAITeacher, OpenAITeacherConfig

    return OpenAITeacher(
        settings.teacher_base_url,
        settings.teacher_model,
        settings.teacher_api_key,
        OpenAITeacherConfig(
            max_tokens=settings.teacher_max_tokens,
            concurrency=settings.teacher_concurrency,
            requests_per_minute=settings.teacher_requests_per_minute,
            timeout_s=settings.teacher_timeout_s,
            price=settings.teacher_prices.get(settings.teacher_model),
        ),
    )
