"""A node, or the way to it, is at fault: a day ends in the very same file, or in a clear error beside the old one.

Everything real: settings, graph, storage, HTTP, and the node behind the proxy.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from apeagent_pipeline.chain import rpc
from apeagent_pipeline.chain.days import FIRST_DAY, first_block_of
from apeagent_pipeline.chain.devnet import start_devnet
from apeagent_pipeline.chain.errors import ChainError
from apeagent_pipeline.defs.build import build_graph
from apeagent_pipeline.settings import Settings
from apeagent_pipeline_tests.chain.faulty_proxy import (
    Answer,
    Ask,
    Fault,
    HangUpError,
    Log,
    Reply,
    asked_for,
    changed_logs,
    each_answer,
    empty_between,
    first,
    hangs_up,
    html,
    http_error,
    lags,
    loses_answers,
    no_tags,
    orphaned,
    outage,
    range_limit,
    rate_limit,
    refuses_batches,
    result_is,
    result_limit,
    rpc_error,
    running,
    shuffles,
    sometimes,
    truncated,
)

RANGE_BLOCKS = 2_000
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
OTHER = "0x" + "1" * 40


@dataclass(frozen=True)
class Chain:
    """A node whose word is true, a day of it, and the file of that day."""

    url: str
    day: str
    file: bytes
    swaps: pl.DataFrame

    @property
    def noon(self) -> int:
        """A block in the middle of the day's trading, with a swap in it."""
        return int(self.swaps["block_number"][self.swaps.height // 2])


Faults = Callable[[Chain], list[Fault]]


def settings(home: Path, *urls: str, **more: Any) -> Settings:
    options = {"rpc_range_blocks": RANGE_BLOCKS, "rpc_requests_per_second": 0, **more}
    return Settings(home=home, rpc_urls=",".join(urls), **options)  # type: ignore[arg-type]


def materialize(home: Path, day: str, *urls: str, **more: Any) -> None:
    """``raw_swaps`` of one day, as the UI and ``apeagent sync`` make it; raises what the asset raised."""
    graph = build_graph(settings(home, *urls, **more))
    with dg.DagsterInstance.ephemeral() as instance:
        graph.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance, asset_selection=[dg.AssetKey("raw_swaps")], partition_key=day, run_config=QUIET
        )


def stored(home: Path) -> dict[str, bytes]:
    """Every file in the folder of raw_swaps, hidden and temporary ones too, but for the versions they are copies of."""
    return {path.name: path.read_bytes() for path in (home / "storage" / "raw_swaps").iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def chain(devnet: Any, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    home, day = tmp_path_factory.mktemp("clean"), str(devnet.days[0])
    materialize(home, day, devnet.url)
    path = home / "storage" / "raw_swaps" / f"{day}.parquet"
    return Chain(devnet.url, day, path.read_bytes(), pl.read_parquet(path))


@pytest.fixture
def home(chain: Chain, tmp_path: Path) -> Path:
    """A home with an older file of the day that lacks a swap, so that a file written anew can be told from it."""
    store = build_graph(settings(tmp_path, chain.url)).runtime.store
    store.publish_table(chain.swaps.head(-1), asset="raw_swaps", partition=chain.day, code_version="0.older")
    return tmp_path


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Backoff without the waiting, except where time is the fault."""
    if "real_waits" not in request.fixturenames:
        monkeypatch.setattr(rpc, "RpcClient", partial(rpc.RpcClient, sleep=lambda seconds: time.sleep(0.001)))


@pytest.fixture
def real_waits() -> None:
    """The client really waits."""


def assert_made(home: Path, chain: Chain) -> None:
    assert set(stored(home)) == {f"{chain.day}.parquet", f"{chain.day}.manifest.json"}
    assert stored(home)[f"{chain.day}.parquet"] == chain.file
    # What a killed writer left of a version lies beside that version until both are removed.
    assert not [path for path in home.rglob("*.tmp") if ".versions" not in path.parts]


def hint(style: str, low: int, high: int) -> str:
    """How Alchemy, Infura and reth name a range."""
    return {
        "alchemy": "Log response size exceeded. You can make eth_getLogs requests with up to a 2K block range. Based "
        f"on your parameters, this block range should work: [{low:#x}, {high:#x}]",
        "infura": f"query returned more than 10000 results. Try with this block range [{low:#x}, {high:#x}].",
        "reth": f"query exceeds max results 20000, retry with the range {low}-{high}",
    }[style]


def moved_log(logs: list[Log], **fields: Any) -> list[Log]:
    """The first log with other fields, then the rest."""
    return [{**logs[0], **fields}, *logs[1:]]


def with_conflict(logs: list[Log]) -> list[Log]:
    """The first log a second time, from another branch of the chain."""
    return [*logs, {**logs[0], "blockHash": "0x" + "9" * 64, "transactionHash": "0x" + "8" * 64}]


def outside(logs: list[Log]) -> list[Log]:
    """One log from long ago."""
    return moved_log(logs, blockNumber="0x1")


def foreign_pool(logs: list[Log]) -> list[Log]:
    """One log of another pool of the same PoolManager."""
    return moved_log(logs, topics=[logs[0]["topics"][0], "0x" + "7" * 64, logs[0]["topics"][2]])


def without_timestamps(logs: list[Log]) -> list[Log]:
    """As older nodes answer."""
    return [{name: value for name, value in log.items() if name != "blockTimestamp"} for log in logs]


LIES: dict[str, Callable[[list[Log]], list[Log]]] = {
    "a log of another contract": lambda logs: moved_log(logs, address=OTHER),
    "a log of another pool": foreign_pool,
    "a removed log": lambda logs: moved_log(logs, removed=True),
    "a log outside the range asked": outside,
    "a log twice with other hashes": with_conflict,
}

NO_BATCHES: dict[str, Fault] = {
    "an error object": refuses_batches(-32600, "batch requests are not supported"),
    "HTTP 400": refuses_batches(-32600, "Batch requests are disabled", 400),
    "HTTP 413": refuses_batches(-32014, "too many RPC calls in batch request", 413),
}
SHORT_BATCHES: dict[str, Fault] = {
    "drpc": refuses_batches(31, "Batch of more than 10 requests are not allowed on free plan", 500, longer_than=10),
    "geth": refuses_batches(-32600, "batch too large", longer_than=10),
    "mainnet.base.org": refuses_batches(-32014, "maximum 10 calls in 1 batch", longer_than=10),
}

no_receipts_of_blocks = rpc_error(-32601, "the method eth_getBlockReceipts does not exist", "eth_getBlockReceipts")

SURVIVED: dict[str, Faults] = {
    "range limit 100, Chainstack": lambda chain: [range_limit(100, -32602, "Block range limit exceeded.")],
    "range limit 100, usable hint of Alchemy": lambda chain: [
        range_limit(100, -32602, lambda low, high, limit: hint("alchemy", low, low + limit - 1))
    ],
    "range limit 100, hint equal to the range asked": lambda chain: [
        range_limit(100, -32602, lambda low, high, limit: hint("reth", low, high))
    ],
    "range limit 1,000, hint before the range asked": lambda chain: [
        range_limit(1_000, -32005, lambda low, high, limit: hint("infura", low - 900, low - 401))
    ],
    "range limit 1,000, hint beyond the range asked": lambda chain: [
        range_limit(1_000, -32602, lambda low, high, limit: hint("alchemy", low, high + 100))
    ],
    "range limit 1,000, hint backwards": lambda chain: [
        range_limit(1_000, -32005, lambda low, high, limit: hint("infura", high, low))
    ],
    **{
        f"range limit 1,000, {name}": lambda chain, code=code, message=message: [range_limit(1_000, code, message)]
        for name, code, message in [
            ("Infura", -32602, lambda low, high, limit: f"range {high - low + 1} exceeds limit of {limit}"),
            ("mainnet.base.org", -32000, "block range too large"),
            ("reth", -32602, "query exceeds max block range 1000"),
            ("Coinbase", -32005, "please limit the query to at most 1000 blocks"),
            ("QuickNode", -32614, "eth_getLogs is limited to a 1,000 range"),
            ("publicnode", -32701, "exceed maximum block range: 1000"),
            ("drpc", 35, "ranges over 1000 blocks are not supported on freetier"),
            ("scroll-geth", -32000, "block range is bigger than maxBlockRange"),
            ("Ankr", -32600, "block range is too wide"),
        ]
    },
    "range limit 1,000, QuickNode with HTTP 413": lambda chain: [
        _status_of_errors(413),
        range_limit(1_000, -32614, "eth_getLogs is limited to a {limit} range"),
    ],
    "range limit 1,000, Alchemy with HTTP 400": lambda chain: [
        _status_of_errors(400),
        range_limit(1_000, -32600, lambda low, high, limit: hint("alchemy", low, low + limit - 1)),
    ],
    "10 % of 429 with Retry-After": lambda chain: [sometimes(0.1, http_error(429, b"", {"Retry-After": "1"}))],
    "10 % of 429 with a date in Retry-After": lambda chain: [
        sometimes(0.1, http_error(429, b"", {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}))
    ],
    "10 % of 429 without Retry-After": lambda chain: [sometimes(0.1, http_error(429, b"Too Many Requests"))],
    "10 % rate errors inside HTTP 200": lambda chain: [
        sometimes(0.1, rpc_error(-32005, "daily request count exceeded, request rate limited"))
    ],
    "10 % of 502": lambda chain: [sometimes(0.1, http_error(502, b"<html>502 Bad Gateway</html>"))],
    "10 % of 503, no backend": lambda chain: [
        sometimes(0.1, rpc_error(-32011, "no backend is currently healthy to serve traffic"))
    ],
    "10 % of closed connections": lambda chain: [sometimes(0.1, hangs_up())],
    "20 % of truncated bodies": lambda chain: [sometimes(0.2, truncated())],
    "20 % of connections cut within the body": lambda chain: [sometimes(0.2, truncated(honest_length=False))],
    "20 % of HTML bodies": lambda chain: [sometimes(0.2, html())],
    "20 % of null logs": lambda chain: [sometimes(0.2, result_is(None, "eth_getLogs"))],
    "20 % of null blocks": lambda chain: [sometimes(0.2, result_is(None, "eth_getBlockByNumber"))],
    "30 % of batches lose an answer": lambda chain: [sometimes(0.3, loses_answers())],
    "batches in any order": lambda chain: [shuffles()],
    **{f"batches refused with {how}": lambda chain, fault=fault: [fault] for how, fault in NO_BATCHES.items()},
    **{
        f"batches of at most 10 calls, {name}": (lambda chain, fault=fault: [fault, changed_logs(without_timestamps)])
        for name, fault in SHORT_BATCHES.items()
    },
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

RESULT_LIMITS: dict[str, Fault] = {
    **{
        f"hint of {style}": result_limit(
            200, -32005, lambda low, high, limit, style=style: hint(style, low, low + (high - low) // 4)
        )
        for style in ("infura", "alchemy", "reth")
    },
    "hint of reth equal to the range asked": result_limit(
        200, -32602, lambda low, high, limit: hint("reth", low, high)
    ),
    "backend response too large": result_limit(200, -32020, "backend response too large"),
    "timeout": result_limit(200, -32005, "query timeout exceeded"),
}

REFUSED: dict[str, tuple[Faults, str]] = {
    "429 for ever": (lambda chain: [http_error(429)], "RPC endpoint 1.* HTTP 429"),
    "502 for ever": (lambda chain: [asked_for("eth_getLogs", http_error(502))], "RPC endpoint 1.* HTTP 502"),
    "401": (lambda chain: [http_error(401, b"invalid key")], "RPC endpoint 1.* HTTP 401"),
    "HTML for ever": (lambda chain: [html()], "RPC endpoint 1.* not JSON"),
    "truncated for ever": (lambda chain: [asked_for("eth_getLogs", truncated())], "RPC endpoint 1"),
    "null logs for ever": (lambda chain: [result_is(None, "eth_getLogs")], "RPC endpoint 1.* eth_getLogs"),
    "closed connections for ever": (lambda chain: [hangs_up()], "RPC endpoint 1.* no answer"),
    "wrong chain": (lambda chain: [result_is("0x1", "eth_chainId")], "chain 1, expected 8453"),
    "no PoolManager": (lambda chain: [result_is("0x", "eth_getCode")], "PoolManager"),
    "a single block over the limit": (
        lambda chain: [result_limit(0, -32005, "query returned more than 0 results")],
        r"single block \d+",
    ),
    "behind for ever": (lambda chain: [lags(chain.noon)], "RPC endpoint 1"),
    "logs behind for ever, empty list": (
        lambda chain: [asked_for("eth_getLogs", lags(chain.noon))],
        "RPC endpoint 1.* lags: its head is",
    ),
    "logs behind for ever, error": (
        lambda chain: [asked_for("eth_getLogs", lags(chain.noon, past_head="error"))],
        "RPC endpoint 1.* beyond current head",
    ),
    **{
        f"for ever {name}": (lambda chain, lie=lie: [changed_logs(lie)], "RPC endpoint 1") for name, lie in LIES.items()
    },
    "logs without a field": (
        lambda chain: [changed_logs(lambda logs: [{"address": logs[0]["address"]}])],
        "RPC endpoint 1",
    ),
    "logs that are no list": (lambda chain: [result_is({}, "eth_getLogs")], "RPC endpoint 1"),
    "a swap that the node tells in no way": (
        lambda chain: [empty_between(chain.noon, chain.noon), no_receipts_of_blocks],
        "swaps are missing between blocks .* RPC endpoint 1",
    ),
}

TRANSACTIONS: dict[str, Fault] = {
    "30 % of null transactions": sometimes(0.3, result_is(None, "eth_getTransactionByHash")),
    "30 % of batches lose an answer": sometimes(0.3, asked_for("eth_getTransactionByHash", loses_answers())),
    "the transaction of another block": first(
        2, each_answer(lambda call, answer: _of_another_block(answer) if "Transaction" in call["method"] else answer)
    ),
    "batches in any order": shuffles(),
    "batches of at most 10 calls": SHORT_BATCHES["geth"],
}

SAVED_BY_A_SECOND: dict[str, Faults] = {
    "wrong chain": REFUSED["wrong chain"][0],
    "no PoolManager": REFUSED["no PoolManager"][0],
    "401": REFUSED["401"][0],
    "502": lambda chain: [http_error(502)],
    "429": REFUSED["429 for ever"][0],
    "HTML": lambda chain: [html()],
    "truncated": lambda chain: [truncated()],
    "null logs": REFUSED["null logs for ever"][0],
    "lagging, empty list": lambda chain: [lags(chain.noon)],
    "lagging, error": lambda chain: [lags(chain.noon, past_head="error")],
    "whole ranges answered with an empty list": lambda chain: [empty_between(chain.noon, chain.noon)],
    "the whole day answered with an empty list": lambda chain: [result_is([], "eth_getLogs")],
    **{name: lambda chain, lie=lie: [changed_logs(lie)] for name, lie in LIES.items()},
    "a single block over the limit": REFUSED["a single block over the limit"][0],
}


def _status_of_errors(status: int) -> Fault:
    """Replies with an error in them carry this HTTP status."""

    def fault(payload: Any, ask: Ask) -> Reply:
        reply = ask(payload)
        answers = reply.body if isinstance(reply.body, list) else [reply.body]
        return Reply(reply.body, status) if any("error" in answer for answer in answers) else reply

    return fault


def _of_another_block(answer: Answer) -> Answer:
    return {**answer, "result": {**answer["result"], "blockHash": "0x" + "6" * 64}}


@pytest.mark.parametrize("name", SURVIVED)
def test_what_can_be_survived_ends_in_the_very_same_file(name: str, chain: Chain, home: Path) -> None:
    with running(chain.url, *SURVIVED[name](chain)) as proxy:
        materialize(home, chain.day, proxy.url)
    assert proxy.injected, "the fault never struck"
    if name.startswith("range limit 1,000"):
        assert proxy.calls["eth_getLogs"] < 120, "43 ranges of 1,000 blocks, and the search for that size"
    assert_made(home, chain)


@pytest.mark.parametrize("name", RESULT_LIMITS)
def test_a_result_limit_of_200_only_costs_requests(name: str, chain: Chain, home: Path) -> None:
    with running(chain.url, RESULT_LIMITS[name]) as proxy:
        materialize(home, chain.day, proxy.url, rpc_range_blocks=20_000)
    assert proxy.injected, "the fault never struck"
    assert proxy.calls["eth_getLogs"] < 60
    assert_made(home, chain)


@pytest.fixture(scope="module")
def file_with_senders(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    home = tmp_path_factory.mktemp("senders")
    materialize(home, chain.day, chain.url, rpc_transactions=True)
    return stored(home)[f"{chain.day}.parquet"]


@pytest.mark.parametrize("name", TRANSACTIONS)
def test_senders_are_asked_for_until_they_are_right(
    name: str, chain: Chain, tmp_path: Path, file_with_senders: bytes
) -> None:
    with running(chain.url, TRANSACTIONS[name]) as proxy:
        materialize(tmp_path, chain.day, proxy.url, rpc_transactions=True)
    assert proxy.injected, "the fault never struck"
    assert stored(tmp_path)[f"{chain.day}.parquet"] == file_with_senders


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_survived_ends_in_a_clear_error_and_leaves_the_old_file(
    name: str, chain: Chain, home: Path
) -> None:
    faults, told = REFUSED[name]
    before = stored(home)
    with running(chain.url, *faults(chain)) as proxy:
        with pytest.raises(ChainError, match=told) as caught:
            materialize(home, chain.day, proxy.url)
        assert proxy.injected, "the fault never struck"
        assert proxy.requests < 2_000, "a fault that does not pass is not asked for ever"
    assert stored(home) == before
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("name", SAVED_BY_A_SECOND)
def test_an_honest_second_endpoint_saves_the_day(name: str, chain: Chain, home: Path) -> None:
    with running(chain.url, *SAVED_BY_A_SECOND[name](chain), name="1") as bad, running(chain.url, name="2") as good:
        materialize(home, chain.day, bad.url, good.url)
    assert bad.injected, "the fault never struck"
    assert_made(home, chain)


def test_a_node_that_cannot_be_reached_is_named_and_the_second_steps_in(chain: Chain, home: Path) -> None:
    before = stored(home)
    with running(chain.url) as gone, running(chain.url, name="2") as good:
        gone.close()
        with pytest.raises(ChainError, match=r"RPC endpoint 1.* no answer"):
            materialize(home, chain.day, gone.url)
        assert stored(home) == before
        materialize(home, chain.day, gone.url, good.url)
    assert_made(home, chain)


@pytest.mark.parametrize("asked_per_second", [25, 0])
def test_25_requests_a_second_are_kept_to_or_waited_for(
    chain: Chain, home: Path, real_waits: None, asked_per_second: int
) -> None:
    with running(chain.url, rate_limit(25)) as proxy:
        materialize(home, chain.day, proxy.url, rpc_requests_per_second=asked_per_second, rpc_range_blocks=1_200)
    assert proxy.requests > 30
    # The window of the proxy and that of the client do not begin together: a few refusals are no impoliteness.
    assert proxy.injected <= 5 if asked_per_second else proxy.injected
    assert_made(home, chain)


def test_8_seconds_of_refused_connections_are_waited_out(chain: Chain, home: Path, real_waits: None) -> None:
    with running(chain.url) as proxy:
        proxy.faults = [outage(proxy, after=10, seconds=8)]
        begun = time.monotonic()
        materialize(home, chain.day, proxy.url)
        assert 8 < time.monotonic() - begun < 25
    assert_made(home, chain)


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


# kill -9

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
