"""What ``apeagent ui`` makes sure of before anything starts."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from apeagent_pipeline.cli.server import require_free_port, require_only_daemon
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
