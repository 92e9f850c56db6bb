"""What is forgotten of old runs: their logs. What they made and checked is kept for good.

Data versions, lineage and the history of every asset rest on the events of materializations and checks, however old.
Everything else that a run wrote, such as steps and output, is only read while somebody looks for a mistake.
"""

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta

import dagster as dg
import sqlalchemy as sa
from dagster._core.events import ASSET_CHECK_EVENTS, ASSET_EVENTS
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable as Events
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage

MOST_RUNS = 1_000
"""So many at a time: Dagster gives a sensor one minute."""

_KEPT = [kind.value for kind in ASSET_EVENTS | ASSET_CHECK_EVENTS]


def forget_old_logs(instance: dg.DagsterInstance, since: datetime, before: datetime) -> tuple[int, datetime]:
    """Delete the logs and the output of the runs that ended in a span of time; their asset events stay.

    Returns:
        How many runs these were, `MOST_RUNS` at most, the oldest first; and until when all are done.
    """
    storage = instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    ended = dg.RunsFilter(statuses=FINISHED_STATUSES, updated_after=since, updated_before=before)
    records = instance.get_run_records(ended, limit=MOST_RUNS, order_by="update_timestamp", ascending=True)
    for record in records:
        run_id = record.dagster_run.run_id
        other = Events.c.dagster_event_type.is_(None) | Events.c.dagster_event_type.not_in(_KEPT)
        with storage.run_connection(run_id) as connection:
            connection.execute(sa.delete(Events).where(Events.c.run_id == run_id, other))
        if isinstance(storage, SqliteEventLogStorage):  # a file for each run, which does not become smaller by itself
            with closing(sqlite3.connect(storage.path_for_shard(run_id))) as file:
                file.execute("VACUUM")
        instance.compute_log_manager.delete_logs(prefix=[run_id])
    return len(records), records[-1].update_timestamp if len(records) == MOST_RUNS else before


def log_retention(keep_days: int) -> dg.SensorDefinition:
    """Once a day: the logs of runs that ended more than ``keep_days`` ago are deleted."""

    @dg.sensor(
        name="log_retention",
        minimum_interval_seconds=86_400,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Deletes the logs of runs that ended more than {keep_days} days ago",
    )
    def forget(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        since = datetime.fromisoformat(context.cursor) if context.cursor else datetime.fromtimestamp(0, UTC)
        before = datetime.now(UTC) - timedelta(days=keep_days)
        runs, until = forget_old_logs(context.instance, since, before)
        context.update_cursor(until.isoformat())
        return dg.SkipReason(f"logs of {runs} runs deleted")

    return forget
