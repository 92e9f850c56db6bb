"""Daily assets: one partition a UTC day, and many days in one run where that is cheaper."""

from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import polars as pl

from apeagent_pipeline.chain.days import FIRST_DAY
from apeagent_pipeline.defs.io_manager import ArtifactIOManager, artifact_metadata, table_metadata
from apeagent_pipeline.defs.storage import digest
from apeagent_pipeline.reporting.progress import Progress

DAILY = dg.DailyPartitionsDefinition(start_date=str(FIRST_DAY), timezone="UTC")
RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
"""Tags of a run that makes many days."""
_DATA_VERSION = "dagster/data_version"
_FAILURES_IN_A_ROW = 3


def materialize_days(
    context: dg.AssetExecutionContext,
    artifacts: ArtifactIOManager,
    compute: Callable[[str, Progress], tuple[pl.DataFrame, dict[str, Any]]],
    inputs_of: Callable[[str], list[str]],
) -> Iterator[dg.MaterializeResult]:
    """Compute and publish every day of this run, one after the other.

    Each day is published as soon as it is computed, and recorded with a data version of its own. A day that fails
    keeps none of the others from being made; the run fails in the end and names it. Only after three failures in a row
    are the days that are left not tried.

    Args:
        context: Of the asset; its partition keys are the days.
        artifacts: Where the tables go.
        compute: Day and progress within it -> (table, metadata to show beside the usual).
        inputs_of: Day -> the loaded inputs it depends on, as ``asset/day``.
    """
    step = (context.run_id, context.op_execution_context.get_step_execution_context().step.key)
    spec = context.assets_def.get_asset_spec(context.asset_key)
    made_from = artifacts.made_from(spec, context.op_execution_context.op_config or {}, step)
    progress = artifacts.watcher.started(context)
    days = list(context.partition_keys)
    versions: dict[str, str] = {}
    metadata: dict[str, dict[str, Any]] = {}
    external = {name: version for name, version in made_from["inputs"].items() if "/" not in name}
    failures: dict[str, Exception] = {}
    in_a_row = 0
    try:
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
            inputs = {name: made_from["inputs"][name] for name in inputs_of(day) if name in made_from["inputs"]}
            manifest = artifacts.store.publish_table(
                table, **{**made_from, "partition": day, "inputs": {**external, **inputs}}
            )
            versions[day] = manifest.data_version
            metadata[day] = {
                **table_metadata(table, partition=True),
                **artifact_metadata(manifest, artifacts.store),
                **more,
            }
            artifacts.watcher.stored(context.asset_key.to_user_string(), day, table.height)
        if failures:
            raise _failure(failures, done=len(versions), of=len(days))
    except Exception:
        _record(context, spec, versions, metadata)
        raise
    if len(days) == 1:
        yield dg.MaterializeResult(metadata=metadata[days[0]], data_version=dg.DataVersion(versions[days[0]]))
        return
    yield dg.MaterializeResult(data_version=dg.DataVersion(digest(versions)))
    # Dagster stamps one version on the whole range; the events after it give each day its own.
    _record(context, spec, versions, metadata)


def _within(progress: Progress, number: int, of: int) -> Progress:
    """The progress of one day as a share of that of all days."""

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
