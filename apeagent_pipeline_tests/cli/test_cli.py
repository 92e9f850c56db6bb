"""The ``apeagent`` command as a user types it."""

import os
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from apeagent_pipeline.chain.embedded import EmbeddedChainProvider
from apeagent_pipeline.cli import app
from apeagent_pipeline_tests.chain.conftest import NOW, SECRET, Node


def apeagent(*arguments: str, cwd: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", "APEAGENT_HOME": str(cwd / "home"), **settings}
    command = [sys.executable, "-m", "apeagent_pipeline.cli", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_help_names_every_command_and_where_to_start(tmp_path: Path) -> None:
    done = apeagent("--help", cwd=tmp_path)
    assert done.returncode == 0
    for word in (
        "demo",
        "sync",
        "teach",
        "ui",
        "config",
        "doctor",
        "ask",
        "eval",
        "export",
        "devnet",
        "provenance",
        "status",
        "clean",
        "reconcile",
        "Start with apeagent demo",
    ):
        assert word in done.stdout


def test_help_of_a_command_wraps_at_the_width_of_the_terminal() -> None:
    shown = CliRunner().invoke(app, ["status", "--help"], env={"COLUMNS": "80", "TERM": "dumb"}).output
    lines = [line.strip() for line in shown.splitlines()]
    begin = next(at for at, line in enumerate(lines) if line.startswith("An artifact is up to date"))
    paragraph = lines[begin : lines.index("", begin)]
    assert len(paragraph) > 3
    assert all(len(line) > 55 for line in paragraph[:-1]), "lines break where the source does"


def test_config_shows_values_and_sources_but_no_secret(tmp_path: Path) -> None:
    done = apeagent("config", cwd=tmp_path, APEAGENT_SEED="7", APEAGENT_TEACHER_API_KEY="sk-planted")
    assert done.returncode == 0
    assert "APEAGENT_SEED" in done.stdout
    assert "environment" in done.stdout
    assert "planted" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "settings", "told"),
    [
        (["demo"], {"APEAGENT_PROFILE": "huge"}, "APEAGENT_PROFILE='huge'"),
        (["demo"], {"APEAGENT_SWAPS_ARCHIVE": "missing.csv"}, "missing.csv"),
        (["sync", "--from", "2025-02-30", "--to", "2025-03-01"], {}, "2025-02-30"),
        (["sync", "--from", "2025-02-02", "--to", "2025-02-01"], {}, "lies before"),
        (["sync", "--from", "2024-02-02", "--to", "2024-02-03"], {}, "no swaps before 2025-01-21"),
        (["ask", "what now?"], {}, "apeagent demo"),
        (["eval"], {}, "apeagent demo"),
        (["eval", "--prompts", "missing.jsonl"], {}, "missing.jsonl: no such file"),
        (["export", "--to", "mine"], {}, "apeagent demo"),
    ],
)
def test_what_a_user_can_mend_is_told_in_a_line_without_a_traceback(
    tmp_path: Path, arguments: list[str], settings: dict[str, str], told: str
) -> None:
    done = apeagent(*arguments, cwd=tmp_path, **settings)
    assert done.returncode != 0
    assert told in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.slow
def test_sync_makes_the_days_asked_for_and_a_second_time_nothing(tmp_path: Path) -> None:
    first = apeagent("sync", "--from", "2025-01-22", "--to", "2025-01-23", cwd=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    storage = tmp_path / "home" / "storage"
    for day in ("2025-01-22", "2025-01-23"):
        assert pl.read_parquet(storage / "raw_swaps" / f"{day}.parquet").height > 500
        assert (storage / "swap_features" / f"{day}.parquet").exists()
    assert not (storage / "trained_gan").exists()
    again = apeagent("sync", "--from", "2025-01-22", "--to", "2025-01-23", cwd=tmp_path)
    assert again.returncode == 0
    assert "nothing to recompute" in again.stdout


@pytest.mark.slow
def test_a_malformed_archive_fails_the_sync_names_the_line_and_writes_nothing(tmp_path: Path) -> None:
    archive = tmp_path / "swaps.csv"
    archive.write_text(
        "block_number,transaction_hash,pool_id,router_address,original_sender,is_contract_sender,amount0,amount1,"
        "sqrt_price_x96,liquidity,tick,fee,timestamp\n"
        "25428824,327d,96d4b53a38337a5733179751781178a2613306063c511b78cd02684739288c0a,0x6f,0x44,False,many,319782,"
        "4458936925670369649410795,562108584583,-195714,500,1737646995\n"
    )
    done = apeagent(
        "sync", "--from", "2025-01-23", "--to", "2025-01-23", cwd=tmp_path, APEAGENT_SWAPS_ARCHIVE=str(archive)
    )
    assert done.returncode != 0
    assert "swaps.csv" in done.stderr
    assert "2" in done.stderr
    assert not list((tmp_path / "home").rglob("*.parquet"))


@pytest.mark.slow
def test_a_day_that_cannot_be_read_fails_alone_and_is_all_that_a_second_sync_reads(tmp_path: Path) -> None:
    node = Node(EmbeddedChainProvider(42, now=NOW.timestamp))
    first, _ = node.collector().block_range(date(2025, 1, 22))

    def fault(method: str, params: list[Any]) -> Any:
        if method == "eth_getLogs" and params[0]["fromBlock"] == hex(first + 5_000):
            return {"jsonrpc": "2.0", "error": {"code": -32601, "message": "out of order"}}
        return None

    def sync() -> subprocess.CompletedProcess[str]:
        settings = {"APEAGENT_RPC_URLS": node.url.get_secret_value(), "APEAGENT_RPC_REQUESTS_PER_SECOND": "0"}
        node.requests.clear()
        return apeagent("sync", "--from", "2025-01-21", "--to", "2025-01-23", cwd=tmp_path, **settings)

    node.fault = fault
    done = sync()
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 of 3 days are complete" in done.stdout
    assert re.search(r"2025-01-22 .*not complete", done.stdout)
    assert re.search(r"raw_swaps: 1 of 3 days failed:\s+2025-01-22: RPC endpoint 1 of 1 .* out of order", done.stderr)
    assert SECRET not in done.stdout + done.stderr
    storage = tmp_path / "home" / "storage"
    assert sorted(file.stem for file in (storage / "swap_features").glob("*.parquet")) == ["2025-01-21", "2025-01-23"]

    node.fault = lambda method, params: None
    done = sync()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 days are complete" in done.stdout
    assert node.requests.count("eth_getLogs") <= 9
    assert len(list((storage / "swap_features").glob("*.parquet"))) == 3
