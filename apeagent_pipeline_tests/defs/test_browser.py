"""What people do every day, done in a real browser: look, materialize, backfill, read a plot, switch the night off."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import polars as pl
import psutil
import pytest
import requests

from apeagent_pipeline_tests.defs.ports import free_port

if TYPE_CHECKING:
    from playwright.sync_api import Page

LOCATION = "apeagent_pipeline.definitions"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET_CHROMIUM = [
    "--no-sandbox",  # as root there is no other way
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SECRET = "pl4nted"
PLANTED = {
    "APEAGENT_TEACHER": "openai",
    "APEAGENT_TEACHER_API_KEY": f"sk-{SECRET}",
    "APEAGENT_TEACHER_BASE_URL": f"https://{SECRET}:{SECRET}@teacher.example/{SECRET}/v1?key={SECRET}",
    "APEAGENT_ALERT_WEBHOOK": f"https://hooks.example/services/{SECRET}",
    "APEAGENT_RETRAINING": "manual",  # nothing heavy begins by itself
    "AWS_ACCESS_KEY_ID": SECRET,
    "AWS_SECRET_ACCESS_KEY": SECRET,
}
"""All but two: with a node's address these days would be read from a node, and there is no Postgres.

The read-only server, which reads nothing, has the node's as well; chain/test_secrets.py runs with both.
"""

NODE = f"https://{SECRET}:{SECRET}@node.example/{SECRET}?key={SECRET}"
DAYS = ["2025-01-22", "2025-01-23", "2025-01-24"]
pytestmark = pytest.mark.slow


class Ui:
    """`apeagent ui` with a home and a port of its own."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, home: Path) -> None:
        self.process, self.url, self.home = process, url, home

    def graphql(self, query: str, **variables: Any) -> Any:
        asked = requests.post(f"{self.url}/graphql", json={"query": query, "variables": variables}, timeout=60)
        assert asked.ok, asked.text
        return asked.json()["data"]

    def days_of(self, asset: str) -> list[str]:
        """The days that Dagster holds for materialized."""
        query = """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
            assetPartitionStatuses { ... on TimePartitionStatuses { ranges { status startKey endKey } } } } } }"""
        ranges = self.graphql(query, key={"path": [asset]})["assetNodeOrError"]["assetPartitionStatuses"]["ranges"]
        made = [each for each in ranges if each["status"] == "MATERIALIZED"]
        return [f"{each['startKey']}...{each['endKey']}" for each in made]

    def statuses(self) -> list[str]:
        found = self.graphql("{ runsOrError { ... on Runs { results { status } } } }")
        return [each["status"] for each in found["runsOrError"]["results"]]

    def failures(self) -> list[str]:
        """What failed runs say of why."""
        query = """{ runsOrError(filter: {statuses: [FAILURE]}) { ... on Runs { results { assetSelection { path }
            eventConnection { events { __typename ... on MessageEvent { message }
                ... on ErrorEvent { error { message causes { message } } } } } } } } }"""
        return [
            f"{run['assetSelection']}: {event}"
            for run in self.graphql(query)["runsOrError"]["results"]
            for event in run["eventConnection"]["events"]
            if event["__typename"].endswith("FailureEvent") or event.get("error")
        ]


@contextmanager
def started_ui(home: Path) -> Iterator[Ui]:
    """Start the server as a user does, and leave no process behind."""
    port = free_port()
    log = home / "ui.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "apeagent_pipeline.cli", "ui", "--port", str(port)],
            env={**os.environ, **PLANTED, "APEAGENT_HOME": str(home)},
            cwd=home, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    ui = Ui(process, f"http://127.0.0.1:{port}", home)

    try:
        eventually(lambda: answers(ui), log.read_text)
        yield ui
    finally:
        stop(process)


def answers(ui: Ui) -> bool:
    assert ui.process.poll() is None, "the server has ended"
    try:
        return bool(ui.graphql("{ repositoriesOrError { ... on RepositoryConnection { nodes { id } } } }"))
    except requests.ConnectionError:
        return False


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End a server and all that it started, those that do not listen too."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
    _, left = psutil.wait_procs(family, timeout=10)
    for each in left:
        each.kill()


def eventually(holds: Callable[[], bool], otherwise: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.5)


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    with started_ui(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="module")
def page(ui: Ui) -> "Iterator[Page]":
    if CHROMIUM is None or importlib.util.find_spec("playwright") is None:
        pytest.skip("no browser: `apt-get install chromium` and the extra [dev] (playwright) run this test")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET_CHROMIUM)
        page = browser.new_page(viewport={"width": 1440, "height": 900}, base_url=ui.url)
        page.set_default_timeout(30_000)
        yield page
        page.screenshot(path=ui.home / "last.png")
        browser.close()


def launch(page: "Page", asset: str, days: str) -> None:
    """Materialize days of an asset by clicking, from the asset's page."""
    page.goto(f"/assets/{asset}?view=partitions")
    page.get_by_role("button", name=re.compile("Materialize")).first.click()
    page.get_by_role("button", name="Show all partitions").click()  # the dialog begins with the last ninety days
    box = page.get_by_placeholder(re.compile("^ex: ")).last
    box.fill(days)
    box.press("Enter")
    page.get_by_role("button", name=re.compile("Launch ")).last.click()


def test_the_asset_graph_opens_and_shows_every_stage(page: "Page") -> None:
    page.goto("/asset-groups")
    for group in ("chain", "market", "gan", "distillation", "student", "evaluation"):
        page.get_by_text(group, exact=True).first.wait_for()
    page.goto("/assets/canary_eval?view=lineage&lineageScope=upstream&lineageDepth=12")
    for name in ("raw_swaps", "trained_gan", "teacher_traces", "lora_adapter"):
        page.get_by_text(name, exact=True).first.wait_for()


def test_a_click_materializes_a_day_and_its_plot_opens(ui: Ui, page: "Page") -> None:
    launch(page, "raw_swaps", "2025-01-21")
    eventually(lambda: ui.days_of("raw_swaps") == ["2025-01-21...2025-01-21"], ui.statuses)
    page.goto("/assets/raw_swaps?view=partitions&partition=2025-01-21")
    page.get_by_role("row", name=re.compile("^day ")).get_by_text("[Show Markdown]").click()
    picture = page.get_by_role("img", name="swaps and price")
    picture.wait_for()
    assert picture.evaluate("image => image.complete && image.naturalWidth > 400")


def test_a_backfill_of_three_days_turns_the_partitions_green(ui: Ui, page: "Page") -> None:
    launch(page, "raw_swaps", f"[{DAYS[0]}...{DAYS[-1]}]")
    eventually(lambda: ui.days_of("raw_swaps") == [f"2025-01-21...{DAYS[-1]}"], ui.statuses)
    page.goto("/assets/raw_swaps?view=partitions")
    page.get_by_text(f"Materialized ({len(DAYS) + 1})").wait_for()
    backfills = ui.graphql("{ partitionBackfillsOrError { ... on PartitionBackfills { results { status } } } }")
    assert backfills["partitionBackfillsOrError"]["results"]
    # What lies below is made by the daemon, which nobody asked.
    eventually(lambda: ui.days_of("swap_features") == [f"2025-01-21...{DAYS[-1]}"], ui.statuses)
    assert ui.failures() == []


def test_the_nightly_schedule_is_turned_off_and_on_again(ui: Ui, page: "Page") -> None:
    query = """{ schedulesOrError(
        repositorySelector: {repositoryName: "__repository__", repositoryLocationName: "%s"}) {
        ... on Schedules { results { name scheduleState { status } } } } }"""

    def status() -> str | None:
        found = ui.graphql(query % LOCATION)["schedulesOrError"].get("results", [])
        return next((each["scheduleState"]["status"] for each in found if each["name"] == "nightly_resync"), None)

    before = status()
    assert before
    other = {"RUNNING": "STOPPED", "STOPPED": "RUNNING"}[before]
    page.goto(f"/locations/__repository__@{LOCATION}/schedules/nightly_resync")
    page.locator("input[type=checkbox]").first.wait_for(state="attached")
    for wanted in (other, before):
        # The box itself is hidden below the picture of a switch.
        page.locator("input[type=checkbox]").first.evaluate("box => box.click()")
        eventually(lambda wanted=wanted: status() == wanted, status, 30)


# What a page can send to any server without asking it: changes in three ways, and a web socket.
ASK = """async ({url, page}) => {
    const change = way => `${url}/graphql?query=${encodeURIComponent(
        `mutation { setConcurrencyLimit(concurrencyKey: "${way} of ${page}", limit: 1) }`)}`
    await new Promise(done => {
        const picture = new Image()
        picture.onload = picture.onerror = done
        picture.src = change("picture")
    })
    await fetch(change("script"), {method: "POST", mode: "no-cors"}).catch(() => null)
    await new Promise(done => {
        const frame = document.createElement("iframe")
        const form = document.createElement("form")
        frame.name = "answer"
        Object.assign(form, {action: change("form"), method: "post", target: "answer"})
        document.body.append(frame, form)
        frame.onload = done  // not before: the empty frame is loaded as well
        form.submit()
    })
    return await new Promise(done => {
        const socket = new WebSocket(`${url.replace("http", "ws")}/graphql`, "graphql-ws")
        socket.onopen = () => done(true)
        socket.onerror = () => done(false)
    })
}"""


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """The address of a page of another origin."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<body>Not the UI</body>")

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Page)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_page_of_another_origin_changes_nothing_and_reads_nothing(ui: Ui, page: "Page", elsewhere: str) -> None:
    def changes(by: str) -> set[str]:
        found = ui.graphql("{ instance { concurrencyLimits { concurrencyKey } } }")["instance"]["concurrencyLimits"]
        return {each["concurrencyKey"].split(" of ")[0] for each in found if each["concurrencyKey"].endswith(by)}

    for origin in (elsewhere, elsewhere.replace("127.0.0.1", "localhost")):
        page.goto(origin)
        assert page.evaluate(ASK, {"url": ui.url, "page": "another"}) is False
    assert changes(by="another") == set()
    page.goto(elsewhere)
    page.evaluate("url => { location.href = url }", f"{ui.url}/asset-groups")  # a link from there is followed
    page.get_by_text("gan", exact=True).first.wait_for()
    page.goto("/server_info")
    assert page.evaluate(ASK, {"url": ui.url, "page": "its own"}) is True
    assert changes(by="its own") == {"picture", "script", "form"}, "what is tried above does work"


def test_a_name_that_its_owner_lets_point_here_is_not_answered(ui: Ui) -> None:
    for host, status in {"127.0.0.1": 200, "localhost:3000": 200, "rebound.example": 400, "": 400}.items():
        assert requests.get(f"{ui.url}/server_info", headers={"Host": host}, timeout=10).status_code == status, host


def test_the_server_listens_on_this_machine_only(ui: Ui) -> None:
    family = [psutil.Process(ui.process.pid), *psutil.Process(ui.process.pid).children(recursive=True)]
    sockets = [each for process in family for each in process.net_connections("inet")]
    listening = {each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}


def test_a_read_only_server_refuses_to_launch(ui: Ui) -> None:
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "apeagent_pipeline.cli", "ui", "--read-only", "--port", str(port)],
        env={**os.environ, **PLANTED, "APEAGENT_HOME": str(ui.home), "APEAGENT_RPC_URLS": NODE},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ui.home,
    )  # fmt: skip
    reader = Ui(server, f"http://127.0.0.1:{port}", ui.home)
    try:
        eventually(lambda: answers(reader), lambda: "the read-only server does not answer")
        before = len(ui.statuses())
        launched = reader.graphql(
            """mutation($what: LaunchBackfillParams!) {
                launchPartitionBackfill(backfillParams: $what) { __typename } }""",
            what={"assetSelection": [{"path": ["raw_swaps"]}], "partitionNames": ["2025-02-01"]},
        )
        assert launched["launchPartitionBackfill"]["__typename"] == "UnauthorizedError"
        assert len(ui.statuses()) == before
        shown = str(reader.graphql(EVERYTHING))
        assert "swaps_freshness" in shown, "the node's address was read"
        assert SECRET not in shown
    finally:
        stop(server)


EVERYTHING = """{
    assetNodes { description metadataEntries { label description } }
    repositoriesOrError { ... on RepositoryConnection { nodes {
        allTopLevelResourceDetails { configFields { configTypeKey } configuredValues { key value } }
        jobs { tags { key value } }
        sensors { name description sensorState { ticks(limit: 20) { skipReason error { message stack } } } }
        schedules { name description }
    } } }
    runsOrError { ... on Runs { results { runConfigYaml tags { key value }
        eventConnection { events { ... on MessageEvent { message } } } } } }
    instance { info }
}"""
"""What the UI can show of the definitions, the daemon's looks, the runs and the instance."""


def test_no_credential_is_shown_or_stored(ui: Ui) -> None:
    """After all of the above, with a secret in every setting and variable that can hold one."""
    shown = ui.graphql(EVERYTHING)
    assert SECRET not in str(shown)
    assert "teacher.example" in str(shown), "what is no secret is shown"
    told = subprocess.run(
        [sys.executable, "-m", "apeagent_pipeline.cli", "config"],
        env={**os.environ, **PLANTED, "COLUMNS": "300"}, cwd=ui.home, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert SECRET not in told.stdout + told.stderr
    files = [path for path in ui.home.rglob("*") if path.is_file()]
    assert any(path.suffix == ".db" for path in files)
    # The databases last: a server that closes one moves the rest of its log into it, and deletes the log.
    for path in sorted(files, key=lambda path: path.suffix == ".db"):
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            assert path.name.endswith((".db-wal", ".db-shm")), path
        else:
            assert SECRET.encode() not in content, path
        if path.suffix == ".parquet":
            assert SECRET not in pl.read_parquet(path).cast(pl.String).write_csv(), path
