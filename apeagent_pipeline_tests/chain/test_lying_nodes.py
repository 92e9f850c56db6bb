"""A day is complete and proven, or it is not called complete, whatever nodes leave out."""

import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import polars as pl
import pytest

from apeagent_pipeline.chain.collector import DayEvents
from apeagent_pipeline.chain.days import FIRST_DAY
from apeagent_pipeline.chain.errors import ChainError
from apeagent_pipeline_tests.chain import lying_nodes as lies
from apeagent_pipeline_tests.chain.campaign import DAY, Truth, run, truth
from apeagent_pipeline_tests.chain.dressed_nodes import DRESSES
from apeagent_pipeline_tests.chain.faulty_proxy import Fault, hangs_up, html, http_error, range_limit, rpc_error

SECRET = "s3cr3t"


@pytest.fixture(scope="module")
def true() -> Truth:
    return truth()


def read(true: Truth, *faults: list[Fault], day: date = DAY, parts: Path | None = None) -> DayEvents:
    with lies.nodes(true.provider, *faults) as found:
        return lies.collector_of(found, parts).read_events(day)


LIES: dict[str, tuple[Callable[[Truth], list[Fault]], str]] = {
    "pruned altogether": (lambda true: [lies.pruned(true.last + 10**6)], "knows no swap on"),
    "pruned until the morning": (lambda true: [lies.pruned(true.first + 10_000)], "pruned"),
    "logs of a replica that lags": (lambda true: [lies.lagging_logs(true.first + 20_000)], "lag"),
    "blocks lost from the index": (
        lambda true: [lies.missing_blocks(true.first + 20_000, true.first + 20_300)],
        "price",
    ),
    "3 % of the logs never told": (lambda true: [lies.always_left_out(0.03)], "price"),
}

REPAIRED: dict[str, Callable[[Truth], list[Fault]]] = {
    "a hole in the index": lambda true: [lies.hole(true.first + 17_000, true.first + 23_000)],
    "30 % of the answers empty": lambda true: [lies.sometimes_empty(0.3)],
    "3 % of the answers empty, 100 blocks at a time": lambda true: [
        range_limit(100, -32602, "Block range limit exceeded."),
        lies.sometimes_empty(0.03),
    ],
    "3 % of the logs left out, others each time": lambda true: [lies.sometimes_left_out(0.03)],
    "20 % of the logs left out, others each time": lambda true: [lies.sometimes_left_out(0.2)],
    "large batches answered with nothing": lambda true: [lies.large_batches_empty(3)],
}


@pytest.mark.parametrize("name", LIES)
@pytest.mark.parametrize("keeps_state", [False, True])
def test_one_endpoint_that_lacks_swaps_fails_the_day_and_the_error_says_why(
    name: str, keeps_state: bool, true: Truth
) -> None:
    faults, told = LIES[name]
    with pytest.raises(ChainError, match=told) as caught:
        read(true, [*faults(true), *([] if keeps_state else [lies.no_state()])])
    assert "APEAGENT_RPC_URLS" in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", REPAIRED)
def test_one_endpoint_that_lies_now_and_then_is_read_again(name: str, true: Truth) -> None:
    found = read(true, REPAIRED[name](true))
    assert found.swaps.equals(true.swaps)
    assert found.proof.confirmed
    assert "state" in found.proof.by


@pytest.mark.parametrize("name", [*LIES, *REPAIRED])
def test_an_honest_second_endpoint_completes_the_day(name: str, true: Truth) -> None:
    faults = LIES[name][0](true) if name in LIES else REPAIRED[name](true)
    found = read(true, [lies.no_state(), *faults], [lies.no_state()])
    assert found.swaps.equals(true.swaps)
    assert found.proof.confirmed


@pytest.mark.slow
def test_a_node_that_leaves_logs_out_now_and_then_costs_hundreds_of_requests_and_not_thousands(true: Truth) -> None:
    for seed in range(3):
        with lies.nodes(true.provider, [lies.sometimes_left_out(0.03, seed)]) as (node,):
            assert lies.collector_of([node]).read_events(DAY).swaps.equals(true.swaps)
            assert node.requests < 900


def test_honest_nodes_cost_few_requests_more_and_the_proof_is_told(true: Truth) -> None:
    with lies.nodes(true.provider, [], [lies.no_state()], [lies.no_state()]) as (with_state, without, second):
        found = lies.collector_of([with_state]).read_events(DAY)
        assert (found.proof.by, found.proof.doubts) == (("chain", "state"), ())
        assert found.proof.explained == found.proof.pairs == found.swaps.height
        assert with_state.requests <= 12
        assert lies.collector_of([without]).read_events(DAY).proof.by == ("chain",)
        assert without.requests <= 13
        without.requests = 0
        found = lies.collector_of([without, second]).read_events(DAY)
        assert found.proof.by == ("chain", "second endpoint")
        assert without.requests + second.requests <= 16


def test_a_day_at_whose_end_nothing_can_be_known_is_unconfirmed(true: Truth) -> None:
    cut = true.last - 300
    found = read(true, [lies.no_state(), lies.lagging_logs(cut)])
    assert found.swaps.height < true.swaps.height
    assert not found.proof.confirmed
    assert "no swap is missing" in found.proof.doubts[0]


def test_an_empty_day_is_believed_if_the_pool_stored_the_same_price_before_and_after(true: Truth) -> None:
    before = FIRST_DAY - timedelta(days=30)
    found = read(true, [], day=before)
    assert found.swaps.is_empty()
    assert found.proof.confirmed
    with pytest.raises(ChainError, match="nothing confirms"):
        read(true, [lies.no_state()], day=before)


def test_ranges_of_an_endpoint_that_is_gone_are_read_again(true: Truth, tmp_path: Path) -> None:
    broken = true.first + 30_000
    fails = [rpc_error(-32601, "no", "eth_getLogs")]
    with lies.nodes(true.provider, [lies.always_left_out(0.1)], []) as (liar, honest):
        plain = list(liar.faults)
        liar.faults = [*plain, lambda payload, ask: fails[0](payload, ask) if _asks(payload, broken) else ask(payload)]
        with pytest.raises(ChainError):
            lies.collector_of([liar], tmp_path, parallel=1).read_events(DAY)
        assert list(tmp_path.rglob("*.parquet"))
        found = lies.collector_of([honest], tmp_path).read_events(DAY)
        assert found.swaps.equals(true.swaps)
        assert found.proof.repaired == 0, "nothing of the first endpoint was taken"
    assert not list(tmp_path.iterdir())


def _asks(payload: object, block: int) -> bool:
    calls = payload if isinstance(payload, list) else [payload]
    return any(call["method"] == "eth_getLogs" and lies.range_of(call)[0] == block for call in calls)


@pytest.mark.parametrize("name", DRESSES)
def test_right_answers_in_an_unusual_form_are_read(name: str, true: Truth) -> None:
    with lies.nodes(true.provider, DRESSES[name]) as (node,):
        found = lies.collector_of([node]).read_events(DAY)
        assert node.injected, "the fault never struck"
    assert found.swaps.equals(true.swaps)


@pytest.mark.parametrize(
    ("faults", "told"),
    [
        ([hangs_up()], "gave no answer"),
        ([http_error(429, b'{"error":{"code":429,"message":"Monthly capacity limit exceeded."}}')], "Monthly capacity"),
        ([rpc_error(4444, "pruned history unavailable", "eth_getLogs")], "pruned history"),
        ([http_error(429, b"", {"Retry-After": "3600"})], "asks for no requests until"),
        ([http_error(401, b"unknown key")], "401"),
    ],
)
def test_a_hopeless_endpoint_is_given_up_within_seconds_once_for_all_days(
    faults: list[Fault], told: str, true: Truth
) -> None:
    with lies.nodes(true.provider, faults) as (node,):
        collector = lies.collector_of([node], sleep=time.sleep)
        begun = time.monotonic()
        for i in range(3):
            with pytest.raises(ChainError, match=told):
                collector.read_day(DAY + timedelta(days=i))
        assert time.monotonic() - begun < 10


@pytest.mark.parametrize("answered", [12, 14, 16, 20, 40])
@pytest.mark.parametrize("dies_with", [http_error(401, b"unknown key"), hangs_up()])
def test_the_only_endpoint_may_die_while_the_day_is_verified(answered: int, dies_with: Fault, true: Truth) -> None:
    asked = 0

    def dies(payload: object, ask: Callable[[object], object]) -> object:
        nonlocal asked
        asked += 1
        return ask(payload) if asked <= answered else dies_with(payload, ask)  # type: ignore[arg-type]

    with lies.nodes(true.provider, [lies.sometimes_left_out(0.1), dies]) as (node,):  # type: ignore[list-item]
        try:
            found = lies.collector_of([node]).read_events(DAY)
        except ChainError:
            return
        assert not found.proof.confirmed or found.swaps.equals(true.swaps)


@pytest.mark.parametrize(("fault", "told"), [(http_error(502), "502"), (html(), "not JSON"), (http_error(429), "429")])
def test_an_endpoint_that_never_answers_properly_is_waited_for_once_for_all_days(
    fault: Fault, told: str, true: Truth
) -> None:
    waited: list[float] = []
    with lies.nodes(true.provider, [fault]) as (node,):
        collector = lies.collector_of([node], sleep=waited.append)
        with pytest.raises(ChainError, match=told):
            collector.read_day(DAY)
        first, asked = sum(waited), node.requests
        for i in (1, 2):
            with pytest.raises(ChainError, match=told):
                collector.read_day(DAY + timedelta(days=i))
    assert 30 < first < 75, "a gateway may come back within a minute"
    assert (sum(waited), node.requests) == (first, asked)


def test_a_head_that_stands_still_does_not_end_the_day_if_another_endpoint_goes_on(true: Truth) -> None:
    def stuck(method: str) -> Fault:
        stale = {"result": None}

        def change(call: dict[str, object], answer: dict[str, object]) -> dict[str, object]:
            params = call["params"]
            is_tag = call["method"] == method and isinstance(params, list) and params[0] in {"finalized", "safe"}
            return {**answer, **stale} if is_tag else answer

        block = true.provider.make_request("eth_getBlockByNumber", [hex(true.first + 10), False])  # type: ignore[arg-type]
        stale["result"] = block["result"]
        return lies.each_answer(change)

    found = read(true, [stuck("eth_getBlockByNumber")], [])
    assert found.swaps.equals(true.swaps)


@pytest.mark.slow
def test_a_few_runs_of_the_campaign_are_never_incomplete_and_complete(true: Truth) -> None:
    runs = [run(seed, true) for seed in range(1_000, 1_012)]
    assert not [each for each in runs if each.missing and each.state == "confirmed"]
    assert any(each.state == "confirmed" for each in runs)
    assert isinstance(true.swaps, pl.DataFrame)
