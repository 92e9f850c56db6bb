"""Freshness of `raw_swaps`, judged by day: reading an old day again does not hide that yesterday is missing.

Dagster's `FreshnessPolicy` cannot say this. It judges an asset by the time of its last materialization, of whichever
partition, so any backfill and any re-reading of an old day would turn it green. Dagster's partition-aware freshness
checks could, and are superseded by that policy; so this is a check of our own.
"""

from datetime import UTC, date, datetime, time, timedelta

import dagster as dg

from apeagent_pipeline.chain.days import FIRST_DAY
from apeagent_pipeline.defs.automation.nightly import night_of
from apeagent_pipeline.defs.markets import RAW_SWAPS
from apeagent_pipeline.defs.resources import Runtime

GRACE = timedelta(hours=4)
"""How long after the nightly re-sync should have begun yesterday may be missing."""


def swaps_freshness(runtime: Runtime) -> tuple[list[dg.AssetChecksDefinition], list[dg.SensorDefinition]]:
    """A check that warns four hours after the nightly re-sync should have begun, and the sensor that runs it.

    Only for swaps read from a node: the embedded chain and an archive are only read on request.
    """
    if not runtime.settings.rpc_urls:
        return [], []
    nightly_at = runtime.settings.nightly_at

    @dg.asset_check(
        asset=RAW_SWAPS,
        name="fresh",
        description=f"Yesterday's swaps are stored {GRACE.seconds // 3600} hours after the nightly re-sync should have "
        "begun. Warns if they are missing",
        blocking=False,
    )
    def fresh() -> dg.AssetCheckResult:
        due = day_due(datetime.now(UTC), nightly_at)
        stored = runtime.store.days(RAW_SWAPS)
        passed = str(due) in stored or due < FIRST_DAY
        told = (
            f"the swaps of {due} are missing, {GRACE.seconds // 3600} hours after the re-sync of "
            f"{nightly_at:%H:%M} UTC should have begun. Look at the runs of `nightly_resync`, or materialize raw_swaps "
            f"for {due}"
        )
        return dg.AssetCheckResult(
            passed=passed,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"{due} is stored" if passed else told,
            metadata={"newest stored day": stored[-1] if stored else "none"},
        )

    @dg.sensor(
        name="swaps_freshness",
        asset_selection=dg.AssetSelection.checks(fresh),
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Runs the check {fresh.check_key.name} of {RAW_SWAPS} once a day, "
        f"{GRACE.seconds // 3600} hours after the nightly re-sync should have begun",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        due = str(day_due(datetime.now(UTC), nightly_at))
        if context.cursor == due:
            return dg.SkipReason(f"{due} was checked already")
        context.update_cursor(due)
        return dg.RunRequest(run_key=f"fresh-{due}", asset_check_keys=[fresh.check_key])

    return [fresh], [sensor]


def day_due(now: datetime, nightly_at: time) -> date:
    """The newest day that should be stored by now."""
    deadline = (datetime.combine(FIRST_DAY, nightly_at) + GRACE).time()
    begun = night_of(now, deadline)  # the date of the newest deadline
    if deadline < nightly_at:
        begun -= timedelta(days=1)  # the deadline of a night lies beyond midnight
    return begun - timedelta(days=1)
