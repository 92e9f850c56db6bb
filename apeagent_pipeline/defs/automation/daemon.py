"""What the daemon does without being asked: schedules, sensors and freshness checks."""

from collections.abc import Sequence
from dataclasses import dataclass

import dagster as dg

from apeagent_pipeline.defs.automation.alerts import failure_alert, warning_alert
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


def automation(
    runtime: Runtime, sync_job: str, synced: Sequence[dg.AssetKey], warning: Sequence[dg.AssetChecksDefinition]
) -> Automation:
    """Everything that the settings ask the daemon to do.

    Args:
        runtime: Settings and store.
        sync_job: Name of the job that reads days.
        synced: The assets of that job.
        warning: The checks that warn and hold nothing back.
    """
    settings = runtime.settings
    freshness_checks, freshness_sensors = swaps_freshness(runtime)
    told = [key for check in [*warning, *freshness_checks] for key in check.check_keys]
    webhook = settings.alert_webhook
    sensors = [
        automation_sensor(),
        orphan_sweep(),
        *([log_retention(settings.keep_logs_days)] if settings.keep_logs_days else []),
        *freshness_sensors,
        *([failure_alert(webhook, settings.ui_url), warning_alert(webhook, settings.ui_url, told)] if webhook else []),
    ]
    return Automation([nightly_resync(runtime, sync_job, synced)], sensors, freshness_checks)


def automation_sensor() -> dg.AutomationConditionSensorDefinition:
    """Evaluates the automation conditions of all assets every half minute."""
    return dg.AutomationConditionSensorDefinition(
        "rematerialization",
        target=dg.AssetSelection.all(),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=30,
        description="Rematerializes assets downstream of changed data",
    )
