"""What ``apeagent ui`` makes sure of before anything starts."""

import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import dagster as dg
import dagster._cli
import dagster._cli.dev
import pytest

from apeagent_pipeline.cli.server import require_free_port, require_only_daemon
from apeagent_pipeline.defs import web_server
from apeagent_pipeline.settings import SettingsError


def test_an_occupied_port_is_named_before_a_daemon_starts() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SettingsError, match=f"--port {port}: .*choose another port"):
            require_free_port(port)
    require_free_port(port)


def test_a_home_has_one_daemon_until_the_program_ends_that_took_the_lock(tmp_path: Path) -> None:
    # As `ui` does: the process that took the lock is replaced by another program, which keeps it.
    program = (
        "import os, sys; from pathlib import Path; from apeagent_pipeline.cli.server import require_only_daemon;"
        "require_only_daemon(Path(sys.argv[1])); os.execv('/bin/sh', ['sh', '-c', 'echo taken; read _'])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ
    ) as running:
        assert running.stdout
        assert running.stdout.readline() == b"taken\n"
        with pytest.raises(SettingsError, match="another `apeagent ui` runs on"):
            require_only_daemon(tmp_path)
        running.communicate()
    require_only_daemon(tmp_path)


def test_the_ui_starts_without_dagsters_advice_to_start_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    advice = "Function `{}` is superseded and its usage is discouraged. Use 'dg dev' instead."

    def main() -> None:
        for name in ("dev_command", "another_command"):
            warnings.warn(advice.format(name), dg.SupersessionWarning, stacklevel=1)

    monkeypatch.setattr(dagster._cli, "main", main)
    monkeypatch.setattr(dagster._cli.dev, "open_ipc_subprocess", dagster._cli.dev.open_ipc_subprocess)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        web_server._develop()
    assert [str(each.message) for each in told] == [advice.format("another_command")]
