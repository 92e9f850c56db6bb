"""The nightly re-sync: swaps and features of yesterday, of some days before, and of days that are missing."""

from collections.abc import Iterator, Sequence
from datetime import date, datetime, time, timedelta

import dagster as dg

from apeagent_pipeline.chain.days import FIRST_DAY, days_between
from apeagent_pipeline.chain.source import unconfirmed_days
from apeagent_pipeline.defs.partitions import RANGE_END, RANGE_START
from apeagent_pipeline.defs.resources import Runtime

LONGEST_CATCH_UP = 31
"""How many days back one night looks for missing and unconfirmed days."""
TRIED_AGAIN = (timedelta(hours=3), timedelta(hours=6))
"""How long after a night that failed it is tried again. What still fails then waits for the next night."""
NIGHT = "apeagent/night"
"""Tag of the run that reads yesterday: the date of its night."""


def nightly_resync(runtime: Runtime, job: str, assets: Sequence[dg.AssetKey]) -> dg.ScheduleDefinition:
    """Every night: read yesterday, read some days before it again, and read days that are missing.

    A day that is read again with equal content keeps its data version, so nothing downstream is rebuilt. Days are read
    again because a node may have answered wrongly. After downtime, Dagster only evaluates the newest tick of such a
    schedule, so that tick requests all missing days of the last month. A night that failed is tried again in the
    morning, by the later ticks.

    Args:
        runtime: Settings and store.
        job: Name of the job that reads days.
        assets: All assets of that job. The run names them, so that the daemon's conditions know what it has built of
            yesterday and do not build it once more.
    """
    settings = runtime.settings
    begins = [
        (datetime.combine(FIRST_DAY, settings.nightly_at) + after).time() for after in (timedelta(0), *TRIED_AGAIN)
    ]
    again = " and ".join(f"{each:%H:%M}" for each in begins[1:])

    @dg.schedule(
        name="nightly_resync",
        job_name=job,
        cron_schedule=[f"{each.minute} {each.hour} * * *" for each in begins],
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING if settings.rpc_urls else dg.DefaultScheduleStatus.STOPPED,
        description=f"At {begins[0]:%H:%M} UTC reads yesterday, {settings.nightly_recheck_days} days before it again, "
        f"and missing days of the last month; retries at {again} if the run for yesterday failed",
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        if settings.swaps_archive:
            yield dg.SkipReason("swaps come from an archive, which has no new days")
            return
        night = night_of(context.scheduled_execution_time, settings.nightly_at)
        tries = context.instance.get_runs(dg.RunsFilter(tags={NIGHT: str(night)}))
        if tries and tries[0].status is not dg.DagsterRunStatus.FAILURE:
            yield dg.SkipReason(f"the run of this night is {tries[0].status.value.lower()}")
            return
        stored = runtime.store.days("raw_swaps")
        oldest = str(night - timedelta(days=LONGEST_CATCH_UP))
        unconfirmed = list(unconfirmed_days(runtime.source, [day for day in stored if day >= oldest]))
        *earlier, newest = nightly_ranges(night, settings.nightly_recheck_days, stored, unconfirmed)
        # The run key is the night and the try, so a restarted daemon requests nothing twice.
        key = f"nightly-{night}-{len(tries) + 1}" if tries else f"nightly-{night}"
        yield dg.RunRequest(run_key=key, asset_selection=assets, tags={**_range(*newest), NIGHT: str(night)})
        # Days further back fail by themselves, and are not tried again before the next night.
        for first, last in [] if tries else earlier:
            key = f"nightly-{night}-of-{first}"
            yield dg.RunRequest(run_key=key, asset_selection=assets, tags=_range(first, last))

    return schedule


def night_of(tick: datetime, begins: time) -> date:
    """The date on which the night of a tick began: a later try may lie beyond midnight."""
    return tick.date() if tick.time() >= begins else tick.date() - timedelta(days=1)


def nightly_ranges(
    night: date, recheck: int, stored: Sequence[str], unconfirmed: Sequence[str] = ()
) -> list[tuple[date, date]]:
    """The first and the last day of each range of days that a night reads, in order; the last one ends with yesterday.

    Args:
        night: The date on which the night began; the day before it has just ended.
        recheck: How many days before that one are read again.
        stored: The stored days. Missing days after the first of them are read too, `LONGEST_CATCH_UP` days back at
            most: use a backfill for longer gaps.
        unconfirmed: Stored days whose completeness could not be proven; they are read again.
    """
    last = night - timedelta(days=1)
    wanted = {last - timedelta(days=back) for back in range(recheck + 1)}
    if stored:
        first = max(date.fromisoformat(min(stored)), last - timedelta(days=LONGEST_CATCH_UP - 1))
        wanted |= {day for day in days_between(first, last) if str(day) not in stored}
    wanted |= set(map(date.fromisoformat, unconfirmed))
    ranges: list[tuple[date, date]] = []
    for day in sorted(max(day, FIRST_DAY) for day in wanted):
        if ranges and day - ranges[-1][1] <= timedelta(days=1):
            ranges[-1] = (ranges[-1][0], day)
        else:
            ranges.append((day, day))
    return ranges


def _range(first: date, last: date) -> dict[str, str]:
    return {RANGE_START: str(first), RANGE_END: str(last)}
