"""What the daemon does without being asked: schedules, sensors and freshness checks."""

from dataclasses import dataclass

import dagster as dg

from apeagent_pipeline.defs.automation.alerts import failure_alert
from apeagent_pipeline.defs.automation.freshness import swaps_freshness
from apeagent_pipeline.defs.automation.nightly import nightly_resync
from apeagent_pipeline.defs.automation.orphans import orphan_sweep
from apeagent_pipeline.defs.automation.retention import log_retention
from apeagent_pipeline.defs.resources import Runtime


@dataclass(frozen=True)
class Automation:
    """What `build.build_graph` adds to the assets."""

    schedules: list[dg.ScheduleDefinition]
    sensors: list[dg.SensorDefinition]
    checks: list[dg.AssetChecksDefinition]


def automation(runtime: Runtime, sync_job: str) -> Automation:
    """Everything that the settings ask the daemon to do.

    Args:
        runtime: Settings and store.
        sync_job: Name of the job that reads days.
    """
    settings = runtime.settings
    freshness_checks, freshness_sensors = swaps_freshness(settings)
    sensors = [
        automation_sensor(),
        orphan_sweep(),
        *([log_retention(settings.keep_logs_days)] if settings.keep_logs_days else []),
        *freshness_sensors,
        *([failure_alert(settings.alert_webhook)] if settings.alert_webhook else []),
    ]
    return Automation([nightly_resync(runtime, sync_job)], sensors, freshness_checks)


def automation_sensor() -> dg.AutomationConditionSensorDefinition:
    """Evaluates the automation conditions of all assets every half minute."""
    return dg.AutomationConditionSensorDefinition(
        "rematerialization",
        target=dg.AssetSelection.all(),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=30,
        description="Rematerializes assets downstream of changed data",
    )
