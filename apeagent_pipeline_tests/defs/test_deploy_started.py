"""The services of ``compose.yaml`` started without a container engine.

Each command runs as the image runs it: its user, its environment, no capability, and a root that cannot be written, by
a mount namespace of its own. Not shown here: the image's build, the network between containers, and Ray.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from apeagent_pipeline.chain.days import FIRST_DAY
from apeagent_pipeline_tests.defs.ports import free_port
from apeagent_pipeline_tests.defs.postgres_server import postgres_server

DEPLOY = files("apeagent_pipeline") / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
SERVICES = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
(USER,) = re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)
HOME = "/var/lib/apeagent"
LAUNCH = """mutation($backfill: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $backfill) { __typename ... on PythonError { message } }
}"""
# Folders that are hidden from the user, or replaced by empty ones, are bound again where they were.
ROOT = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /var/lib
mkdir -p {home} /var/lib/kept
mount --bind {volume} {home}
number=0
for path in {needed}; do
    number=$((number + 1)); mkdir /var/lib/kept/$number; mount --bind $path /var/lib/kept/$number
done
mount -t tmpfs tmpfs /root
mount -t tmpfs -o mode=1777 tmpfs /tmp
chmod 755 /root
number=0
for path in {needed}; do
    number=$((number + 1)); mkdir -p $path; mount --rbind /var/lib/kept/$number $path; mount -o remount,ro,bind $path
done
mount --bind / /
mount -o remount,ro,bind /
cd {home}
exec setpriv --reuid {user} --regid {user} --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs "$@"
"""


class Image:
    """What every container is started from."""

    def __init__(self, volume: Path, postgres_url: str, port: int) -> None:
        self.port = port
        needed = {sys.prefix, sys.base_prefix, str(Path(__file__).parents[2])}
        self.script = ROOT.format(
            home=HOME, volume=shlex.quote(str(volume)), user=USER, needed=" ".join(map(shlex.quote, sorted(needed)))
        )
        variables = dict(re.findall(r"^(?:ENV|   ) ([A-Z_]+)=(\S+)", DOCKERFILE, re.MULTILINE))
        told = SERVICES["daemon"]["environment"]
        assert told.keys() == {"APEAGENT_ENGINE", "APEAGENT_RAY_ADDRESS", "APEAGENT_POSTGRES_URL"}
        self.environment = {
            **variables,
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "APEAGENT_POSTGRES_URL": postgres_url,
            "APEAGENT_RETRAINING": "manual",
        }

    def command(self, words: list[str]) -> list[str]:
        """Words of a service, on this machine's port and address."""
        here = [
            word.replace("3000", str(self.port)).replace("0.0.0.0", "127.0.0.1").removeprefix("CMD") for word in words
        ]
        return ["unshare", "--mount", "sh", "-c", self.script, "sh", *filter(None, here)]

    def run(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(words), env=self.environment, capture_output=True, text=True, timeout=240, check=False
        )

    @contextmanager
    def service(self, name: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
        """A service that runs until the end, once its own health check says that it is well."""
        with log.open("wb") as told:
            process = subprocess.Popen(
                self.command(SERVICES[name]["command"]), env=self.environment, stdout=told, stderr=subprocess.STDOUT
            )
        try:
            deadline = time.monotonic() + 240
            while (check := self.run(SERVICES[name]["healthcheck"]["test"])).returncode:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text() + check.stderr
                time.sleep(1)
            yield process
        finally:
            process.terminate()
            process.wait()


def may_start() -> bool:
    if os.geteuid() or not all(map(shutil.which, ("unshare", "setpriv", "mount"))):
        return False
    private = ["unshare", "--mount", "sh", "-c", "mount --make-rprivate / && mount -t tmpfs tmpfs /mnt"]
    return subprocess.run(private, capture_output=True, check=False).returncode == 0


def ask(port: int, query: str, **variables: Any) -> dict[str, Any]:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        data: dict[str, Any] = json.loads(answer.read())["data"]
    return data


@pytest.mark.slow
def test_the_services_start_as_their_user_on_a_root_that_cannot_be_written_and_read_a_day(tmp_path: Path) -> None:
    if not may_start():
        pytest.skip("needs root and mount namespaces")
    volume = tmp_path / "home"
    volume.mkdir()
    os.chown(volume, int(USER), int(USER))
    with postgres_server() as url:
        image = Image(volume, url.replace("postgresql:", "postgresql+psycopg2:"), free_port())
        refused = image.run(["sh", "-c", f"id -u; touch /etc/x; touch {sys.prefix}/x; grep CapEff /proc/self/status"])
        assert refused.stdout.split() == [USER, "CapEff:", "0" * 16]
        assert refused.stderr.count("Read-only file system") == 2, refused.stderr
        made = image.run(SERVICES["instance"]["command"])
        assert made.returncode == 0, made.stderr
        web, daemon = tmp_path / "web.log", tmp_path / "daemon.log"
        with image.service("webserver", web), image.service("daemon", daemon):
            chosen = {"assetSelection": [{"path": ["raw_swaps"]}], "partitionNames": [str(FIRST_DAY)]}
            told = ask(image.port, LAUNCH, backfill=chosen)
            assert told["launchPartitionBackfill"]["__typename"] == "LaunchBackfillSuccess", told
            deadline = time.monotonic() + 240
            runs = "{ runsOrError { ... on Runs { results { status } } } }"
            while [run["status"] for run in ask(image.port, runs)["runsOrError"]["results"]] != ["SUCCESS"]:
                assert time.monotonic() < deadline, web.read_text() + daemon.read_text()
                time.sleep(1)
    assert list((volume / "storage" / "raw_swaps").glob(f"{FIRST_DAY}*"))
    assert {path.lstat().st_uid for path in volume.rglob("*")} == {int(USER)}
