"""What people do every day in the UI, done by a real browser on the real server and daemon."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",  # tests may run as root, where the sandbox refuses to start
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LOCATION = "apeagent_pipeline.definitions"
REPOSITORY = f"/locations/__repository__@{LOCATION}"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium, or put chromium on the PATH"),
]


class Ui:
    """A running `apeagent ui` and a page of a browser that looks at it."""

    def __init__(self, address: str, page: Any, home: Path) -> None:
        self.address, self.page, self.home = address, page, home

    def open(self, path: str) -> None:
        self.page.goto(f"{self.address}{path}")

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name)

    def graphql(self, query: str, **variables: Any) -> Any:
        answer = requests.post(
            f"{self.address}/graphql", json={"query": query, "variables": variables}, timeout=30
        ).json()
        assert "errors" not in answer, answer
        return answer["data"]

    def days(self, asset: str) -> list[str]:
        """Days of an asset that the server knows to be materialized."""
        found = self.graphql(
            "query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {"
            " assetPartitionStatuses { ... on TimePartitionStatuses { ranges { startKey endKey status } } } } } }",
            key={"path": [asset]},
        )
        ranges = found["assetNodeOrError"]["assetPartitionStatuses"]["ranges"]
        return [f"{each['startKey']}..{each['endKey']} {each['status']}" for each in ranges]


def wait_for(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    """The first true answer of ``what``."""
    end = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.5)
    return answer


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    from playwright.sync_api import sync_playwright

    home = tmp_path_factory.mktemp("home")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "APEAGENT_HOME": str(home),
        "APEAGENT_RETRAINING": "manual",  # nothing heavy begins by itself
        "OMP_NUM_THREADS": "1",
    }
    log = (home / "ui.log").open("wb")
    command = [sys.executable, "-m", "apeagent_pipeline.cli", "ui", "--port", str(port)]
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert server.poll() is None, (home / "ui.log").read_text()[-3000:]
        try:
            return requests.get(f"{address}/server_info", timeout=5).ok
        except requests.RequestException:
            return False

    try:
        wait_for(answers, 90)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = browser.new_page(viewport={"width": 1500, "height": 950})
            page.set_default_timeout(45_000)
            yield Ui(address, page, home)
            browser.close()
    finally:
        os.killpg(server.pid, signal.SIGINT)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def test_the_graph_shows_every_asset(ui: Ui) -> None:
    ui.open("/asset-groups")
    ui.page.get_by_text("distillation", exact=True).first.wait_for()
    ui.page.keyboard.press("Alt+e")  # expands the groups
    for name in ("raw_swaps", "trained_gan", "canary_eval", "promoted_adapter"):
        ui.page.get_by_text(name, exact=True).first.wait_for()


def test_days_are_backfilled_by_clicking_and_turn_green_with_what_lies_below(ui: Ui) -> None:
    ui.open("/assets/raw_swaps?view=partitions")
    ui.button("Materialize").first.click()
    ui.page.get_by_text("Show all partitions").click()
    days = ui.page.get_by_placeholder("ex: ").last
    days.fill("[2025-01-21...2025-01-23]")
    days.press("Enter")
    ui.button("Launch backfill").click()
    ui.page.get_by_text("Materialized (3)").wait_for(timeout=120_000)
    green = ["2025-01-21..2025-01-23 MATERIALIZED"]
    assert ui.days("raw_swaps") == green
    wait_for(lambda: ui.days("swap_features") == green, 150)  # by the daemon, which nobody asked


def test_the_plot_of_a_day_opens(ui: Ui) -> None:
    ui.open("/assets/raw_swaps?view=partitions&partition=2025-01-22")
    ui.page.get_by_role("row", name="day [Show Markdown]").get_by_text("[Show Markdown]").click()
    picture = ui.page.locator("img[src^='data:image/png']").first
    picture.wait_for()
    assert picture.evaluate("image => image.naturalWidth") > 300


def test_an_asset_is_materialized_by_clicking(ui: Ui) -> None:
    def made() -> int:
        found = ui.graphql(
            '{ assetOrError(assetKey: {path: ["training_windows"]}) { ... on Asset {'
            " assetMaterializations { runId } } } }"
        )
        return len(found["assetOrError"].get("assetMaterializations", []))

    wait_for(lambda: made() == 1, 120)  # by the daemon, after the features
    ui.open("/assets/training_windows")
    ui.button("Materialize").first.click()
    wait_for(lambda: made() == 2, 90)


def test_the_nightly_schedule_is_turned_on_and_off(ui: Ui) -> None:
    def status() -> str:
        found = ui.graphql(
            "query($s: ScheduleSelector!) { scheduleOrError(scheduleSelector: $s) { ... on Schedule {"
            " scheduleState { status } } } }",
            s={
                "repositoryName": "__repository__",
                "repositoryLocationName": LOCATION,
                "scheduleName": "nightly_resync",
            },
        )
        return str(found["scheduleOrError"]["scheduleState"]["status"])

    ui.open(f"{REPOSITORY}/schedules/nightly_resync")
    switch = ui.page.locator("input[type=checkbox]").first
    switch.wait_for(state="attached")
    before = status()
    for expected in ("RUNNING", "STOPPED") if before == "STOPPED" else ("STOPPED", "RUNNING"):
        switch.evaluate("box => box.click()")
        wait_for(lambda expected=expected: status() == expected, 30)


def test_the_server_listens_on_this_machine_alone(ui: Ui) -> None:
    import psutil

    listening = {
        connection.laddr.ip
        for process in psutil.process_iter()
        if str(ui.home) in process_environment(process)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def process_environment(process: Any) -> str:
    import psutil

    try:
        return process.environ().get("APEAGENT_HOME", "")
    except (psutil.Error, OSError):
        return ""
