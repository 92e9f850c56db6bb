"""Computing and publishing the days of a daily asset, many of them in one run."""

from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import polars as pl

from apeagent_pipeline.artifacts.manifest import digest
from apeagent_pipeline.defs.io_manager import ArtifactIOManager, step_of
from apeagent_pipeline.defs.metadata import artifact_metadata, report_metadata, table_metadata
from apeagent_pipeline.reporting.progress import Progress
from apeagent_pipeline.reporting.report import Report

_DATA_VERSION = "dagster/data_version"
_FAILURES_IN_A_ROW = 3


def materialize_days(
    context: dg.AssetExecutionContext,
    artifacts: ArtifactIOManager,
    compute: Callable[[str, Progress], tuple[pl.DataFrame, dict[str, Any] | Report]],
    inputs_of: Callable[[str], list[str]],
    overtaken: Callable[[], list[str]] = list,
) -> Iterator[dg.MaterializeResult]:
    """Compute and publish every day of this run, one after the other.

    Each day is published as soon as it is computed, and recorded with its own data version. When a day fails, the run
    continues with the next one and fails at the end, naming the failed days. After three failures in a row the
    remaining days are skipped. A cancelled run records the days that it has published.

    Args:
        context: Of the asset; its partition keys are the days.
        artifacts: Where the tables go.
        compute: Day and progress within it -> (table, and the metadata to show beside the usual, or a report that is
            stored beside the table and shown).
        inputs_of: Day -> the loaded inputs it depends on, as ``asset/day``.
        overtaken: Called after all days are published; returns the days, of this run or not, to compute (again) now.
    """
    run = _Run(context, artifacts, compute, inputs_of)
    asked = list(context.partition_keys)
    try:
        run.publish(asked)
        while days := overtaken():
            run.publish(days)
    except BaseException as error:
        run.record()
        if not isinstance(error, Exception):  # cancelled, or interrupted at the keyboard
            context.log.warning(run.when_interrupted())
        raise
    of_asked = {day: run.versions[day] for day in asked}
    if len(asked) == 1:
        day = asked[0]
        yield dg.MaterializeResult(metadata=run.metadata[day], data_version=dg.DataVersion(run.versions.pop(day)))
    else:
        yield dg.MaterializeResult(data_version=dg.DataVersion(digest(of_asked)))
    # Dagster records one version for the whole range; these later events give each day its own.
    run.record()


class _Run:
    """The days that one run publishes, with what Dagster shall record of each."""

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        artifacts: ArtifactIOManager,
        compute: Callable[[str, Progress], tuple[pl.DataFrame, dict[str, Any] | Report]],
        inputs_of: Callable[[str], list[str]],
    ) -> None:
        self._context, self._artifacts, self._compute, self._inputs_of = context, artifacts, compute, inputs_of
        self._spec = context.assets_def.get_asset_spec(context.asset_key)
        self._progress = artifacts.watcher.started(context)
        self.versions: dict[str, str] = {}
        self.metadata: dict[str, dict[str, Any]] = {}

    def publish(self, days: list[str]) -> None:
        """Compute and publish each day.

        Raises:
            Exception: the cause, if the only day failed.
            dagster.Failure: if some of several days failed; names them.
        """
        config = self._context.op_execution_context.op_config or {}
        made_from = self._artifacts.made_from(self._spec, config, step_of(self._context))
        failures: dict[str, Exception] = {}
        in_a_row = done = 0
        for number, day in enumerate(days):
            if in_a_row == _FAILURES_IN_A_ROW:
                break
            if refusal := self._artifacts.refusal(step_of(self._context), self._inputs_of(day)):
                failures[day] = refusal
                continue
            try:
                table, more = self._compute(day, _within(self._progress, number, len(days)))
            except Exception as error:
                failures[day] = error
                in_a_row += 1
                self._context.log.error(f"{day}: {error}")
                continue
            in_a_row = 0
            done += 1
            self._store(day, table, more, made_from)
        if failures:
            raise _failure(failures, done=done, of=len(days))

    def _store(self, day: str, table: pl.DataFrame, more: dict[str, Any] | Report, made_from: dict[str, Any]) -> None:
        store, versions = self._artifacts.store, made_from["inputs"]
        inputs = {name: version for name, version in versions.items() if "/" not in name}  # of external assets
        inputs |= {name: versions[name] for name in self._inputs_of(day) if name in versions}
        beside: dict[str, bytes] = {}
        if isinstance(more, Report):
            written = more.files({**{name: made_from[name] for name in ("asset", "code_version")}, "inputs": inputs})
            # The figures of a day carry the day in their names already, because its page refers to them.
            beside = {name if name in more.figures else f"{day}.{name}": content for name, content in written.items()}
        manifest = store.publish_table(table, beside, **{**made_from, "partition": day, "inputs": inputs})
        usual = table_metadata(table, partition=True) | artifact_metadata(manifest, store)
        self.versions[day] = manifest.data_version
        # What people look for comes first, and what only programs read at the end.
        self.metadata[day] = (report_metadata(more) if isinstance(more, Report) else more) | usual
        self._artifacts.watcher.stored(self._context.asset_key.to_user_string(), day, table.height)

    def when_interrupted(self) -> str:
        """What a run that was cancelled leaves, and what builds the rest."""
        asked = list(self._context.partition_keys)
        left = [day for day in asked if day not in self.versions]
        name = self._context.asset_key.to_user_string()
        rest = f"; to build the rest, launch {name} for {left[0]} to {left[-1]} again" if left else ""
        return f"interrupted: {len(asked) - len(left)} of {len(asked)} days are stored and recorded{rest}"

    def record(self) -> None:
        """Tell Dagster the data version of each published day that it does not know yet."""
        _record(self._context, self._spec, self.versions, self.metadata)


def _within(progress: Progress, number: int, of: int) -> Progress:
    """The progress of one day as a part of the progress of all days."""

    def within(done: int, total: int, **metrics: float) -> None:
        progress(number * total + done, of * total, **metrics)

    return within


def _failure(failures: dict[str, Exception], done: int, of: int) -> Exception:
    if of == 1:
        return next(iter(failures.values()))
    causes = "".join(f"\n  {day}: {error}" for day, error in failures.items())
    not_tried = of - done - len(failures)
    rest = f", and {not_tried} after them were not tried" if not_tried else ""
    return dg.Failure(f"{len(failures)} of {of} days failed{rest}:{causes}")


def _record(
    context: dg.AssetExecutionContext, spec: dg.AssetSpec, versions: dict[str, str], metadata: dict[str, Any]
) -> None:
    if not versions:
        return
    stamps = context.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=spec.key, asset_partitions=list(versions)), limit=len(versions)
    )
    tags = {
        event.partition_key: event.asset_materialization.tags
        for event in stamps.records
        if event.asset_materialization and event.run_id == context.run_id
    }
    for day, data_version in versions.items():
        stamp = tags.get(day) or {"dagster/code_version": spec.code_version or ""}
        context.log_event(
            dg.AssetMaterialization(
                asset_key=spec.key,
                partition=day,
                metadata=metadata[day],
                tags={**stamp, _DATA_VERSION: data_version, f"{_DATA_VERSION}_is_user_provided": "true"},
            )
        )
