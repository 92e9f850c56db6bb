"""Compare the storage with Dagster's record of it, and bring the record up to the storage.

They differ after a killed or cancelled run, after files were deleted by hand, and when a storage gets a new home. The
storage is the truth: an artifact is there if its manifest and all its files are.
"""

import json
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import dagster as dg
import sqlalchemy as sa
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable as Events
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage

from apeagent_pipeline.artifacts.manifest import Manifest, digest
from apeagent_pipeline.artifacts.store import ArtifactStore
from apeagent_pipeline.chain.days import days_between
from apeagent_pipeline.defs.build import Graph
from apeagent_pipeline.defs.metadata import artifact_metadata, report_metadata
from apeagent_pipeline.defs.staleness import artifact_name, in_order
from apeagent_pipeline.reporting.report import Report

DATA_VERSION = "dagster/data_version"
_RUNNING = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


@dataclass
class Differences:
    """Where storage and record differ, and what the storage lacks.

    Attributes:
        unrecorded: Whole artifacts whose data version is not the last one that Dagster recorded.
        gone: Daily asset -> days that Dagster holds for built and that are not whole in the storage.
        incomplete: Other artifacts that were built and are not whole in the storage: ``asset`` or ``asset/day``.
        holes: Days without swaps between the first and the last stored one.
    """

    unrecorded: list[Manifest] = field(default_factory=list)
    gone: dict[str, list[str]] = field(default_factory=dict)
    incomplete: list[str] = field(default_factory=list)
    holes: list[str] = field(default_factory=list)


def differences(graph: Graph, instance: dg.DagsterInstance) -> Differences:
    """Compare every asset of a graph in the storage with its record in an instance."""
    found = Differences()
    for asset in in_order(graph.assets):
        name = asset.key.to_user_string()
        stored = graph.runtime.store.manifests(name)
        recorded = _recorded_versions(instance, asset)
        whole = {part: manifest for part, manifest in stored.items() if manifest}
        found.unrecorded += [each for part, each in whole.items() if recorded.get(part) != each.data_version]
        if gone := sorted(part for part in recorded if part and part not in whole):
            found.gone[name] = gone
        torn = {part for part in {*stored, *recorded} if part not in whole and not (part and part in recorded)}
        found.incomplete += [artifact_name(name, part) for part in sorted(torn, key=str)]
    days = graph.runtime.store.days("raw_swaps")
    if days:
        every = map(str, days_between(date.fromisoformat(days[0]), date.fromisoformat(days[-1])))
        found.holes = [day for day in every if day not in days]
    return found


def runs_in_progress(instance: dg.DagsterInstance) -> list[str]:
    """Ids of the runs that may be publishing artifacts now."""
    return [run.run_id for run in instance.get_runs(dg.RunsFilter(statuses=_RUNNING))]


def record(graph: Graph, instance: dg.DagsterInstance, manifest: Manifest) -> None:
    """Tell Dagster of a stored artifact, with its data version and what it was built from."""
    store = graph.runtime.store
    read: dict[str, dict[str, str]] = {}
    for name, version in manifest.inputs.items():
        read.setdefault(name.partition("/")[0], {})[name] = version
    versions = {asset: next(iter(each.values())) if len(each) == 1 else digest(each) for asset, each in read.items()}
    rows = "dagster/partition_row_count" if manifest.partition else "dagster/row_count"
    instance.report_runless_asset_event(
        dg.AssetMaterialization(
            manifest.asset,
            partition=manifest.partition,
            description=f"Registered by `apeagent reconcile`; built at {manifest.created_at}",
            metadata={
                **_page(store, manifest),
                **({rows: manifest.rows} if manifest.rows is not None else {}),
                **artifact_metadata(manifest, store),
            },
            tags={
                DATA_VERSION: manifest.data_version,
                f"{DATA_VERSION}_is_user_provided": "true",
                "dagster/code_version": manifest.code_version,
                **{f"dagster/input_data_version/{asset}": version for asset, version in versions.items()},
            },
        )
    )


def forget(instance: dg.DagsterInstance, asset: str, days: list[str]) -> None:
    """Remove the record of days whose files are gone: they count as missing then. Other events of their runs stay."""
    storage = instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    key = dg.AssetKey(asset)
    with storage.index_connection() as connection:
        connection.execute(
            sa.delete(Events).where(
                Events.c.asset_key == key.to_string(),
                Events.c.partition.in_(days),
                Events.c.dagster_event_type == dg.DagsterEventType.ASSET_MATERIALIZATION.value,
            )
        )
    storage.wipe_asset_cached_status(key)


def _recorded_versions(instance: dg.DagsterInstance, asset: dg.AssetsDefinition) -> dict[str | None, str]:
    """Day (None: an asset without days) -> the data version that Dagster recorded last."""
    if asset.partitions_def:
        storage, kind = instance.event_log_storage, dg.DagsterEventType.ASSET_MATERIALIZATION
        tags = storage.get_latest_tags_by_partition(asset.key, kind, [DATA_VERSION])
        days = storage.get_materialized_partitions(asset.key)
        return {day: tags.get(day, {}).get(DATA_VERSION, "") for day in days}
    event = instance.get_latest_materialization_event(asset.key)
    made = event.asset_materialization if event else None
    return {None: (made.tags or {}).get(DATA_VERSION, "")} if made else {}


def _page(store: ArtifactStore, manifest: Manifest) -> dict[str, Any]:
    """The page of a stored report as metadata; nothing for other artifacts."""
    name = f"{manifest.partition}.report" if manifest.partition else "report"
    if f"{name}.json" not in manifest.files or f"{name}.md" not in manifest.files:
        return {}
    folder = store.local(manifest)
    told = json.loads((folder / f"{name}.json").read_text())
    figures = {each: (folder / each).read_bytes() for each in manifest.files if each.endswith(".png")}
    title, _, page = (folder / f"{name}.md").read_text().removeprefix("# ").partition("\n")
    body = page.rpartition("\n## Made from\n")[0]
    shown = report_metadata(Report(title, told["metrics"], told["intervals"], told["config"], body, figures))
    # Which of the metrics are its headline is not stored.
    return {name: each for name, each in shown.items() if name not in told["metrics"]}
