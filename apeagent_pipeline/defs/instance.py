"""The Dagster instance: run history, event log and schedules, below ``APEAGENT_HOME`` or in Postgres."""

import os
from importlib.util import find_spec
from pathlib import Path

import dagster as dg

from apeagent_pipeline.atomic_files import write_atomically
from apeagent_pipeline.settings import Settings, SettingsError, mask_url

_POSTGRES_URL = "APEAGENT_POSTGRES_URL"
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
sensors:
  use_threads: true               # a webhook that does not answer keeps no other sensor waiting
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
_STORAGE_IN_POSTGRES = f"""\
storage:
  postgres:
    postgres_url:
      env: {_POSTGRES_URL}
"""
_RUNS_ON_RAY = """\
run_launcher:
  module: apeagent_pipeline.defs.ray_launcher
  class: AssetsRunLauncher
"""


def dagster_yaml(*, in_postgres: bool, on_ray: bool = False) -> str:
    """What ``dagster.yaml`` says unless it is edited; secrets stand there by the names of their variables."""
    text = _DAGSTER_YAML
    if in_postgres:
        text = text.replace("runs: 4        # SQLite stands this; use Postgres for more", "runs: 20")
        text += _STORAGE_IN_POSTGRES
    if on_ray:
        text = text.replace(
            "start_timeout_seconds: 300", "start_timeout_seconds: 3600     # for a place in the cluster"
        )
        text += _RUNS_ON_RAY
    return text


def prepare_home(settings: Settings) -> Path:
    """Make ``APEAGENT_HOME`` and the instance's folder in it, and prove that they can be written.

    ``dagster.yaml`` follows the settings as long as nobody has edited it. An edited one is left as it is.

    Returns:
        The instance's folder (what Dagster calls DAGSTER_HOME).

    Raises:
        SettingsError: The folder cannot be written, or an edited ``dagster.yaml`` contradicts the settings.
    """
    home = settings.home.absolute()
    dagster_home = home / "dagster"
    path = dagster_home / "dagster.yaml"
    try:
        dagster_home.mkdir(parents=True, exist_ok=True)
        (home / ".gitignore").write_text("*\n")
        found = path.read_text() if path.exists() else ""
        wanted = dagster_yaml(in_postgres=settings.postgres_url is not None, on_ray=settings.engine == "ray")
        both = (False, True)
        is_ours = found in ("", *(dagster_yaml(in_postgres=a, on_ray=b) for a in both for b in both))
        if is_ours and found != wanted:
            write_atomically(path, wanted)  # another process may be reading it
    except OSError as error:
        raise SettingsError(
            f"APEAGENT_HOME={home} cannot be written ({error.strerror}): set APEAGENT_HOME to a folder you own"
        ) from error
    if not is_ours:
        _check_edited(path, found, settings)
    return dagster_home


def _check_edited(path: Path, text: str, settings: Settings) -> None:
    in_postgres = f"env: {_POSTGRES_URL}" in text
    if in_postgres and settings.postgres_url is None:
        raise SettingsError(
            f"{path} keeps the history in Postgres, but {_POSTGRES_URL} is not set: set it, or delete the lines "
            "`storage:` to `env:` from the file"
        )
    if settings.postgres_url is not None and not in_postgres:
        raise SettingsError(
            f"{_POSTGRES_URL} is set, but {path} was edited and does not use it: delete the file to have it written "
            f"anew, or add to it\n{_STORAGE_IN_POSTGRES}"
        )
    on_ray = "ray_launcher" in text
    if on_ray != (settings.engine == "ray"):
        raise SettingsError(
            f"APEAGENT_ENGINE={settings.engine}, but {path} was edited and says otherwise: delete the file to have it "
            f"written anew, or {'delete from' if on_ray else 'add to'} it\n{_RUNS_ON_RAY}"
        )


def open_instance(settings: Settings) -> dg.DagsterInstance:
    """The persistent instance that the UI and the command line share.

    Raises:
        SettingsError: Home cannot be used, or Postgres cannot be reached.
    """
    dagster_home = prepare_home(settings)
    os.environ["DAGSTER_HOME"] = str(dagster_home)
    if settings.postgres_url is None:
        return dg.DagsterInstance.from_config(str(dagster_home))
    if find_spec("dagster_postgres") is None:
        raise SettingsError(f"{_POSTGRES_URL} needs more packages: pip install 'apeagent_pipeline[postgres]'")
    # Dagster reads it from there, in this process and in those that it starts.
    os.environ[_POSTGRES_URL] = url = settings.postgres_url.get_secret_value()
    import sqlalchemy

    try:
        # Dagster would try for a quarter of a minute.
        sqlalchemy.create_engine(url).connect().close()
    except (sqlalchemy.exc.SQLAlchemyError, ValueError) as error:
        reason = str(error.__cause__).splitlines()[0] if error.__cause__ else "special characters must stand as %XX"
        # "from None": what is below can repeat the URL.
        raise SettingsError(
            f"{_POSTGRES_URL}={mask_url(url)}: {reason}. Is the server running, and are user, password and database "
            "right?"
        ) from None
    return dg.DagsterInstance.from_config(str(dagster_home))


def postgres_outage(error: BaseException) -> str | None:
    """What to tell a user whose Postgres went away after `open_instance`; None: the error is about something else."""
    url = os.environ.get(_POSTGRES_URL)
    if not url:
        return None
    import sqlalchemy.exc

    lost = sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError | sqlalchemy.exc.TimeoutError
    each: BaseException | None = error
    while each is not None:
        if isinstance(each, lost):
            reason = str(each.__cause__ or each).splitlines()[0]
            return (
                f"{_POSTGRES_URL}={mask_url(url)}: {reason}. Run the command again when the server answers "
                "(`apeagent doctor` asks it): what is finished is not made again"
            )
        each = each.__cause__ or each.__context__
    return None


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
