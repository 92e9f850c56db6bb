"""The daily score of the adapter in service."""

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

import dagster as dg
import polars as pl

from apeagent_pipeline.defs.daily import materialize_days
from apeagent_pipeline.defs.declaration import declare, launched_config
from apeagent_pipeline.defs.partitions import PreviousDays
from apeagent_pipeline.defs.resources import Runtime
from apeagent_pipeline.defs.service_days import training_days
from apeagent_pipeline.evaluation.service.config import ServiceReportConfig
from apeagent_pipeline.reporting.progress import Progress
from apeagent_pipeline.reporting.report import Report
from apeagent_pipeline.student.promotion import PROMOTED, find_service

if TYPE_CHECKING:
    from apeagent_pipeline.student.generation import Student


def service_assets(runtime: Runtime) -> list[dg.AssetsDefinition]:
    """``service_report``."""

    @dg.asset(
        **declare(
            runtime.settings,
            "evaluation",
            {"pytorch", "markdown"},
            memory_gib=4,
            gpu=True,
            code="2",
            config=runtime.profile.service_report,
            daily=True,
            made="on_new_days",
        ),
        # Only an order of runs: a new adapter does not make the reports on past days out of date.
        deps=[PROMOTED],
        ins={"swap_features": dg.AssetIn(metadata=PreviousDays().metadata)},
    )
    def service_report(
        context: dg.AssetExecutionContext, swap_features: dict[str, pl.LazyFrame]
    ) -> Iterator[dg.MaterializeResult]:
        """The adapter in service on one real day: form, decisions, their gain over holding, and market drift.

        The adapter answers prompts about moments of the day, with numbers alone and with words beside the numbers. The
        daemon builds a report for every day that the nightly re-sync reads; for past days, launch a backfill. The
        option "adapter" selects another adapter of `apeagent promotions`.
        """
        config, seed = launched_config(context, ServiceReportConfig)
        service = find_service(runtime.store, config.adapter)
        trained_on = training_days(runtime, service)

        @cache
        def asked() -> tuple["Student", dict[str, pl.DataFrame]]:
            """The student and the days that it was trained on, loaded for the first day of a run."""
            from apeagent_pipeline.student.generation import Student
            from apeagent_pipeline.student.promotion import archived

            student = Student.load(runtime.student_base(), archived(runtime.store, service.adapter))
            stored = runtime.store.scan_days("swap_features", trained_on)
            return student, {day: table.collect() for day, table in stored.items()}

        def compute(day: str, progress: Progress) -> tuple[pl.DataFrame, Report]:
            from apeagent_pipeline.evaluation.service.answers import day_answers
            from apeagent_pipeline.evaluation.service.drift import drift_of
            from apeagent_pipeline.evaluation.service.report import service_report as report_on

            if day not in swap_features:
                raise dg.Failure(f"swap_features of {day} are missing: materialize swap_features for {day} first")
            student, training = asked()
            features = swap_features[day].collect()
            answers = day_answers(student, service.adapter, features, runtime.source.pool, config, progress=progress)
            drift = drift_of(features, [table for each, table in training.items() if each != day])
            return answers, report_on(day, answers, drift, config, seed=seed, trained_on=trained_on)

        yield from materialize_days(context, runtime.artifacts, compute, lambda day: [f"swap_features/{day}"])

    return [service_report]
