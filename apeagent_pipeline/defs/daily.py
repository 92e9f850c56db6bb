"""Computing and publishing the days of a daily asset, many of them in one run."""

from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import polars as pl

from apeagent_pipeline.artifacts.manifest import digest
from apeagent_pipeline.defs.io_manager import ArtifactIOManager, step_of
from apeagent_pipeline.defs.metadata import artifact_metadata, table_metadata
from apeagent_pipeline.reporting.progress import Progress

_DATA_VERSION = "dagster/data_version"
_FAILURES_IN_A_ROW = 3


def materialize_days(
    context: dg.AssetExecutionContext,
    artifacts: ArtifactIOManager,
    compute: Callable[[str, Progress], tuple[pl.DataFrame, dict[str, Any]]],
    inputs_of: Callable[[str], list[str]],
    overtaken: Callable[[], list[str]] = list,
) -> Iterator[dg.MaterializeResult]:
    """Compute and publish every day of this run, one after the other.

    Each day is published as soon as it is computed, and recorded with its own data version. When a day fails, the run
    continues with the next one and fails at the end, naming the failed days. After three failures in a row the
    remaining days are skipped.

    Args:
        context: Of the asset; its partition keys are the days.
        artifacts: Where the tables go.
        compute: Day and progress within it -> (table, metadata to show beside the usual).
        inputs_of: Day -> the loaded inputs it depends on, as ``asset/day``.
        overtaken: Called after all days are published; returns the days, of this run or not, to compute (again) now.
    """
    spec = context.assets_def.get_asset_spec(context.asset_key)
    progress = artifacts.watcher.started(context)
    asked = list(context.partition_keys)
    versions: dict[str, str] = {}
    metadata: dict[str, dict[str, Any]] = {}

    def make(days: list[str]) -> None:
        made_from = artifacts.made_from(spec, context.op_execution_context.op_config or {}, step_of(context))
        external = {name: version for name, version in made_from["inputs"].items() if "/" not in name}
        failures: dict[str, Exception] = {}
        in_a_row = done = 0
        for number, day in enumerate(days):
            if in_a_row == _FAILURES_IN_A_ROW:
                break
            try:
                table, more = compute(day, _within(progress, number, len(days)))
            except Exception as error:
                failures[day] = error
                in_a_row += 1
                context.log.error(f"{day}: {error}")
                continue
            in_a_row = 0
            done += 1
            inputs = {name: made_from["inputs"][name] for name in inputs_of(day) if name in made_from["inputs"]}
            manifest = artifacts.store.publish_table(
                table, **{**made_from, "partition": day, "inputs": {**external, **inputs}}
            )
            versions[day] = manifest.data_version
            metadata[day] = table_metadata(table, partition=True) | artifact_metadata(manifest, artifacts.store) | more
            artifacts.watcher.stored(context.asset_key.to_user_string(), day, table.height)
        if failures:
            raise _failure(failures, done=done, of=len(days))

    try:
        make(asked)
        while days := overtaken():
            make(days)
    except Exception:
        _record(context, spec, versions, metadata)
        raise
    of_asked = {day: versions[day] for day in asked}
    if len(asked) == 1:
        yield dg.MaterializeResult(metadata=metadata[asked[0]], data_version=dg.DataVersion(versions.pop(asked[0])))
    else:
        yield dg.MaterializeResult(data_version=dg.DataVersion(digest(of_asked)))
    # Dagster records one version for the whole range; these later events give each day its own.
    _record(context, spec, versions, metadata)


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
