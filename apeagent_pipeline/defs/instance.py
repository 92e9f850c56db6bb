"""The Dagster instance below ``APEAGENT_HOME``: run history, event log, schedules."""

import os
from pathlib import Path

import dagster as dg

from apeagent_pipeline.settings import Settings, SettingsError

_DAGSTER_YAML = """\
# Written once by apeagent; edit it as you like (docs.dagster.io, "dagster.yaml").
telemetry:
  enabled: false
nux:
  enabled: false
concurrency:
  runs:
    max_concurrent_runs: 4        # SQLite stands this; use Postgres for more
  pools:
    default_limit: 1              # rpc, teacher and training: one at a time each
run_monitoring:
  enabled: true
  start_timeout_seconds: 300
  max_runtime_seconds: 86400
run_retries:
  enabled: true
  max_retries: 1                  # of a run whose process died; a failed asset is the business of its condition
  retry_on_asset_or_op_failure: false
retention:
  schedule:
    purge_after_days: 90
  sensor:
    purge_after_days: {skipped: 7, failure: 30, success: 90}
"""


def prepare_home(settings: Settings) -> Path:
    """Make ``APEAGENT_HOME`` and the instance's folder in it, and prove that they can be written.

    Returns:
        The instance's folder (what Dagster calls DAGSTER_HOME).

    Raises:
        SettingsError: The folder cannot be written.
    """
    home = settings.home.absolute()
    dagster_home = home / "dagster"
    try:
        dagster_home.mkdir(parents=True, exist_ok=True)
        (home / ".gitignore").write_text("*\n")
        if not (dagster_home / "dagster.yaml").exists():
            (dagster_home / "dagster.yaml").write_text(_DAGSTER_YAML)
    except OSError as error:
        raise SettingsError(
            f"APEAGENT_HOME={home} cannot be written ({error.strerror}): set APEAGENT_HOME to a folder you own"
        ) from error
    return dagster_home


def open_instance(settings: Settings) -> dg.DagsterInstance:
    """The persistent instance that the UI and the command line share."""
    dagster_home = prepare_home(settings)
    os.environ["DAGSTER_HOME"] = str(dagster_home)
    return dg.DagsterInstance.from_config(str(dagster_home))
