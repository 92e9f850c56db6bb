"""Runs whose process is gone.

A run that is killed (power, memory, ``kill -9``) cannot say so: Dagster's default launcher leaves it STARTED for good,
and its place in a concurrency pool taken, so that the next run of the same asset would wait for ever.
"""

import platform
from datetime import UTC, datetime

import dagster as dg
import psutil
from dagster import DagsterEventType, DagsterRunStatus
from dagster._core.storage.runs import SqliteRunStorage

from apeagent_pipeline.defs.conditions import HOST_TAG
from apeagent_pipeline.defs.declaration import RAY_RESOURCES

_ALIVE = [DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]


def tag_host(instance: dg.DagsterInstance, run_id: str) -> None:
    """Record that this machine executes a run."""
    instance.add_run_tags(run_id, {HOST_TAG: platform.node()})


def fail_orphaned_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark this machine's runs whose process has died as failed, and free their concurrency slots.

    Returns:
        Their run ids.
    """
    orphans = []
    for record in instance.get_run_records(dg.RunsFilter(statuses=_ALIVE)):
        run = record.dagster_run
        if RAY_RESOURCES in run.tags:
            continue  # a job of a Ray cluster: the run monitoring asks the cluster
        # Without a tag, it is of this machine where the history is a file of this machine.
        here = platform.node() if isinstance(instance.run_storage, SqliteRunStorage) else None
        if run.tags.get(HOST_TAG, here) != platform.node():
            continue
        pid = _pid(instance, run.run_id)
        begun = record.start_time or record.create_timestamp.timestamp()
        if pid is None or _is_alive(pid, begun):
            continue
        now = instance.get_run_by_id(run.run_id)
        if now is None or now.status not in _ALIVE:
            continue  # it ended by itself while we looked
        at = datetime.fromtimestamp(begun, UTC)
        instance.report_run_failed(run, f"The process {pid} of this run, begun {at:%Y-%m-%d %H:%M} UTC, is gone.")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        orphans.append(run.run_id)
    return orphans


def _pid(instance: dg.DagsterInstance, run_id: str) -> int | None:
    for entry in instance.all_logs(run_id, of_type=DagsterEventType.ENGINE_EVENT):
        event = entry.dagster_event
        pid = event.engine_event_data.metadata.get("pid") if event else None
        if isinstance(pid, dg.TextMetadataValue) and pid.text:
            return int(pid.text)
    return None


def _is_alive(pid: int, begun: float) -> bool:
    """Whether the process that started a run is alive. A younger process with its number does not count."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= begun
    except psutil.NoSuchProcess:
        return False


def orphan_sweep() -> dg.SensorDefinition:
    """A sensor that marks runs whose process has died as failed, every half minute."""

    @dg.sensor(
        name="orphan_sweep",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Marks runs as failed if their process has died",
    )
    def sweep(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        failed = fail_orphaned_runs(context.instance)
        return dg.SkipReason(f"marked as failed: {', '.join(failed)}" if failed else "no run without a process")

    return sweep
