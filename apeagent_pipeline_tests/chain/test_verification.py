"""A span of which it is not certain that it lacks swaps is settled by a second source, with few requests."""

from typing import Any

import pytest

from apeagent_pipeline.chain.days import FIRST_DAY
from apeagent_pipeline_tests.chain import lying_nodes as lies
from apeagent_pipeline_tests.chain.campaign import Truth, truth
from apeagent_pipeline_tests.chain.faulty_proxy import Ask, Fault, Reply, calls_of


@pytest.fixture(scope="module")
def true() -> Truth:
    return truth(FIRST_DAY)


def read(true: Truth, *faults: Fault) -> tuple[list[Any], Any]:
    """The first day of the pool, before which no swap tells the price; every request, and the day."""
    asked: list[Any] = []

    def listen(payload: Any, ask: Ask) -> Reply:
        asked.append(calls_of(payload))
        return ask(payload)

    with lies.nodes(true.provider, [listen, lies.no_state(), *faults]) as (node,):
        found = lies.collector_of([node], range_blocks=10_000).read_events(FIRST_DAY)
    assert found.swaps.equals(true.swaps)
    return asked, found


def again(true: Truth, asked: list[Any]) -> list[Any]:
    """Requests about the first swap of the day, after the day was read and what lies around it."""
    around = next(i for i, calls in enumerate(asked) if any(call["method"] == "eth_call" for call in calls))
    return [[call["method"] for call in calls] for calls in asked[around + 1 :]]


def test_receipts_settle_in_one_request_what_another_cut_of_the_same_logs_cannot(true: Truth) -> None:
    earliest = true.swaps["block_number"][0]
    asked, found = read(true, lies.has_receipts())
    later = again(true, asked)
    assert ["eth_getBlockReceipts"] * (earliest - true.first + 1) in later
    assert {method for methods in later for method in methods} == {"eth_getBlockReceipts"}
    assert len(later) == 2, "the first swap, and one that crossed ticks of which nothing was known"
    assert not any("no swap is missing" in doubt for doubt in found.proof.doubts)


def test_without_receipts_every_other_cut_is_tried_and_the_doubt_stays(true: Truth) -> None:
    asked, found = read(true)
    cuts = [lies.range_of(call) for calls in asked for call in calls if call["method"] == "eth_getLogs"]
    earliest = true.swaps["block_number"][0]
    assert (true.first, earliest) in cuts, "narrow"
    assert any(a == true.first and earliest < b < true.first + 9_999 for a, b in cuts), "wide"
    assert any(a == true.first and b < earliest for a, b in cuts), "halves"
    assert "no swap is missing" in found.proof.doubts[0]


def test_a_swap_that_only_the_receipts_tell_is_taken(true: Truth) -> None:
    earliest = true.swaps["block_number"][0]
    _, found = read(true, lies.missing_blocks(earliest, earliest), lies.has_receipts())
    assert found.proof.repaired
