"""Daily assets: one partition a UTC day, and many days in one run where that is cheaper."""

from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import polars as pl

from apeagent_pipeline.chain.days import FIRST_DAY
from apeagent_pipeline.defs.io_manager import ArtifactIOManager, artifact_metadata, table_metadata
from apeagent_pipeline.defs.storage import digest

DAILY = dg.DailyPartitionsDefinition(start_date=str(FIRST_DAY), timezone="UTC")
_DATA_VERSION = "dagster/data_version"


def materialize_days(
    context: dg.AssetExecutionContext,
    artifacts: ArtifactIOManager,
    compute: Callable[[str], tuple[pl.DataFrame, dict[str, Any]]],
    inputs_of: Callable[[str], list[str]],
) -> Iterator[dg.MaterializeResult]:
    """Compute and publish every day of this run, one after the other.

    Each day is published as soon as it is computed, and recorded with a data version of its own: a failure on the
    tenth day loses none of the nine before.

    Args:
        context: Of the asset; its partition keys are the days.
        artifacts: Where the tables go.
        compute: Day -> (table, metadata to show beside the usual).
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
    try:
        for number, day in enumerate(days, 1):
            table, more = compute(day)
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
            progress(number, len(days), rows=table.height)
    except Exception:
        _record(context, spec, versions, metadata)
        raise
    if len(days) == 1:
        yield dg.MaterializeResult(metadata=metadata[days[0]], data_version=dg.DataVersion(versions[days[0]]))
        return
    yield dg.MaterializeResult(data_version=dg.DataVersion(digest(versions)))
    # Dagster stamps one version on the whole range; the events after it give each day its own.
    _record(context, spec, versions, metadata)


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
