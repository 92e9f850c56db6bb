"""``apeagent teach --dry-run`` with the settings of ``full``, before a router with a price list."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from apeagent_pipeline import cli
from apeagent_pipeline.defs import profiles
from apeagent_pipeline.defs.resources import Runtime
from apeagent_pipeline.defs.watcher import LogWatcher
from apeagent_pipeline.settings import Settings
from apeagent_pipeline_tests.distillation.conftest import make_windows
from apeagent_pipeline_tests.distillation.scripted_server import Script, ScriptedServer, completion
from apeagent_pipeline_tests.servers import stopped_afterwards

MODEL = "qwen/qwen3-32b"
PROMPTS = 200
"""Fewer than the 6,800 of the profile, so that the test is fast; every other option is that of ``full``."""

READ_USD, WRITTEN_USD = 0.10, 0.40
"""For a million tokens, as the router lists them."""


@pytest.fixture(scope="module")
def windows() -> pl.DataFrame:
    return make_windows(2 * PROMPTS)


@pytest.fixture
def serve() -> Iterator[Callable[[Script], ScriptedServer]]:
    yield from stopped_afterwards(ScriptedServer)


@pytest.fixture
def router(serve: Callable[[Script], ScriptedServer]) -> ScriptedServer:
    server = serve(lambda number, body: (200, {}, completion(), 0))
    listed = {"id": MODEL, "pricing": {"prompt": str(READ_USD / 1e6), "completion": str(WRITTEN_USD / 1e6)}}
    server.pages = {
        "/models": (200, {"data": [listed, {"id": "qwen/qwen3-14b", "pricing": {}}]}),
        "/key": (200, {"data": {"limit_remaining": 12.5}}),
    }
    return server


def dry_run(
    router: ScriptedServer, windows: pl.DataFrame, home: Path, monkeypatch: pytest.MonkeyPatch, **env: str
) -> tuple[int, str]:
    """Exit code and output of the command; the windows are there, as after a first run."""

    def built(settings: Settings, *arguments: Any, **options: Any) -> tuple[list[Any], Any, list[str]]:
        runtime = Runtime(settings, LogWatcher())
        runtime.store.publish_table(windows, asset="synthetic_windows", code_version="1", config={}, inputs={})
        return [], SimpleNamespace(runtime=runtime), []

    few = profiles.FULL.teacher_traces.model_copy(
        update={"train_prompts": PROMPTS - 40, "valid_prompts": 20, "test_prompts": 20}
    )
    monkeypatch.setitem(profiles.PROFILES, "full", dataclasses.replace(profiles.FULL, teacher_traces=few))
    monkeypatch.setattr(cli.teach, "bring_up_to_date", built)
    settings = {
        "APEAGENT_PROFILE": "full",
        "APEAGENT_HOME": str(home),
        "APEAGENT_TEACHER_BASE_URL": router.url,
        "APEAGENT_TEACHER_MODEL": MODEL,
        "APEAGENT_TEACHER_API_KEY": "sk-or-v1-secret",
        "COLUMNS": "160",
        **env,
    }
    done = CliRunner().invoke(cli.app, ["teach", "--dry-run"], env=settings)
    assert "secret" not in done.output
    return done.exit_code, done.output


def test_the_cost_the_time_and_the_limits_of_full_are_told_before_anything_is_paid(
    router: ScriptedServer, windows: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, told = dry_run(router, windows, tmp_path, monkeypatch)
    assert code == 0, told
    assert router.requests == []
    open_prompts = re.search(r"(\d+) of \1 prompts to ask", told)
    assert open_prompts, told
    assert "12.50 USD of credit" in told
    cell = r" *([\d,.]+) *"
    rows = {
        name: re.search(rf"│ {name}[^│]*│{cell}│{cell}│{cell}│{cell}USD", told)
        for name in ("least", "expected", "most")
    }
    bills = {name: [float(cell.replace(",", "")) for cell in row.groups()] for name, row in rows.items() if row}
    assert bills.keys() == rows.keys(), told
    for requests, read, written, cost in bills.values():
        assert requests >= int(open_prompts[1])
        assert cost == pytest.approx((read * READ_USD + written * WRITTEN_USD) / 1e6, abs=1e-3)
    assert bills["least"][3] < bills["expected"][3] < bills["most"][3]
    assert re.search(r"Expected time: \d+ minutes\. Asking stops at [\d,]+ requests, [\d,]+ tokens\.", told)


def test_a_model_that_the_router_does_not_list_ends_the_dry_run_with_the_nearest_names(
    router: ScriptedServer, windows: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, told = dry_run(router, windows, tmp_path, monkeypatch, APEAGENT_TEACHER_MODEL="qwen/qwq-32b")
    assert code == 1
    assert "does not offer qwen/qwq-32b" in told
    assert "qwen/qwen3-32b" in told
    assert router.requests == []
