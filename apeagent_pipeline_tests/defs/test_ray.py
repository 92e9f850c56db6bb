"""Two nodes of a real Ray cluster on this machine, one of which dies."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date, timedelta
from pathlib import Path

import dagster as dg
import psutil
import pytest

from apeagent_pipeline.chain.days import FIRST_DAY, days_between
from apeagent_pipeline.defs.build import build_graph
from apeagent_pipeline.defs.instance import open_instance, require_engine
from apeagent_pipeline.defs.storage import ArtifactStore
from apeagent_pipeline.defs.updating import update
from apeagent_pipeline.settings import LAUNCHED_WITH, Settings, SettingsError, load_settings

DAILY_ASSETS = ("raw_swaps", "swap_features")
BACKFILL = """mutation($backfill: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $backfill) { __typename ... on PythonError { message } }
}"""


class Node:
    """A node of the cluster with one CPU, for one run at a time."""

    def __init__(self, name: str, environment: dict[str, str], *options: str) -> None:
        self.mark = {"TEST_NODE": f"{name} of {os.getpid()}"}  # inherited by everything that runs there
        limits = ("--num-cpus=1", "--num-gpus=0", f"--memory={4 << 30}", f"--object-store-memory={100 << 20}")
        ports = ("--min-worker-port=0", "--max-worker-port=0", f"--dashboard-agent-listen-port={free_port()}")
        self.process = subprocess.Popen(
            [Path(sys.executable).with_name("ray"), "start", "--block", "--disable-usage-stats", *options, *limits]
            + [*ports],
            env=environment | self.mark,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            try:
                if process.environ().get("TEST_NODE") == self.mark["TEST_NODE"]:
                    yield process
            except psutil.Error:
                continue

    def runs(self) -> set[str]:
        """Ids of the runs that work here."""
        commands = [" ".join(process.cmdline()) for process in self.processes() if process.is_running()]
        return {found[1] for line in commands if (found := re.search(r'execute_run .*"run_id": "([0-9a-f-]{36})"', line))}

    def kill(self) -> None:
        """As if the machine lost its power: Ray's processes and those of the runs, all at once."""
        for process in list(self.processes()):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(what: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


@contextmanager
def cluster(environment: dict[str, str], folder: Path) -> Iterator[list[Node]]:
    """Two nodes, the second of which may die; environment: what is set on both."""
    import requests

    port, dashboard = free_port(), environment["APEAGENT_RAY_ADDRESS"].rsplit(":", 1)[1]
    head = f"--head --node-ip-address=127.0.0.1 --port={port} --dashboard-port={dashboard} --temp-dir={folder}"
    nodes = [Node("head", environment, *head.split(), f"--ray-client-server-port={free_port()}")]

    def alive() -> int:
        try:
            nodes_url = f"{environment['APEAGENT_RAY_ADDRESS']}/api/v0/nodes"
            found = requests.get(nodes_url, timeout=10).json()["data"]["result"]["result"]
        except (requests.RequestException, KeyError, ValueError):
            return 0
        return sum(each["state"] == "ALIVE" for each in found)

    try:
        wait_for(lambda: alive() == 1, 60)
        nodes.append(Node("second", environment, f"--address=127.0.0.1:{port}"))
        wait_for(lambda: alive() == 2, 60)
        yield nodes
    finally:
        for node in nodes:
            node.kill()


def backfill(environment: dict[str, str], days: list[str]) -> None:
    """What "Materialize" does in the UI."""
    selection = [{"path": [asset]} for asset in DAILY_ASSETS]
    variables = json.dumps({"backfill": {"assetSelection": selection, "partitionNames": days}})
    told = subprocess.run(
        [Path(sys.executable).with_name("dagster-graphql"), "-m", "apeagent_pipeline.definitions"]
        + ["-t", BACKFILL, "-v", variables],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "LaunchBackfillSuccess" in told.stdout, told.stdout + told.stderr


def data_versions(storage: str, folder: Path) -> dict[str, str | None]:
    store = ArtifactStore(storage, folder)
    found = {f"{asset}/{day}": store.manifest(asset, day) for asset in DAILY_ASSETS for day in store.days(asset)}
    return {name: manifest and manifest.data_version for name, manifest in found.items()}


@pytest.mark.slow
def test_days_spread_over_two_nodes_are_those_of_one_machine_even_when_a_node_dies(tmp_path: Path) -> None:
    pytest.importorskip("dagster_ray", reason="needs a Ray cluster: pip install -c .ci/constraints.txt -e '.[ray]'")
    count = int(os.environ.get("RAY_TEST_DAYS", "14"))
    days = [str(day) for day in days_between(FIRST_DAY, FIRST_DAY + timedelta(days=count - 1))]
    begun = time.monotonic()
    local = Settings(home=tmp_path / "local")
    with open_instance(local) as instance:
        rounds = update(build_graph(local), instance, days, only=set(DAILY_ASSETS))
    assert [each.success for each in rounds] == [True]
    expected = data_versions(local.storage_url, tmp_path)
    alone = time.monotonic() - begun

    home = tmp_path / "home"
    chosen = {
        "APEAGENT_HOME": str(home),
        "APEAGENT_ENGINE": "ray",
        "APEAGENT_RAY_ADDRESS": f"http://127.0.0.1:{free_port()}",
        "APEAGENT_RETRAINING": "manual",
        "DAGSTER_HOME": str(home / "dagster"),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **chosen, "PATH": path, "PYTHONSAFEPATH": "1"}
    settings = Settings(home=home, engine="ray", ray_address=chosen["APEAGENT_RAY_ADDRESS"])
    with (
        cluster(environment, Path(f"/tmp/ray-{os.getpid()}")) as nodes,  # the paths of sockets have to be short
        open_instance(settings) as instance,
    ):
        require_engine(settings)
        daemon = subprocess.Popen(
            [Path(sys.executable).with_name("dagster-daemon"), "run", "-m", "apeagent_pipeline.definitions"],
            env=environment,
            stdout=(tmp_path / "daemon.log").open("wb"),
            stderr=subprocess.STDOUT,
        )
        try:
            begun = time.monotonic()
            backfill(environment, days)
            wait_for(lambda: all(node.runs() for node in nodes), 120)
            killed = time.monotonic()
            (lost,) = nodes[1].runs()
            # In the middle: some of the run's days are published, not all of them.
            start = dg.DagsterInstance.get_run_by_id(instance, lost).tags["dagster/asset_partition_range_start"]
            of_lost = {str(date.fromisoformat(start) + timedelta(days=number)) for number in range(7)}
            store = ArtifactStore(settings.storage_url, tmp_path)
            if os.environ.get("RAY_TEST_KILL", "1") == "1":
                wait_for(lambda: 2 <= len(of_lost & set(store.days("raw_swaps"))), 60)
                killed = time.monotonic()
                nodes[1].kill()
            wait_for(lambda: [each.status.value for each in instance.get_backfills()] == ["COMPLETED_SUCCESS"], 240)
            wait_for(lambda: all(run.is_finished for run in instance.get_runs()), 60)
        finally:
            daemon.terminate()
            daemon.wait()
    wall = time.monotonic() - begun
    print(f"{count} days: alone {alone:.0f} s, on the cluster {wall:.0f} s, of which {wall - (killed - begun):.0f} s after the kill")
    runs = {run.run_id: run for run in instance.get_runs()}
    print(*((r.status.value, r.tags.get("dagster/asset_partition_range_start"), r.tags.get("dagster/parent_run_id")) for r in runs.values()), sep="\n")
    assert data_versions(settings.storage_url, tmp_path) == expected
