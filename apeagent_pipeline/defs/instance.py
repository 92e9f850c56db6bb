"""The Dagster instance below ``APEAGENT_HOME``: run history, event log, schedules."""

import os
from importlib.util import find_spec
from pathlib import Path

import dagster as dg

from apeagent_pipeline.settings import Settings, SettingsError, mask_url

_DAGSTER_YAML = """\
# Written by apeagent as the settings say, until you edit it (docs.dagster.io, "dagster.yaml").
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
  poll_interval_seconds: 20       # how soon a lost machine is noticed
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
_RUN_LAUNCHER = {
    "local": "",
    "ray": """\
run_launcher:
  module: apeagent_pipeline.defs.ray_launcher
  class: AssetsRunLauncher
""",
}


def _dagster_yaml(engine: str) -> str:
    return _DAGSTER_YAML + _RUN_LAUNCHER[engine]


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
        file = dagster_home / "dagster.yaml"
        found = file.read_text() if file.exists() else None
        if found in (None, *map(_dagster_yaml, _RUN_LAUNCHER)):  # edited by nobody
            file.write_text(_dagster_yaml(settings.engine))
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


def require_engine(settings: Settings) -> None:
    """Prove that what the settings say runs can work on is there.

    Raises:
        SettingsError: Ray's packages are not installed, or no cluster answers.
    """
    if settings.engine == "local":
        return
    if find_spec("dagster_ray") is None:
        raise SettingsError(
            "APEAGENT_ENGINE=ray needs packages that are not installed: "
            "pip install -c .ci/constraints.txt -e '.[ray]', or set APEAGENT_ENGINE=local"
        )
    import requests

    try:
        requests.get(f"{settings.ray_address}/api/version", timeout=10).raise_for_status()
    except requests.RequestException as error:
        raise SettingsError(
            f"APEAGENT_RAY_ADDRESS={mask_url(settings.ray_address)}: no Ray cluster answers ({type(error).__name__}). "
            "Start one with `ray start --head`, or give the address of its dashboard, such as http://HEAD:8265"
        ) from None
