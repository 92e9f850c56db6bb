"""A throw-away PostgreSQL server, as the Debian package ``postgresql`` has it."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from apeagent_pipeline_tests.defs.ports import free_port

USER, PASSWORD = "ape", "p%ss"
"""The password needs quoting in a URL, and must be seen nowhere."""
QUOTED_PASSWORD = "p%25ss"


def _programs() -> Path | None:
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    return installed[-1] if installed else None


@contextmanager
def postgres_server() -> Iterator[str]:
    """The URL of a server on 127.0.0.1 whose data are gone afterwards.

    It refuses to run as root, so there the user ``postgres`` of the package runs it.
    """
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    user = None
    if os.geteuid() == 0:
        try:
            user = pwd.getpwnam("postgres").pw_name
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user named postgres")
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    if user:
        shutil.chown(folder, user)

    def run(*command: str) -> None:
        program = [str(programs / command[0]), *command[1:]]
        subprocess.run(program, check=True, capture_output=True, user=user, cwd=folder, timeout=60)

    password = folder / "password"
    password.write_text(PASSWORD)
    password.chmod(0o644)
    options = (
        f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off "
        "-c max_connections=200"
    )
    data, log = str(folder / "data"), str(folder / "log")
    try:
        run("initdb", "-D", data, "-A", "md5", "-U", USER, f"--pwfile={password}", "-N", "--locale=C")
        run("pg_ctl", "-D", data, "-w", "-l", log, "-o", options, "start")
        try:
            yield f"postgresql://{USER}:{QUOTED_PASSWORD}@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


def dump(url: str) -> bytes:
    """The whole database as ``pg_dump`` writes it."""
    programs = _programs()
    assert programs
    return subprocess.run([programs / "pg_dump", url], check=True, capture_output=True, timeout=60).stdout
