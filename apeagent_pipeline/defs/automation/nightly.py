"""The nightly re-sync: swaps and features of yesterday, of some days before, and of nights that were missed."""

from collections.abc import Iterator, Sequence
from datetime import date, timedelta

import dagster as dg

from apeagent_pipeline.chain.days import FIRST_DAY
from apeagent_pipeline.chain.source import unconfirmed_days
from apeagent_pipeline.defs.partitions import RANGE_END, RANGE_START
from apeagent_pipeline.defs.resources import Runtime

LONGEST_CATCH_UP = 31
"""The most days that one night reads."""


def nightly_resync(runtime: Runtime, job: str) -> dg.ScheduleDefinition:
    """Every night: read yesterday, read some days before it again, and read the days of missed nights.

    A day that is read again with equal content keeps its data version, so nothing downstream is rebuilt. Days are read
    again because a node may have answered wrongly. After downtime, Dagster only evaluates the newest tick of such a
    schedule, so that tick requests all days since the newest stored one.
    """
    settings = runtime.settings

    @dg.schedule(
        name="nightly_resync",
        job_name=job,
        cron_schedule=f"{settings.nightly_at.minute} {settings.nightly_at.hour} * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING if settings.rpc_urls else dg.DefaultScheduleStatus.STOPPED,
        description=f"Swaps and features of yesterday and, once more, of {settings.nightly_recheck_days} days before",
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        if settings.swaps_archive:
            yield dg.SkipReason("swaps come from an archive, which has no new days")
            return
        night = context.scheduled_execution_time.date()
        stored = runtime.store.days("raw_swaps")
        oldest = str(night - timedelta(days=LONGEST_CATCH_UP))
        unconfirmed = list(unconfirmed_days(runtime.source, [day for day in stored if day >= oldest]))
        first, last = nightly_days(night, settings.nightly_recheck_days, stored, unconfirmed)
        # The run key is the night, so a restarted daemon requests no night twice.
        yield dg.RunRequest(run_key=f"nightly-{night}", tags={RANGE_START: str(first), RANGE_END: str(last)})

    return schedule


def nightly_days(
    night: date, recheck: int, stored: Sequence[str], unconfirmed: Sequence[str] = ()
) -> tuple[date, date]:
    """The first and last day that a night reads.

    Args:
        night: The date of the tick; the day before it has just ended.
        recheck: How many days before that one are read again.
        stored: The stored days. Days missing between the newest of them and yesterday are read too, but at most
            `LONGEST_CATCH_UP` of them: use a backfill for longer gaps.
        unconfirmed: Stored days whose completeness could not be proven; they are read again.
    """
    last = night - timedelta(days=1)
    first = last - timedelta(days=recheck)
    newest = max((day for day in stored if day <= str(last)), default=None)
    if newest is not None:
        missed = date.fromisoformat(newest) + timedelta(days=1)
        first = min(first, max(missed, last - timedelta(days=LONGEST_CATCH_UP - 1)))
    first = min([first, *map(date.fromisoformat, unconfirmed)])
    return max(first, FIRST_DAY), last
