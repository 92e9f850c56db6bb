"""Whether yesterday's swaps are there: judged by their partition, so that backfilling an old day does not hide it."""

from datetime import datetime, timedelta

import dagster as dg

from apeagent_pipeline.chain.days import FIRST_DAY
from apeagent_pipeline.settings import Settings

_GRACE = timedelta(hours=4)


def swaps_freshness(settings: Settings) -> tuple[list[dg.AssetChecksDefinition], list[dg.SensorDefinition]]:
    """A warning, and the sensor that gives it, four hours after the nightly re-sync should have begun.

    Only for chains that are read from a node: the embedded chain and an archive are read when somebody wants to.
    """
    if not settings.rpc_urls:
        return [], []
    begun = datetime.combine(FIRST_DAY, settings.nightly_at) + _GRACE
    checks = dg.build_time_partition_freshness_checks(
        assets=[dg.AssetKey("raw_swaps")],
        deadline_cron=f"{begun.minute} {begun.hour} * * *",
        timezone="UTC",
        severity=dg.AssetCheckSeverity.WARN,
    )
    sensor = dg.build_sensor_for_freshness_checks(
        freshness_checks=checks, name="swaps_freshness", default_status=dg.DefaultSensorStatus.RUNNING
    )
    return list(checks), [sensor]
