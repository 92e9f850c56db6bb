"""The stored days around an adapter in service: those that it was trained on, and the reports on those since."""

import json
from collections.abc import Collection

import polars as pl

from apeagent_pipeline.artifacts.store import ArtifactStore
from apeagent_pipeline.defs.resources import Runtime
from apeagent_pipeline.evaluation.service.drift import drift_from
from apeagent_pipeline.evaluation.service.verdict import DayReport
from apeagent_pipeline.student.promotion import Service

SERVICE_REPORT = "service_report"


def training_days(runtime: Runtime, service: Service) -> list[str]:
    """The stored days that an adapter was trained on.

    They may be unknown for an adapter from before manifests had days. Then these are the last days before it went into
    service, as many as training windows span.
    """
    stored = runtime.store.days("swap_features")
    known = [day for day in service.trained_on if day in stored]
    return known or [day for day in stored if day < service.at[:10]][-runtime.profile.training_windows.days :]


def service_reports(store: ArtifactStore, adapter: str, most: int) -> list[DayReport]:
    """The newest stored reports on an adapter, in the order of their days.

    Args:
        store: Holds the reports.
        adapter: Data version of the adapter.
        most: How many reports to read at most.
    """
    found: list[DayReport] = []
    for day, manifest in sorted(store.manifests(SERVICE_REPORT).items(), key=lambda each: str(each[0]), reverse=True):
        if len(found) == most:
            break
        if day is None or manifest is None:
            continue
        answers = store.table(manifest).collect()
        if answers.height and answers["adapter"][0] == adapter:
            report = json.loads((store.local(manifest) / f"{day}.report.json").read_text())
            found.append(DayReport(day, answers, drift_from(report["metrics"])))
    return found[::-1]


def stored_answers(runtime: Runtime, adapter: str, days: Collection[str]) -> dict[str, pl.DataFrame]:
    """The answers that an adapter would give now about some days, as far as reports hold them: day -> rows.

    Args:
        runtime: Store and present options.
        adapter: Data version of the adapter.
        days: Which days.
    """
    store = runtime.store
    options = runtime.options(SERVICE_REPORT)
    features = store.manifests("swap_features", days)
    found = {}
    for day, manifest in store.manifests(SERVICE_REPORT, days).items():
        read = features.get(day)
        if day is None or manifest is None or read is None:
            continue
        if manifest.config != options or manifest.inputs.get(f"swap_features/{day}") != read.data_version:
            continue
        answers = store.table(manifest).collect()
        if answers.height and answers["adapter"][0] == adapter:
            found[day] = answers
    return found
