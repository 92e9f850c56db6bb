"""Batches that a node refuses, shortens, sorts anew or loses: a day ends in the very same file."""

from pathlib import Path

import pytest

from apeagent_pipeline_tests.chain.faults.faults import NO_BATCHES, SHORT_BATCHES, without_timestamps
from apeagent_pipeline_tests.chain.faults.true_day import Chain, Faults, materialize, stored, survive
from apeagent_pipeline_tests.chain.faulty_proxy import (
    Answer,
    Fault,
    asked_for,
    changed_logs,
    each_answer,
    first,
    loses_answers,
    result_is,
    running,
    shuffles,
    sometimes,
)


def _of_another_block(answer: Answer) -> Answer:
    return {**answer, "result": {**answer["result"], "blockHash": "0x" + "6" * 64}}


TRANSACTIONS: dict[str, Fault] = {
    "30 % of null transactions": sometimes(0.3, result_is(None, "eth_getTransactionByHash")),
    "30 % of batches lose an answer": sometimes(0.3, asked_for("eth_getTransactionByHash", loses_answers())),
    "the transaction of another block": first(
        2, each_answer(lambda call, answer: _of_another_block(answer) if "Transaction" in call["method"] else answer)
    ),
    "batches in any order": shuffles(),
    "batches of at most 10 calls": SHORT_BATCHES["geth"],
}

SURVIVED: dict[str, Faults] = {
    "30 % of batches lose an answer": lambda chain: [sometimes(0.3, loses_answers())],
    "batches in any order": lambda chain: [shuffles()],
    **{f"batches refused with {how}": lambda chain, fault=fault: [fault] for how, fault in NO_BATCHES.items()},
    **{
        f"batches of at most 10 calls, {name}": (lambda chain, fault=fault: [fault, changed_logs(without_timestamps)])
        for name, fault in SHORT_BATCHES.items()
    },
}


@pytest.mark.parametrize("name", SURVIVED)
def test_what_can_be_survived_ends_in_the_very_same_file(name: str, chain: Chain, home: Path) -> None:
    survive(SURVIVED[name], chain, home)


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
