"""What a home takes: disk, database, and how long the pages of the UI load."""

import importlib.util
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import requests

from apeagent_pipeline.artifacts.store import ArtifactStore
from apeagent_pipeline.settings import Settings
from apeagent_pipeline_tests.defs.ports import free_port
from apeagent_pipeline_tests.defs.test_browser import CHROMIUM, QUIET_CHROMIUM, stop

PAGES = {
    "catalog": ("/asset-groups", "distillation"),
    "page of raw_swaps, all days": ("/assets/raw_swaps?view=partitions", "Materialized ("),
    "page of service_report": ("/assets/service_report?view=events", "service_report"),
    "runs": ("/runs", "Success"),
}
"""Page -> its address, and a text that it shows when it is loaded."""
_TRIES = 2
_STARTS_S, _LOADS_MS = 300, 120_000


def disk(settings: Settings) -> dict[str, float]:
    """Part of the home -> MB; files with several names count once."""
    home = settings.home
    store = ArtifactStore(settings.storage_url, home / "cache" / "artifacts")
    return {
        "home, MB": _megabytes(home),
        "of these superseded versions, MB": sum(store.superseded(timedelta(0)).values()) / 1e6,
        "history of runs (SQLite), MB": _megabytes(home / "dagster"),
    }


def _megabytes(folder: Path) -> float:
    found = [each.stat() for each in folder.rglob("*") if each.is_file()]
    return sum({(each.st_dev, each.st_ino): each.st_size for each in found}.values()) / 1e6


def page_loads(settings: Settings) -> dict[str, float]:
    """Page -> seconds from the address to its content in a browser, the best of two; empty without a browser."""
    if CHROMIUM is None or importlib.util.find_spec("playwright") is None:
        return {}
    from playwright.sync_api import sync_playwright

    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "apeagent_pipeline.cli", "ui", "--read-only", "--port", str(port)],
        env={**os.environ, "APEAGENT_HOME": str(settings.home)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=settings.home, start_new_session=True,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET_CHROMIUM)
            page = browser.new_page(viewport={"width": 1600, "height": 1000}, base_url=url)
            page.set_default_timeout(_LOADS_MS)
            loads = {}
            for name, (address, shown) in PAGES.items():
                seconds = []
                for _ in range(_TRIES):
                    begun = time.monotonic()
                    page.goto(address)
                    page.get_by_text(shown).first.wait_for()
                    seconds.append(time.monotonic() - begun)
                loads[name] = min(seconds)
            browser.close()
        return loads
    finally:
        stop(server)


def _wait(url: str) -> None:
    """Until the server has loaded the definitions."""
    query = {"query": "{ repositoriesOrError { ... on RepositoryConnection { nodes { id } } } }"}
    until = time.monotonic() + _STARTS_S
    while time.monotonic() < until:
        try:
            if requests.post(f"{url}/graphql", json=query, timeout=60).json()["data"]["repositoriesOrError"]["nodes"]:
                return
        except (requests.RequestException, KeyError):
            time.sleep(1)
    raise TimeoutError(f"{url} did not answer within {_STARTS_S} s")
