"""Nodes that leave events out without an error, served over real HTTP from the embedded chain."""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.chain.collector import Collector, CollectorConfig
from apeagent_pipeline.chain.embedded import EmbeddedChainProvider
from apeagent_pipeline.chain.liquidity import LIQUIDITY_TOPIC
from apeagent_pipeline.chain.rpc import MaskedHTTPProvider, RpcClient
from apeagent_pipeline_tests.chain.faulty_proxy import (
    Answer,
    Call,
    Fault,
    FaultyProxy,
    Log,
    Reply,
    calls_of,
    each_answer,
    range_of,
    rpc_error,
)


class FaultyNode(FaultyProxy):
    """A node of the embedded chain behind faults."""

    def __init__(self, provider: EmbeddedChainProvider, faults: Sequence[Fault] = (), name: str = "0") -> None:
        self._provider = provider
        super().__init__("http://127.0.0.1:1", faults, name)

    def _forward(self, payload: Any) -> Reply:
        def one(call: Call) -> Answer:
            return {**self._provider.make_request(call["method"], call["params"]), "id": call["id"]}  # type: ignore[arg-type]

        return Reply([one(call) for call in payload] if isinstance(payload, list) else one(payload))


@contextmanager
def nodes(provider: EmbeddedChainProvider, *faults: Sequence[Fault]) -> Iterator[list[FaultyNode]]:
    """One node for each list of faults; all are closed at the end."""
    found = [FaultyNode(provider, each, str(i)) for i, each in enumerate(faults, 1)]
    try:
        yield found
    finally:
        for node in found:
            node.close()


def collector_of(
    found: Sequence[FaultyProxy],
    parts: Path | None = None,
    sleep: Callable[[float], None] | None = None,
    **config: Any,
) -> Collector:
    """A collector of these nodes, which does not wait."""
    providers = [MaskedHTTPProvider(node.secret_url, f"RPC endpoint {i}") for i, node in enumerate(found, 1)]
    client = RpcClient(providers, sleep=sleep or (lambda seconds: None))
    return Collector(client, BASE_ETH_USDC, CollectorConfig(**config), parts)


def no_state() -> Fault:
    """A node that does not keep the state of past blocks, as most do not."""
    return rpc_error(-32000, "missing trie node 5d0f (path ) state is not available", "eth_call")


def no_receipts() -> Fault:
    """A node without ``eth_getBlockReceipts``; the embedded chain has none either."""
    return rpc_error(-32601, "the method eth_getBlockReceipts does not exist", "eth_getBlockReceipts")


def has_receipts() -> Fault:
    """A node with ``eth_getBlockReceipts``: its receipts hold the logs of the embedded chain, which has none itself."""

    method = "eth_getBlockReceipts"

    def logs_of(call: Call) -> Call:
        if call["method"] != method:
            return call
        (block,) = call["params"]
        return {**call, "method": "eth_getLogs", "params": [{"fromBlock": block, "toBlock": block}]}

    def fault(payload: Any, ask: Callable[[Any], Reply]) -> Reply:
        def receipts(call: Call, answer: Answer) -> Answer:
            is_told = call["method"] == method and "result" in answer
            return {**answer, "result": [{"logs": answer["result"]}]} if is_told else answer

        calls = [logs_of(call) for call in payload] if isinstance(payload, list) else logs_of(payload)
        return each_answer(receipts)(payload, lambda payload: ask(calls))

    return fault


def logs_changed(change: Callable[[Call, list[Log]], list[Log]]) -> Fault:
    """Other logs than the node has; the question is known to the change."""

    def changed(call: Call, answer: Answer) -> Answer:
        if call["method"] != "eth_getLogs" or "result" not in answer:
            return answer
        return {**answer, "result": change(call, answer["result"])}

    return each_answer(changed)


def number_of(log: Log) -> int:
    """Block of a log."""
    return int(log["blockNumber"], 16)


def pruned(before: int) -> Fault:
    """No logs of the blocks before this one."""
    return logs_changed(lambda call, logs: [log for log in logs if number_of(log) >= before])


def lagging_logs(head: int) -> Fault:
    """Logs come from a replica that has no block after its head; the head is asked of another one."""
    return logs_changed(lambda call, logs: [log for log in logs if number_of(log) <= head])


def hole(low: int, high: int) -> Fault:
    """A hole in the index: a question is answered with nothing unless it reaches beyond the hole."""
    return logs_changed(lambda call, logs: [] if low <= range_of(call)[0] and range_of(call)[1] <= high else logs)


def missing_blocks(low: int, high: int) -> Fault:
    """Logs of some blocks were lost, however they are asked for."""
    return logs_changed(lambda call, logs: [log for log in logs if not low <= number_of(log) <= high])


def sometimes_empty(share: float, seed: int = 1) -> Fault:
    """A share of the answers is an empty list."""
    rng = random.Random(seed)
    return logs_changed(lambda call, logs: [] if rng.random() < share else logs)


def sometimes_left_out(share: float, seed: int = 1) -> Fault:
    """A share of the logs is left out of each answer, other logs every time."""
    rng = random.Random(seed)
    return logs_changed(lambda call, logs: [log for log in logs if rng.random() >= share])


def always_left_out(share: float, seed: int = 1) -> Fault:
    """A share of the logs is never told."""

    def told(log: Log) -> bool:
        text = f"{seed}-{log['blockNumber']}-{log['logIndex']}"
        return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 16**8 >= share

    return logs_changed(lambda call, logs: [log for log in logs if told(log)])


def cut_at(logs: int) -> Fault:
    """Answers end after so many logs, without an error."""
    return logs_changed(lambda call, found: found[:logs])


def cut_from_the_end(logs: int) -> Fault:
    """Answers begin with the last so many logs, without an error."""
    return logs_changed(lambda call, found: found[-logs:])


def no_liquidity_changes() -> Fault:
    """ModifyLiquidity events are not told at all."""
    return logs_changed(lambda call, logs: [log for log in logs if log["topics"][0] != LIQUIDITY_TOPIC])


def large_batches_empty(longer_than: int) -> Fault:
    """Logs in a batch of more than so many calls are empty."""

    def fault(payload: Any, ask: Callable[[Any], Reply]) -> Reply:
        inner = logs_changed(lambda call, logs: []) if len(calls_of(payload)) > longer_than else None
        return inner(payload, ask) if inner else ask(payload)

    return fault
