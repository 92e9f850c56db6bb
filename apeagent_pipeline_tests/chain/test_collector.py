"""A day over real HTTP is the day, or an error."""

import json
import logging
import random
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import SecretStr

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.chain.collector import Collector, WrongChainError
from apeagent_pipeline.chain.days import FIRST_DAY, day_bounds
from apeagent_pipeline.chain.errors import ChainError, DayNotFinalError, ReorganisedError
from apeagent_pipeline.chain.events import check_raw_swaps, empty_raw_swaps
from apeagent_pipeline.chain.range_size import RangeSize
from apeagent_pipeline.chain.rpc import Call, MaskedHTTPProvider, RateLimiter, RpcClient
from apeagent_pipeline.chain.rpc_errors import RpcError, RpcErrorKind
from apeagent_pipeline_tests.chain.conftest import SECRET, Node


@pytest.fixture
def day(two_days: pl.DataFrame) -> pl.DataFrame:
    return two_days.filter(pl.col("block_timestamp").dt.date() == FIRST_DAY)


def every(n: int, answer: Any) -> Callable[[str, list[Any]], Any]:
    count = 0

    def fault(method: str, params: list[Any]) -> Any:
        nonlocal count
        count += 1
        return answer if count % n == 0 else None

    return fault


def error(code: int, message: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "error": {"code": code, "message": message}}


def blocks_asked(params: list[Any]) -> int:
    return int(params[0]["toBlock"], 16) - int(params[0]["fromBlock"], 16) + 1


def test_over_http_the_day_is_what_it_is_in_process(node: Node, day: pl.DataFrame) -> None:
    collector = node.collector()
    seen: list[tuple[int, int]] = []
    found = collector.read_day(FIRST_DAY, lambda done, total, **metrics: seen.append((done, total)))
    assert found.equals(day)
    check_raw_swaps(found, FIRST_DAY)
    assert seen[-1] == (43_200, 43_200)
    assert collector.client.requests <= 20


def test_neighbouring_days_have_neither_gap_nor_overlap(node: Node, two_days: pl.DataFrame) -> None:
    collector = node.collector()
    first, second = (collector.block_range(FIRST_DAY + timedelta(days=i)) for i in range(2))
    assert first[1] + 1 == second[0]
    start, end = day_bounds(FIRST_DAY)
    assert 2 * first[0] + 1_686_789_347 >= start
    assert 2 * first[1] + 1_686_789_347 < end
    assert two_days.select(pl.struct("block_number", "log_index").is_unique().all()).item()


@pytest.mark.parametrize("limit", [100, 5_000, 777])
def test_a_limit_on_the_range_only_costs_requests(node: Node, day: pl.DataFrame, limit: int) -> None:
    def fault(method: str, params: list[Any]) -> Any:
        if method == "eth_getLogs" and blocks_asked(params) > limit:
            return error(-32602, "Block range limit exceeded.")
        return None

    node.fault = fault
    assert node.collector(range_blocks=20_000).read_day(FIRST_DAY).equals(day)


def test_a_limit_on_the_number_of_results_only_costs_requests(node: Node, day: pl.DataFrame) -> None:
    def fault(method: str, params: list[Any]) -> Any:
        if method != "eth_getLogs" or len(node.provider.make_request(method, params)["result"]) <= 50:
            return None
        return error(-32005, "query returned more than 50 results")

    node.fault = fault
    assert node.collector().read_day(FIRST_DAY).equals(day)


def test_a_range_whose_answer_never_arrives_whole_is_split(node: Node, day: pl.DataFrame) -> None:
    def fault(method: str, params: list[Any]) -> Any:
        cut = method == "eth_getLogs" and blocks_asked(params) > 1_500
        return (200, {}, b'[{"jsonrpc": "2.0", "id": 7, "result": [{"addr') if cut else None

    node.fault = fault
    assert node.collector().read_day(FIRST_DAY).equals(day)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("hash", "../../elsewhere", "expected 32 bytes"),
        ("hash", None, "expected 32 bytes"),
        ("timestamp", "0xfffffffffff", "no time"),
        ("timestamp", "soon", "expected a hex number"),
        ("number", "-0x1", "expected a hex number"),
        ("number", 5, "with block 5 instead of"),
        ("number", True, "expected a hex number"),
    ],
)
def test_a_header_that_is_none_is_refused(node: Node, field: str, value: Any, expected: str, tmp_path: Path) -> None:
    node.change = lambda method, result: {**result, field: value} if method == "eth_getBlockByNumber" else result
    with pytest.raises(RpcError, match=expected):
        node.collector(parts=tmp_path / "parts").read_day(FIRST_DAY)
    assert not list(tmp_path.iterdir())


def test_answers_that_grow_too_large_make_the_range_smaller() -> None:
    size = RangeSize(5_000)
    size.answered(5_000, 100_000)
    assert size.blocks == 500
    size.answered(500, 10_000)
    assert size.blocks == 500


def test_a_single_block_that_is_refused_is_named(node: Node) -> None:
    node.fault = lambda method, params: error(-32602, "block range too large") if method == "eth_getLogs" else None
    with pytest.raises(ChainError, match=r"single block \d+"):
        node.collector(range_blocks=4, parallel=1).read_day(FIRST_DAY)


@pytest.mark.parametrize(
    "answer",
    [
        (429, {"Retry-After": "1"}, b"slow down"),
        (502, {}, b"<html>Bad gateway</html>"),
        (200, {}, b"<html>not json</html>"),
        (200, {}, b'{"jsonrpc": "2.0", "resu'),
        (200, {}, b"[]"),
        {"jsonrpc": "2.0", "result": None},
        {"jsonrpc": "2.0"},
        error(-32005, "rate limit exceeded"),
        error(-32603, "internal error"),
    ],
)
def test_passing_trouble_is_waited_out(node: Node, day: pl.DataFrame, answer: Any) -> None:
    dice = random.Random(1)
    asked_once_a_request = ("eth_getLogs", "eth_chainId")
    node.fault = lambda method, params: answer if method in asked_once_a_request and dice.random() < 0.2 else None
    collector = node.collector(range_blocks=2_000)
    assert collector.read_day(FIRST_DAY).equals(day)
    assert collector.client.retries >= 1


def test_a_server_that_says_when_to_come_back_is_believed(node: Node) -> None:
    waits: list[float] = []
    node.fault = every(2, (429, {"Retry-After": "7"}, b""))
    client = RpcClient([MaskedHTTPProvider(node.url, "RPC endpoint 1")], sleep=waits.append)
    for _ in range(4):
        assert client.call("eth_chainId") == "0x2105"
    assert {round(seconds) for seconds in waits if seconds} == {7}


def test_a_date_to_come_back_at_is_understood(node: Node) -> None:
    waits: list[float] = []
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    node.fault = every(2, (503, {"Retry-After": later}, b""))
    client = RpcClient([MaskedHTTPProvider(node.url, "RPC endpoint 1")], sleep=waits.append)
    assert [client.call("eth_chainId") for _ in range(2)] == ["0x2105"] * 2
    assert max(waits) == pytest.approx(30, abs=2)


def test_a_redirect_is_not_followed(node: Node) -> None:
    node.fault = lambda method, params: (307, {"Location": "http://127.0.0.1:1/"}, b"")
    with pytest.raises(RpcError, match="HTTP 307"):
        RpcClient([MaskedHTTPProvider(node.url, "RPC endpoint 1")]).call("eth_chainId")


def test_trouble_that_does_not_pass_fails_the_day_after_a_bounded_number_of_attempts(node: Node) -> None:
    node.fault = lambda method, params: (503, {}, b"") if method == "eth_getLogs" else None
    with pytest.raises(RpcError, match="RPC endpoint 1 answered HTTP 503") as caught:
        node.collector().read_day(FIRST_DAY)
    assert caught.value.kind is RpcErrorKind.TRANSIENT
    assert node.requests.count("eth_getLogs") <= 8 * 9


def test_a_request_that_is_wrong_is_not_repeated(node: Node) -> None:
    node.fault = lambda method, params: error(-32601, "method not found") if method == "eth_getLogs" else None
    with pytest.raises(RpcError, match="method not found") as caught:
        node.collector(parallel=1).read_day(FIRST_DAY)
    assert caught.value.kind is RpcErrorKind.FATAL
    assert node.requests.count("eth_getLogs") <= 9


@pytest.mark.parametrize("answer", [(500, {}, b""), (401, {}, b"who are you"), (429, {}, b"")])
def test_another_endpoint_steps_in(new_node: Callable[[], Node], day: pl.DataFrame, answer: Any) -> None:
    bad, good = new_node(), new_node()
    bad.fault = lambda method, params: answer
    assert bad.collector(good).read_day(FIRST_DAY).equals(day)
    bad.server.shutdown()
    bad.server.server_close()
    assert bad.collector(good).read_day(FIRST_DAY).equals(day)


def test_a_node_without_timestamps_in_its_logs_is_asked_for_headers_in_batches(node: Node, day: pl.DataFrame) -> None:
    def change(method: str, result: Any) -> Any:
        if method != "eth_getLogs":
            return result
        return [{name: value for name, value in log.items() if name != "blockTimestamp"} for log in result]

    node.change = change
    node.shuffles_batches = True
    collector = node.collector()
    assert collector.read_day(FIRST_DAY).equals(day)
    assert collector.client.requests < 60


HEADERS: list[Call] = [("eth_getBlockByNumber", [hex(number), False]) for number in range(5, 25)]


def numbers_of(client: RpcClient) -> list[int]:
    return [int(block["number"], 16) for block in client.ask(lambda endpoint: endpoint.results(HEADERS))]


def test_what_a_busy_node_dropped_from_a_batch_is_asked_again_alone(node: Node) -> None:
    dropped = every(3, error(-32005, "rate limit exceeded"))
    node.fault = lambda method, params: dropped(method, params) if len(node.requests) <= len(HEADERS) else None
    client = RpcClient([MaskedHTTPProvider(node.url, "RPC endpoint 1")], attempts=1)
    assert numbers_of(client) == list(range(5, 25))
    assert client.calls == len(HEADERS) + len(HEADERS) // 3


def test_batches_that_lack_an_answer_are_asked_again(node: Node) -> None:
    sent, first = node.answer, iter([(200, {}, b"[]")])
    node.answer = lambda request: next(first, None) or sent(request)
    client = RpcClient([MaskedHTTPProvider(node.url, "RPC endpoint 1")], sleep=lambda seconds: None)
    assert numbers_of(client) == list(range(5, 25))
    assert client.retries == 1


@pytest.mark.parametrize("largest", [1, 3, 10])
@pytest.mark.parametrize(
    "refusal",
    [
        (200, {}, json.dumps(error(-32600, "Invalid Request")).encode()),
        (200, {}, json.dumps(error(-32005, "batch limit exceeded")).encode()),
        (413, {}, b"Request Entity Too Large"),
        (400, {}, b"too many requests in batch"),
    ],
)
def test_a_node_that_takes_no_or_only_small_batches_gets_such(node: Node, largest: int, refusal: Any) -> None:
    sent = node.answer
    node.answer = lambda request: refusal if isinstance(request, list) and len(request) > largest else sent(request)
    client = RpcClient([MaskedHTTPProvider(node.url, "RPC endpoint 1")], attempts=1)
    assert numbers_of(client) == list(range(5, 25))
    assert client.endpoints[0].batch_size <= largest


def test_requests_are_spaced_for_all_threads_together() -> None:
    limiter = RateLimiter(per_second=200)
    begun = time.monotonic()
    with ThreadPoolExecutor(4) as executor:
        list(executor.map(limiter.wait, [2] * 10))
    assert time.monotonic() - begun >= 18 / 200


@pytest.mark.parametrize("missing", [{"finalized"}, {"finalized", "safe"}])
@pytest.mark.parametrize("how", ["error", "null"])
def test_a_node_without_finality_tags_falls_back(node: Node, day: pl.DataFrame, missing: set[str], how: str) -> None:
    def fault(method: str, params: list[Any]) -> Any:
        if method == "eth_getBlockByNumber" and params[0] in missing:
            return error(-39001, "unknown tag") if how == "error" else {"jsonrpc": "2.0", "result": None}
        return None

    node.fault = fault
    assert node.collector().read_day(FIRST_DAY).equals(day)


@pytest.mark.parametrize("ahead", [0, 1, 40])
def test_a_day_that_is_not_final_says_when_it_will_be(node: Node, ahead: int) -> None:
    day = date(2025, 1, 26) + timedelta(days=ahead)
    with pytest.raises(
        DayNotFinalError, match=rf"{day} is not final until about 00:2\d UTC on {day + timedelta(days=1)}"
    ):
        node.collector().read_day(day)


def test_a_day_before_the_pool_is_a_typed_empty_table(node: Node) -> None:
    assert node.collector().read_day(date(2024, 5, 1)).equals(empty_raw_swaps())


def test_another_chain_and_a_chain_without_the_contract_are_refused(new_node: Callable[[], Node]) -> None:
    other, bare = new_node(), new_node()
    other.change = lambda method, result: "0x1" if method == "eth_chainId" else result
    bare.change = lambda method, result: "0x" if method == "eth_getCode" else result
    with pytest.raises(WrongChainError, match="serves chain 1, expected 8453"):
        other.collector().read_day(FIRST_DAY)
    with pytest.raises(WrongChainError, match="PoolManager"):
        bare.collector().read_day(FIRST_DAY)


def _with_logs(change: Callable[[list[Any]], list[Any]]) -> Callable[[str, Any], Any]:
    return lambda method, result: change(result) if method == "eth_getLogs" and result else result


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda logs: [{**logs[0], "address": "0x" + "1" * 40}, *logs[1:]], "another contract"),
        (lambda logs: [{**logs[0], "removed": True}, *logs[1:]], "removed"),
        (lambda logs: [{**logs[0], "blockNumber": "0x1"}, *logs[1:]], "with a log of block 1"),
        (lambda logs: [*logs, {**logs[0], "transactionHash": "0x" + "9" * 64}], "twice"),
        (lambda logs: [*logs, {**logs[0], "blockHash": "0x" + "9" * 64, "logIndex": "0x0"}], "two hashes"),
    ],
)
def test_a_node_that_lies_is_not_believed(
    new_node: Callable[[], Node], day: pl.DataFrame, change: Callable[[list[Any]], list[Any]], expected: str
) -> None:
    liar, honest = new_node(), new_node()
    liar.change = _with_logs(change)
    with pytest.raises(ChainError, match=f"RPC endpoint 1: .*{expected}"):
        liar.collector().read_day(FIRST_DAY)
    assert liar.collector(honest).read_day(FIRST_DAY).equals(day)


def test_ranges_answered_with_nothing_are_asked_of_another_endpoint(
    new_node: Callable[[], Node], day: pl.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    empty, honest = new_node(), new_node()
    empty.change = lambda method, result: [] if method == "eth_getLogs" else result
    assert empty.collector(honest).read_day(FIRST_DAY).equals(day)
    assert "RPC endpoint 1 left out" in caplog.text
    honest.server.shutdown()
    honest.server.server_close()
    with pytest.raises(ChainError, match=r"RPC endpoint 1 knows no swap on .*, and nothing confirms that"):
        empty.collector(honest).read_day(FIRST_DAY)


def test_a_node_whose_head_lags_behind_the_range_is_not_believed(
    new_node: Callable[[], Node], day: pl.DataFrame
) -> None:
    lagging, honest = new_node(), new_node()
    lagging.change = lambda method, result: "0x1" if method == "eth_blockNumber" else result
    with pytest.raises(RpcError, match="RPC endpoint 1: the node lags: its head is block 1"):
        lagging.collector().read_day(FIRST_DAY)
    assert lagging.collector(honest).read_day(FIRST_DAY).equals(day)


def test_blocks_replaced_while_they_are_read_start_the_day_anew(node: Node, day: pl.DataFrame, tmp_path: Path) -> None:
    last = node.collector().block_range(FIRST_DAY)[1]
    seen = 0

    def change(method: str, result: Any) -> Any:
        nonlocal seen
        if method == "eth_getBlockByNumber" and int(result["number"], 16) == last:
            seen += 1
            return {**result, "hash": f"0x{min(seen, reorganisations):064x}"}
        return result

    node.change = change
    reorganisations = 3
    collector = node.collector()
    assert collector.read_day(FIRST_DAY).equals(day)
    reorganisations, seen = 100, 0
    with pytest.raises(ReorganisedError, match=f"another hash for block {last}"):
        collector.read_day(FIRST_DAY)


@pytest.mark.parametrize("finished", [4, 8])
def test_finished_ranges_survive_a_failure(node: Node, day: pl.DataFrame, tmp_path: Path, finished: int) -> None:
    first, _ = node.collector().block_range(FIRST_DAY)
    broken = hex(first + 5_000 * finished)

    def fault(method: str, params: list[Any]) -> Any:
        return error(-32601, "no") if method == "eth_getLogs" and params[0]["fromBlock"] == broken else None

    node.fault = fault
    with pytest.raises(RpcError):
        node.collector(parts=tmp_path, parallel=1).read_day(FIRST_DAY)
    kept = list(tmp_path.glob("*/*.parquet"))
    assert len(kept) >= finished
    kept[0].write_bytes(b"half a file")
    node.fault = lambda method, params: None
    node.requests.clear()
    assert node.collector(parts=tmp_path, parallel=1).read_day(FIRST_DAY).equals(day)
    missing, around = 9 - (len(kept) - 1), 2
    assert node.requests.count("eth_getLogs") == missing + around
    assert not list(tmp_path.iterdir())


def test_a_range_size_falls_to_the_limit_and_grows_back() -> None:
    limit, size, refusals = 100, RangeSize(5_000), 0
    for _ in range(1_000):
        if size.blocks > limit:
            size.refused(size.blocks, None)
            refusals += 1
        else:
            size.answered(size.blocks, 1)
    assert size.splits == refusals < 25
    assert 80 <= size.blocks <= 110
    for _ in range(170):
        size.answered(size.blocks, 1)
    assert size.blocks == 5_000
    size.refused(5_000, 64)
    assert size.blocks == 64


def test_identical_duplicates_and_disorder_are_put_right(node: Node, day: pl.DataFrame) -> None:
    node.change = _with_logs(lambda logs: [*logs[::-1], logs[0], logs[3]])
    assert node.collector().read_day(FIRST_DAY).equals(day)


def test_an_answer_that_is_no_list_of_logs_is_an_error(node: Node) -> None:
    node.change = lambda method, result: {} if method == "eth_getLogs" else result
    with pytest.raises(ChainError, match="expected a list"):
        node.collector().read_day(FIRST_DAY)


def test_no_part_of_the_url_reaches_a_log_or_an_error(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    texts = []
    echo = f"bad key {SECRET} in {node.url.get_secret_value()}"
    for answer in [(500, {}, echo.encode()), (403, {}, echo.encode()), error(-32601, echo), (200, {}, echo.encode())]:
        node.fault = lambda method, params, answer=answer: answer
        with pytest.raises(RpcError) as caught:
            node.collector().read_day(FIRST_DAY)
        texts.append("".join(traceback.format_exception(caught.value)))
    node.server.shutdown()
    node.server.server_close()
    dead = MaskedHTTPProvider(SecretStr(node.url.get_secret_value()), "RPC endpoint 1")
    collector = Collector(RpcClient([dead], sleep=lambda seconds: None), BASE_ETH_USDC)
    with pytest.raises(RpcError, match="no answer") as caught:
        collector.read_day(FIRST_DAY)
    assert caught.value.__context__ is None
    texts += ["".join(traceback.format_exception(caught.value)), str(dead), repr(dead), caplog.text]
    for text in texts:
        assert SECRET not in text
        assert node.url.get_secret_value() not in text
