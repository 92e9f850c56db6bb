"""Logs and headers that a node tells wrong for a while: a day ends in the very same file."""

import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from apeagent_pipeline.chain.days import FIRST_DAY, first_block_of
from apeagent_pipeline.chain.devnet import start_devnet
from apeagent_pipeline_tests.chain.faults.faults import LIES, without_timestamps
from apeagent_pipeline_tests.chain.faults.true_day import Chain, Faults, materialize, stored, survive
from apeagent_pipeline_tests.chain.faulty_proxy import (
    Ask,
    Fault,
    Reply,
    asked_for,
    changed_logs,
    empty_between,
    first,
    lags,
    loses_answers,
    no_tags,
    orphaned,
    running,
    shuffles,
    sometimes,
)

SURVIVED: dict[str, Faults] = {
    "no blockTimestamp": lambda chain: [changed_logs(without_timestamps)],
    "no blockTimestamp, batches in any order that lose answers": lambda chain: [
        shuffles(),
        sometimes(0.1, loses_answers()),
        changed_logs(without_timestamps),
    ],
    "blockTimestamp null": lambda chain: [changed_logs(lambda logs: [{**log, "blockTimestamp": None} for log in logs])],
    "one of two backends lags, empty list": lambda chain: [sometimes(0.3, lags(chain.noon))],
    "one of two backends lags, error": lambda chain: [sometimes(0.3, lags(chain.noon, past_head="error"))],
    "whole ranges answered with an empty list, but receipts told": lambda chain: [
        empty_between(chain.noon, chain.noon)
    ],
    "the same log twice": lambda chain: [changed_logs(lambda logs: [*logs, logs[0], *logs[-2:]])],
    "logs backwards": lambda chain: [changed_logs(lambda logs: logs[::-1])],
    **{f"once or twice {name}": lambda chain, lie=lie: [first(2, changed_logs(lie))] for name, lie in LIES.items()},
    "a reorganisation between two calls": lambda chain: [first(6, orphaned(chain.noon))],
    "one of two backends on an orphaned branch": lambda chain: [
        first(3, asked_for("eth_getLogs", orphaned(chain.noon)))
    ],
    **{
        f"no {' and no '.join(tags)} tag, {'error' if error else 'null'}": (
            lambda chain, tags=tags, error=error: [no_tags(*tags, error=error)]
        )
        for tags in (("finalized",), ("finalized", "safe"))
        for error in (True, False)
    },
}


@pytest.mark.parametrize("name", SURVIVED)
def test_what_can_be_survived_ends_in_the_very_same_file(name: str, chain: Chain, home: Path) -> None:
    survive(SURVIVED[name], chain, home)


def test_a_real_reorganisation_between_two_calls_is_read_again(devnet_cache: Path, tmp_path: Path) -> None:
    day, after_day = str(FIRST_DAY), first_block_of(FIRST_DAY + timedelta(days=1))
    with start_devnet(devnet_cache, kept_states=5) as own:
        own.mine(1_000)
        own.swap(True, -(10**17))
        own.mine(after_day - 3 - own.head())
        for side in (True, False, True, False):  # two swaps on the day, two after it
            own.swap(side, -(10**17))
        no_finality = no_tags("finalized", "safe", error=True)
        quiet_requests = threading.Semaphore(3)

        def reorganise(payload: Any, ask: Ask) -> Reply:
            if not quiet_requests.acquire(blocking=False):
                proxy.faults = [no_finality]
                own.rpc("anvil_reorg", 4, [])
            return ask(payload)

        with running(own.url) as proxy:

            def read(name: str, *faults: Fault) -> bytes:
                proxy.faults = [no_finality, *faults]
                # Final one block below the head: so a day can be read while it can still change.
                materialize(tmp_path / name, day, proxy.url, rpc_finality_depth=1)
                return stored(tmp_path / name)[f"{day}.parquet"]

            before = read("before")
            during = read("during", asked_for("eth_getLogs", reorganise))
            after = read("after")
    assert during == after != before
    assert pl.read_parquet(after).height == pl.read_parquet(before).height - 2
