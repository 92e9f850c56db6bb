"""Freshness of `raw_swaps`, judged by partition: backfilling an old day does not hide that yesterday is missing.

Dagster's newer `FreshnessPolicy` judges the whole asset by its last materialization, so any backfill would turn it
green. That is why the partition-aware checks stay, although Dagster calls them superseded.
"""

from datetime import datetime, timedelta

import dagster as dg

from apeagent_pipeline.chain.days import FIRST_DAY
from apeagent_pipeline.settings import Settings

_GRACE = timedelta(hours=4)


def swaps_freshness(settings: Settings) -> tuple[list[dg.AssetChecksDefinition], list[dg.SensorDefinition]]:
    """A check that warns four hours after the nightly re-sync should have started, and the sensor that runs it.

    Only for swaps read from a node: the embedded chain and an archive are only read on request.
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
