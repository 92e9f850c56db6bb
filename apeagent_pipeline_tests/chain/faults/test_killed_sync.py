"""A sync that is killed: it loses no finished range, and leaves the old file or the new one."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from apeagent_pipeline_tests.chain.faults.true_day import RANGE_BLOCKS, Chain, assert_made, materialize, stored
from apeagent_pipeline_tests.chain.faulty_proxy import Ask, HangUpError, Reply, asked_for, running

MAIN = "from apeagent_pipeline.cli import main; main()"
# Dies at the rename of a file of the day, before or after it.
DIES_AT_RENAME = """
import os, signal
rename, name, after = os.replace, {name!r}, {after!r}
def replace(source, target, **more):
    ours = os.path.basename(os.fspath(target)) == name and "raw_swaps" in os.fspath(target)
    if ours and not after:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target, **more)
    if ours:
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
"""


def start_sync(home: Path, day: str, url: str, program: str = MAIN) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "APEAGENT_HOME": str(home),
        "APEAGENT_RPC_URLS": url,
        "APEAGENT_RPC_RANGE_BLOCKS": str(RANGE_BLOCKS),
        "APEAGENT_RPC_REQUESTS_PER_SECOND": "0",
    }
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program, "sync", "--from", day, "--to", day],
        env=environment, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def sync(home: Path, day: str, url: str, program: str = MAIN) -> int:
    process = start_sync(home, day, url, program)
    out, err = process.communicate(timeout=60)
    assert "s3cr3t" not in out + err
    assert process.returncode in (0, -9), out + err
    return process.returncode


def test_a_kill_while_reading_loses_no_finished_range(chain: Chain, home: Path) -> None:
    before = stored(home)
    stalled, let_go = threading.Event(), threading.Event()
    seen = [0]

    def stall(payload: Any, ask: Ask) -> Reply:
        seen[0] += 1
        if seen[0] > 10:
            stalled.set()
            let_go.wait(60)
            raise HangUpError
        return ask(payload)

    with running(chain.url, asked_for("eth_getLogs", stall)) as proxy:
        process = start_sync(home, chain.day, proxy.url)
        try:
            assert stalled.wait(60)
            time.sleep(0.5)  # what was answered before the stall is put aside by now
        finally:
            process.kill()
            process.communicate()
        let_go.set()
        assert stored(home) == before
        finished, proxy.answered, proxy.faults = proxy.answered, [], []
        assert len(finished) == 10
        assert sync(home, chain.day, proxy.url) == 0
    assert proxy.answered, "the rest was read after the restart"
    assert not set(proxy.answered) & set(finished), "a finished range was asked again"
    # The proof that the day is complete reads a few spans again, in other cuts.
    most = max(high - low for low, high in finished)
    assert sum(any(low <= b and high >= a for a, b in finished) for low, high in proxy.answered) < len(finished)
    assert all(high - low < most for low, high in proxy.answered if any(low <= b and high >= a for a, b in finished))
    assert_made(home, chain)


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_while_writing_leaves_the_old_file_or_the_new_one(chain: Chain, home: Path, after: bool) -> None:
    program = DIES_AT_RENAME.format(name=f"{chain.day}.parquet", after=after) + MAIN
    old = stored(home)[f"{chain.day}.parquet"]
    assert sync(home, chain.day, chain.url, program) == -9
    assert stored(home)[f"{chain.day}.parquet"] == (chain.file if after else old)
    materialize(home, chain.day, chain.url)
    assert_made(home, chain)
