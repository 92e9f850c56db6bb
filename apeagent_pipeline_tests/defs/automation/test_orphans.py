"""Runs that were killed: failed, freed, and told from those that live."""

import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest
from dagster import DagsterRunStatus

from apeagent_pipeline.defs.automation.orphans import fail_orphaned_runs
from apeagent_pipeline.defs.instance import open_instance
from apeagent_pipeline.settings import Settings

PROGRAM = """
import sys, time
from pathlib import Path
import dagster as dg
from apeagent_pipeline.defs.instance import open_instance
from apeagent_pipeline.settings import Settings

@dg.asset(pool="rpc")
def slow():
    Path(sys.argv[2]).touch()
    time.sleep(float(sys.argv[3]))

with open_instance(Settings(home=Path(sys.argv[1]))) as instance:
    dg.materialize([slow], instance=instance)
"""


@pytest.mark.slow
def test_a_killed_run_is_failed_and_gives_its_place_to_the_next_while_a_living_one_keeps_it(tmp_path: Path) -> None:
    def start(seconds: str) -> subprocess.Popen[bytes]:
        begun = tmp_path / "begun"
        begun.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path), str(begun), seconds])
        deadline = time.monotonic() + 60
        while not begun.exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
        return process

    killed = start("1000")
    with open_instance(Settings(home=tmp_path)) as instance:
        (run,) = instance.get_runs()
        assert fail_orphaned_runs(instance) == []
        killed.kill()
        killed.wait()
        assert instance.get_run_by_id(run.run_id).status is DagsterRunStatus.STARTED  # type: ignore[union-attr]
        assert fail_orphaned_runs(instance) == [run.run_id]
        assert instance.get_run_by_id(run.run_id).status is DagsterRunStatus.FAILURE  # type: ignore[union-attr]
        assert fail_orphaned_runs(instance) == []
        assert start("0").wait(timeout=60) == 0
        assert [each.status for each in instance.get_runs()] == [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE]


def test_a_number_that_a_younger_process_took_over_is_no_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dg.asset
    def quick() -> None: ...

    with open_instance(Settings(home=tmp_path)) as instance:
        run_id = dg.materialize([quick], instance=instance).run_id
        monkeypatch.setattr("apeagent_pipeline.defs.automation.orphans._ALIVE", [DagsterRunStatus.SUCCESS])
        assert fail_orphaned_runs(instance) == []
        monkeypatch.setattr("psutil.Process.create_time", lambda self: time.time())
        assert fail_orphaned_runs(instance) == [run_id]


def test_a_run_that_ends_while_we_look_is_not_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    with open_instance(Settings(home=tmp_path)) as instance:

        @dg.asset
        def quick() -> None:
            seen.extend(instance.get_run_records())

        run_id = dg.materialize([quick], instance=instance).run_id
        assert [each.dagster_run.status for each in seen] == [DagsterRunStatus.STARTED]
        monkeypatch.setattr(instance, "get_run_records", lambda _: seen)
        monkeypatch.setattr("apeagent_pipeline.defs.automation.orphans._is_alive", lambda pid, begun: False)
        assert fail_orphaned_runs(instance) == []
        assert instance.get_run_by_id(run_id).status is DagsterRunStatus.SUCCESS  # type: ignore[union-attr]
