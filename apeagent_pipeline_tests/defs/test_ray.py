"""Two nodes of a real Ray cluster on this machine, one of which dies."""

import json
import os
import re
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

from apeagent_pipeline.artifacts.store import ArtifactStore
from apeagent_pipeline.chain.days import FIRST_DAY, days_between
from apeagent_pipeline.defs.build import build_graph
from apeagent_pipeline.defs.instance import open_instance, prepare_home, require_engine
from apeagent_pipeline.defs.partitions import RANGE_END, RANGE_START
from apeagent_pipeline.defs.update import update
from apeagent_pipeline.settings import LAUNCHED_WITH, Settings, SettingsError, load_settings, settings_to_share
from apeagent_pipeline_tests.defs.ports import free_port

DAYS = int(os.environ.get("RAY_TEST_DAYS", "14"))
POSTGRES_URL = os.environ.get("RAY_TEST_POSTGRES_URL")
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
        command = [Path(sys.executable).with_name("ray"), "start", "--block", "--disable-usage-stats"]
        self.process = subprocess.Popen(
            [*command, *options, *limits, *ports],
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
        return {
            found[1] for line in commands if (found := re.search(r'execute_run .*run_id": "([0-9a-f-]{36})"', line))
        }

    def kill(self) -> None:
        """As if the machine lost its power: Ray's processes and those of the runs, all at once."""
        for process in list(self.processes()):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


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
    command = [Path(sys.executable).with_name("dagster-graphql"), "-m", "apeagent_pipeline.definitions"]
    told = subprocess.run(
        [*command, "-t", BACKFILL, "-v", variables], env=environment, capture_output=True, text=True, check=True
    )
    assert "LaunchBackfillSuccess" in told.stdout, told.stdout + told.stderr


def data_versions(storage: str, folder: Path) -> dict[str, str | None]:
    store = ArtifactStore(storage, folder)
    found = {f"{asset}/{day}": store.manifest(asset, day) for asset in DAILY_ASSETS for day in store.days(asset)}
    return {name: manifest and manifest.data_version for name, manifest in found.items()}


@pytest.mark.slow
def test_days_spread_over_two_nodes_are_those_of_one_machine_even_when_a_node_dies(tmp_path: Path) -> None:
    pytest.importorskip("dagster_ray", reason="needs a Ray cluster: pip install -c .ci/constraints.txt -e '.[ray]'")
    days = [str(day) for day in days_between(FIRST_DAY, FIRST_DAY + timedelta(days=DAYS - 1))]
    local = Settings(home=tmp_path / "local")
    with open_instance(local) as instance:
        begun = time.monotonic()
        rounds = update(build_graph(local), instance, days, only=set(DAILY_ASSETS))
        print(f"{DAYS} days in one run on one machine: {time.monotonic() - begun:.0f} s")
    assert [each.success for each in rounds] == [True]
    expected = data_versions(local.storage_url, tmp_path)

    home = tmp_path / "home"
    chosen = {
        "APEAGENT_HOME": str(home),
        "APEAGENT_ENGINE": "ray",
        "APEAGENT_RAY_ADDRESS": f"http://127.0.0.1:{free_port()}",
        "APEAGENT_RETRAINING": "manual",
        "DAGSTER_HOME": str(home / "dagster"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONSAFEPATH": "1",
        **({"APEAGENT_POSTGRES_URL": POSTGRES_URL} if POSTGRES_URL else {}),
    }
    environment = {**os.environ, **chosen}
    settings = Settings(home=home, engine="ray", ray_address=chosen["APEAGENT_RAY_ADDRESS"], postgres_url=POSTGRES_URL)
    store = ArtifactStore(settings.storage_url, tmp_path)
    with (
        cluster(environment, Path(f"/tmp/ray-{os.getpid()}")) as nodes,  # the paths of sockets have to be short
        open_instance(settings) as instance,
        (tmp_path / "daemon.log").open("wb") as log,
    ):
        command = [Path(sys.executable).with_name("dagster-daemon"), "run", "-m", "apeagent_pipeline.definitions"]
        daemon = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            begun = time.monotonic()
            backfill(environment, days)
            (asked,) = instance.get_backfills()
            wait_for(lambda: all(node.runs() for node in nodes), 180)
            (lost,) = nodes[1].runs()
            lost_days = days_of(instance, lost)
            # In the middle: some of its days are there, others are not.
            wait_for(lambda: len(lost_days & set(store.days("raw_swaps"))) >= 2, 120)
            assert not lost_days <= set(store.days("swap_features"))
            nodes[1].kill()
            killed = time.monotonic()
            wait_for(lambda: instance.get_backfill(asked.backfill_id).status.value != "REQUESTED", 400)  # type: ignore[union-attr]
            print(
                f"{DAYS} days on two nodes: {time.monotonic() - begun:.0f} s from asking to the backfill's end, "
                f"{time.monotonic() - killed:.0f} s of them after a node was killed"
            )
            assert instance.get_backfill(asked.backfill_id).status.value == "COMPLETED_SUCCESS"  # type: ignore[union-attr]
            assert data_versions(settings.storage_url, tmp_path) == expected
        finally:
            daemon.terminate()
            daemon.wait()
    (retry,) = [run for run in instance.get_runs() if run.parent_run_id == lost]
    assert days_of(instance, retry.run_id) == lost_days
    assert {run.status.value for run in instance.get_runs() if run.run_id in (lost, retry.run_id)} == {
        "FAILURE",
        "SUCCESS",
    }


def days_of(instance: dg.DagsterInstance, run_id: str) -> set[str]:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    first, last = (date.fromisoformat(run.tags[tag]) for tag in (RANGE_START, RANGE_END))
    return {str(day) for day in days_between(first, last)}


def test_a_run_asks_for_the_most_that_one_of_its_assets_needs() -> None:
    pytest.importorskip("dagster_ray", reason="needs Ray")
    from apeagent_pipeline.defs.ray_launcher import largest

    declared = ['{"num_cpus": 1, "num_gpus": 0, "memory": 4}', '{"num_cpus": 1, "num_gpus": 1, "memory": 2}']
    assert json.loads(largest(declared)) == {"num_cpus": 1, "num_gpus": 1, "memory": 4}


def test_a_gpu_is_asked_for_by_the_full_profile_alone(tmp_path: Path) -> None:
    def gpus(profile: str) -> set[str]:
        graph = build_graph(Settings(home=tmp_path, profile=profile))
        return {
            asset.key.to_user_string()
            for asset in graph.assets
            if json.loads(asset.op.tags["dagster-ray/config"])["num_gpus"]
        }

    assert gpus("demo") == set()
    assert {"trained_gan", "lora_adapter", "canary_eval"} <= gpus("full")
    assert not {"raw_swaps", "swap_features", "teacher_traces"} & gpus("full")


def test_a_cluster_that_does_not_answer_is_told_with_its_address_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apeagent_pipeline.defs.instance.find_spec", lambda name: name)
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(
        SettingsError, match=f"APEAGENT_RAY_ADDRESS={address}: no Ray cluster answers.*ray start --head"
    ):
        require_engine(Settings(home=tmp_path, engine="ray", ray_address=address))


def test_missing_packages_are_told_with_the_command_that_brings_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apeagent_pipeline.defs.instance.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"pip install -c .ci/constraints.txt -e '.\[ray\]'"):
        require_engine(Settings(home=tmp_path, engine="ray"))


def test_a_node_with_other_settings_refuses_the_run_and_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Settings(home=tmp_path, storage="s3://bucket/swaps", teacher_api_key="of-nobodys-business")
    monkeypatch.setenv(LAUNCHED_WITH, json.dumps(settings_to_share(there)))
    assert "of-nobodys-business" not in os.environ[LAUNCHED_WITH]
    monkeypatch.setenv("APEAGENT_STORAGE", "s3://bucket/other")
    monkeypatch.setenv("APEAGENT_TEACHER_API_KEY", "of-nobodys-business")
    with pytest.raises(
        SettingsError, match="APEAGENT_STORAGE is 's3://bucket/other' here and 's3://bucket/swaps' there"
    ):
        load_settings()
    monkeypatch.setenv("APEAGENT_STORAGE", "s3://bucket/swaps")
    assert load_settings().storage == "s3://bucket/swaps"


def test_the_launcher_follows_the_setting_until_the_file_is_edited_and_then_says_so(tmp_path: Path) -> None:
    file = tmp_path / "dagster" / "dagster.yaml"
    for engine, launched in (("local", False), ("ray", True), ("local", False)):
        prepare_home(Settings(home=tmp_path, engine=engine))
        assert ("AssetsRunLauncher" in file.read_text()) is launched
    file.write_text(file.read_text() + "# mine\n")
    with pytest.raises(SettingsError, match=r"APEAGENT_ENGINE=ray, but .*dagster.yaml was edited.*add to it"):
        prepare_home(Settings(home=tmp_path, engine="ray"))
