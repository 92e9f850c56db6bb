"""A node is at fault for ever: an honest second one saves the day."""

from pathlib import Path

import pytest

from apeagent_pipeline.chain.errors import ChainError
from apeagent_pipeline_tests.chain.faults.faults import LIES, REFUSED
from apeagent_pipeline_tests.chain.faults.true_day import Chain, Faults, assert_made, materialize, stored
from apeagent_pipeline_tests.chain.faulty_proxy import (
    changed_logs,
    empty_between,
    html,
    http_error,
    lags,
    result_is,
    running,
    truncated,
)

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
