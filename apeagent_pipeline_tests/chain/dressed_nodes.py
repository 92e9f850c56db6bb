"""Nodes whose answers are right but look unusual, and nodes that refuse; see `faulty_proxy` for how faults compose."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from apeagent_pipeline_tests.chain.faulty_proxy import (
    Answer,
    Ask,
    Call,
    Fault,
    HangUpError,
    Reply,
    each_answer,
    http_error,
    in_batches,
    range_limit,
    refuses_batches,
    rpc_error,
    sometimes,
)

_NUMBERS = ("blockNumber", "blockTimestamp", "logIndex", "transactionIndex", "number", "timestamp")


def json_numbers() -> Fault:
    """Quantities are JSON numbers instead of hex strings."""

    def change(call: Call, answer: Answer) -> Answer:
        result = answer.get("result")
        if isinstance(result, list):
            return {**answer, "result": [_with_numbers(each) for each in result]}
        if isinstance(result, dict):
            return {**answer, "result": _with_numbers(result)}
        is_number = call["method"] in {"eth_blockNumber", "eth_chainId"} and isinstance(result, str)
        return {**answer, "result": int(result, 16)} if is_number else answer

    return each_answer(change)


def _with_numbers(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: int(value, 16) if name in _NUMBERS and value else value for name, value in fields.items()}


def reshaped(change: Callable[[Any], Any]) -> Fault:
    """The body in another shape."""

    def fault(payload: Any, ask: Ask) -> Reply:
        reply = ask(payload)
        return replace(reply, body=change(reply.body))

    return fault


def string_ids() -> Fault:
    """Ids come back as text."""
    return reshaped(
        lambda body: (
            [{**each, "id": str(each["id"])} for each in body]
            if isinstance(body, list)
            else {**body, "id": str(body["id"])}
        )
    )


def lists_for_single_requests() -> Fault:
    """The answer to one call is a list of one answer."""
    return reshaped(lambda body: body if isinstance(body, list) else [body])


def batches_refused_by_a_list(longer_than: int) -> Fault:
    """A long batch is answered by one error in a list."""
    error = [{"jsonrpc": "2.0", "id": None, "error": {"code": -32005, "message": "too many items"}}]
    return in_batches(lambda payload, ask: Reply(error) if len(payload) > longer_than else ask(payload))


def batches_answered_in_part(longer_than: int) -> Fault:
    """Of a long batch, only the first call is answered."""

    def fault(payload: Any, ask: Ask) -> Reply:
        reply = ask(payload)
        return replace(reply, body=reply.body[:1]) if len(payload) > longer_than else reply

    return in_batches(fault)


def batches_hang_up(longer_than: int) -> Fault:
    """The connection is closed instead of answering a long batch."""

    def fault(payload: Any, ask: Ask) -> Reply:
        if len(payload) > longer_than:
            raise HangUpError
        return ask(payload)

    return in_batches(fault)


def once_in_a_while(share: float, code: int, message: str, seed: int = 1) -> Fault:
    """A share of the calls is answered by this error."""
    rng = random.Random(seed)
    error = {"code": code, "message": message}

    def change(call: Call, answer: Answer) -> Answer:
        return {"jsonrpc": "2.0", "id": answer["id"], "error": error} if rng.random() < share else answer

    return each_answer(change)


DRESSES: dict[str, list[Fault]] = {
    "JSON numbers": [json_numbers()],
    "ids as text": [string_ids()],
    "lists for single requests": [
        refuses_batches(-32600, "batch requests are not supported"),
        lists_for_single_requests(),
    ],
    "a long batch refused by an error in a list": [batches_refused_by_a_list(3)],
    "a long batch answered in part": [batches_answered_in_part(3)],
    "a long batch hangs up": [batches_hang_up(3)],
    "no eth_getCode": [rpc_error(-32601, "the method eth_getCode does not exist", "eth_getCode")],
    "503 with a JSON error": [
        sometimes(0.2, http_error(503, {"jsonrpc": "2.0", "error": {"code": -32000, "message": "no server"}}))
    ],
    "429 with Retry-After: 0": [sometimes(0.2, http_error(429, b"", {"Retry-After": "0"}))],
    **{
        f"once in a while: {message}": [once_in_a_while(0.1, code, message)]
        for code, message in [
            (-32012, "credits limited to 6000/sec"),
            (-32005, "You've exceeded the RPS limit available on the current plan."),
            (-32000, "context deadline exceeded"),
            (-32000, "method handler crashed"),
            (-32000, "block cannot be found"),
            (
                -32000,
                "can't route your request to suitable provider, if you specified certain providers revise the list",
            ),
            (-32000, "something that nobody has seen before"),
            (19, "Temporary internal error. Please retry, trace-id: abc"),
        ]
    },
    **{
        f"range limit: {message}": [range_limit(1_000, code, message)]
        for code, message in [
            (-32008, "Response is too big"),
            (-32000, "maximum [from, to] blocks distance: 1000"),
            (-32000, "GetLogs query must be smaller than size 1000"),
            (-32603, "eth_getLogs range is too large, max is 1k blocks"),
            (-32600, "Block range 5000 exceeds the range allowed for your plan (5000 > 1000)"),
            (-32000, "a limit in words that nobody has seen before"),
        ]
    },
}
