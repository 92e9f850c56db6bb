"""What lies around a day is asked for in one request, and call by call where a node does not answer that one."""

from collections.abc import Iterable
from typing import Any

import pytest

from apeagent_pipeline.chain.collector import DayEvents
from apeagent_pipeline_tests.chain import lying_nodes as lies
from apeagent_pipeline_tests.chain.campaign import DAY, Truth, truth
from apeagent_pipeline_tests.chain.faulty_proxy import Ask, Fault, Reply, calls_of, http_error, refuses_batches


@pytest.fixture(scope="module")
def true() -> Truth:
    return truth()


class Asked(list[list[str]]):
    """The methods of every request, in order."""

    def __call__(self, payload: Any, ask: Ask) -> Reply:
        self.append([call["method"] for call in calls_of(payload)])
        return ask(payload)

    def around(self) -> list[list[str]]:
        """The requests for what lies around a day: with states, or with more logs than those of one range."""
        return [each for each in self if "eth_call" in each or each.count("eth_getLogs") > 1]


def with_both(fault: Fault) -> Fault:
    """Strikes requests that ask for states and logs together."""

    def strikes(payload: Any, ask: Ask) -> Reply:
        methods = {call["method"] for call in calls_of(payload)}
        return fault(payload, ask) if {"eth_call", "eth_getLogs"} <= methods else ask(payload)

    return strikes


def read(true: Truth, faults: Iterable[Fault]) -> tuple[DayEvents, Asked]:
    asked = Asked()
    with lies.nodes(true.provider, [asked, *faults]) as (node,):
        found = lies.collector_of([node], range_blocks=10_000).read_events(DAY)
    assert found.swaps.equals(true.swaps)
    assert found.proof.confirmed
    return found, asked


@pytest.mark.parametrize(("faults", "by"), [([], ("chain", "state")), ([lies.no_state()], ("chain",))])
def test_one_request_tells_what_lies_around_a_day(faults: list[Fault], by: tuple[str, ...], true: Truth) -> None:
    found, asked = read(true, faults)
    assert found.proof.by == by
    assert asked.around()[0] == ["eth_call"] * 4 + ["eth_getLogs"] * 2
    if faults:
        assert len(asked.around()) == 1
        assert len(asked) == 8, "one for the chain, one for the borders, five for the logs, one around the day"


@pytest.mark.parametrize(
    "fault",
    [
        http_error(502),
        http_error(413, b"Request Entity Too Large"),
        refuses_batches(-32005, "query exceeds max block range 5"),
        refuses_batches(-32600, "Invalid Request", longer_than=1),
        refuses_batches(-32000, "something that nobody has seen before"),
    ],
)
@pytest.mark.parametrize("keeps_state", [False, True])
def test_a_node_that_does_not_answer_that_request_gives_the_same_proof(
    fault: Fault, keeps_state: bool, true: Truth
) -> None:
    found, asked = read(true, [with_both(fault), *([] if keeps_state else [lies.no_state()])])
    assert found.proof.by == (("chain", "state") if keeps_state else ("chain",))
    assert len(asked.around()) > 1


def test_logs_that_the_large_request_lacks_are_asked_for_alone(true: Truth) -> None:
    found, asked = read(true, [with_both(lies.logs_changed(lambda call, logs: [])), lies.no_state()])
    assert found.proof.by == ("chain",)
    assert ["eth_getLogs"] * 2 in asked
