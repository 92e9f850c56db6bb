"""From the catalog to the answers of who lives with it: at most three clicks, on a page that fits the window."""

import importlib.util
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from apeagent_pipeline_tests.defs.lived_in import CAUSE, COST, DRIFT, live
from apeagent_pipeline_tests.defs.test_browser import CHROMIUM, QUIET_CHROMIUM, started_ui

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow
MOST_CLICKS = 3
Step = Callable[["Page"], None]
"""A click, or pointing at something."""

TOO_WIDE = """() => [
    ...[document.documentElement].filter(page => page.scrollWidth > innerWidth),
    ...[...document.querySelectorAll("table")].filter(
        table => !table.closest(".dagster-markdown") && table.getBoundingClientRect().right > innerWidth + 1),
    ...[...document.querySelectorAll(".dagster-markdown")].filter(
        page => page.getBoundingClientRect().right > innerWidth + 1),
].map(each => each.innerText.slice(0, 200))"""
"""What is wider than the window; a wide table inside a page of Markdown scrolls there."""


def click(selector: str) -> Step:
    return lambda page: page.locator(selector).first.click()


def asset(name: str) -> Step:
    return click(f"a[href$='/assets/{name}']")


def point_at(text: str) -> Step:
    return lambda page: page.get_by_text(text).first.hover()


RUNS, AUTOMATION = click("a[href='/runs']"), click("a[href='/automation']")
JOURNEYS: dict[str, tuple[list[Step], list[str]]] = {
    "is it still good?": ([asset("service_report"), click("a[role=tab][title=Checks]")], [DRIFT[:60]]),
    "why is this stale?": (
        [asset("promoted_adapter"), point_at("Unsynced (1)")],
        ["1 upstream data version change", "has a new data version"],
    ),
    "what failed, and why?": ([RUNS, click("a[role=tab]:has-text('Failed')"), click("a[href*='/runs/']")], [CAUSE]),
    "which adapter, and why?": (
        [asset("promoted_adapter")],
        ["{refused} was not promoted", "control_leak_rate is 0.900; expected at most 0.05"],
    ),
    "what did it cost?": ([asset("teacher_traces")], ["total_cost_usd", str(COST)]),
    "what comes tonight?": (
        [AUTOMATION, click("a[href$='/schedules/nightly_resync']")],
        ["At 02:00 UTC reads yesterday"],
    ),
}


@pytest.fixture(scope="module")
def lived_in(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[tuple[Page, str]]":
    if CHROMIUM is None or importlib.util.find_spec("playwright") is None:
        pytest.skip("no browser: `apt-get install chromium` and the extra [dev] (playwright) run this test")
    from playwright.sync_api import sync_playwright

    home = tmp_path_factory.mktemp("home")
    refused = live(home)
    with started_ui(home) as ui, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET_CHROMIUM)
        page = browser.new_page(base_url=ui.url)
        page.set_default_timeout(60_000)
        yield page, refused
        page.screenshot(path=home / "last.png")
        browser.close()


@pytest.mark.parametrize("width", [1_600, 1_280])
@pytest.mark.parametrize("question", JOURNEYS)
def test_a_question_is_answered_in_three_clicks_on_a_page_that_fits(
    lived_in: "tuple[Page, str]", question: str, width: int
) -> None:
    page, refused = lived_in
    steps, answers = JOURNEYS[question]
    assert len(steps) <= MOST_CLICKS
    page.set_viewport_size({"width": width, "height": 1_000})
    page.goto("/assets")
    for step in steps:
        step(page)
    for answer in answers:
        page.get_by_text(answer.format(refused=refused)).first.wait_for()
    assert page.evaluate(TOO_WIDE) == []


def test_the_page_with_our_style_keeps_the_headers_of_dagster(lived_in: "tuple[Page, str]") -> None:
    page, _ = lived_in
    answer = page.goto("/assets")
    assert answer
    assert "script-src 'nonce-" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert ".dagster-markdown" in answer.text()


def test_the_page_of_a_day_fits_and_its_preview_too(lived_in: "tuple[Page, str]") -> None:
    page, _ = lived_in
    page.set_viewport_size({"width": 1_280, "height": 1_000})
    page.goto("/assets/raw_swaps?view=partitions&partition=2025-01-21")
    preview = page.get_by_role("row", name=re.compile("^preview ")).get_by_text("[Show Markdown]")
    preview.wait_for()
    assert page.evaluate(TOO_WIDE) == []
    preview.click()
    table = page.locator(".dagster-markdown table").last
    table.wait_for()
    dialog = table.evaluate(
        "table => table.closest('[role=dialog], .bp5-dialog, .bp4-dialog')?.getBoundingClientRect().right ?? innerWidth"
    )
    assert table.evaluate("table => table.getBoundingClientRect().right") <= dialog
