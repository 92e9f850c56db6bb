"""One endpoint: batches as large as its node takes, answers in any usual dress, and a pace that the node allows."""

import threading
import time
from collections.abc import Sequence
from typing import Any, Protocol

from apeagent_pipeline.chain.answers import in_usual_dress
from apeagent_pipeline.chain.pacing import RateLimiter
from apeagent_pipeline.chain.rpc_errors import RpcError, RpcErrorKind, classify, is_hopeless

BATCH_SIZE = 100
LONGEST_WAIT = 60.0
"""Seconds. A server that asks for a longer wait is given up until then."""

Call = tuple[str, list[Any]]
"""A JSON-RPC method and its positional parameters."""

_LOOKUPS = frozenset({"eth_getBlockByNumber", "eth_getTransactionByHash", "eth_blockNumber"})
_CODE_BITS = 31
_LOST_BATCHES_BEFORE_HALVING = 2
_ANSWERS_BEFORE_GROWTH = 20
_TIMES_SENT = 3


class Provider(Protocol):
    """A way to a node; every provider of web3 is one."""

    def make_request(self, method: Any, params: Any) -> Any:
        """The response object to one call."""
        ...

    def make_batch_request(self, requests: Any) -> Any:
        """The response objects to several calls in their order, or one to all of them."""
        ...


class Endpoint:
    """One node, and what is known about it.

    Args:
        provider: Sends requests to the node.
        limiter: When requests may be sent.

    Attributes:
        requests: Requests sent so far; a batch counts once.
        calls: JSON-RPC calls sent so far; a batch counts as many as it holds.
        batch_size: Calls that the node takes in one batch, as far as known.
        answers: Requests that the node answered, be it with an error for each call.
        has_answered: Whether the node ever answered anything, be it an error.
    """

    def __init__(self, provider: Provider, limiter: RateLimiter) -> None:
        self.has_answered = False
        self._given_up: tuple[float, RpcError] | None = None
        self._lost_batches = 0
        self.answers = 0
        self._most_in_batch = BATCH_SIZE
        self.requests = 0
        self.calls = 0
        self.batch_size = BATCH_SIZE
        self._provider = provider
        self._limiter = limiter
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return str(self._provider)

    @property
    def identity(self) -> str:
        """The same for the same URL in every process; the URL cannot be computed from it."""
        return getattr(self._provider, "identity", "") or str(self._provider)

    @property
    def calls_per_second(self) -> float | None:
        """The pace at present, or None if nothing limits it."""
        return self._limiter.calls_per_second

    @property
    def learned_pace(self) -> float | None:
        """Calls a second that the node allows, or None if it refused no pace so far."""
        return self._limiter.learned_per_second

    @property
    def learned_batch_size(self) -> int | None:
        """Calls of one request that the node takes, or None if it refused no batch for its size so far."""
        return self._most_in_batch if self._most_in_batch < BATCH_SIZE else None

    def start_at(self, batch_size: int | None, calls_per_second: float | None) -> None:
        """Begin with limits that are known; None: without that limit."""
        self.batch_size = self._most_in_batch = min(batch_size or BATCH_SIZE, BATCH_SIZE)
        self._limiter.start_at(calls_per_second)

    @property
    def given_up(self) -> RpcError | None:
        """Why the endpoint is not asked at present, or None if it is."""
        if self._given_up is None or time.monotonic() >= self._given_up[0]:
            return None
        return self._given_up[1]

    def give_up(self, error: RpcError, seconds: float) -> None:
        """Ask this endpoint nothing for a while: no request could succeed."""
        self._given_up = time.monotonic() + seconds, error

    def send(self, calls: Sequence[Call]) -> list[Any]:
        """The results of several calls, sent in one batch or, to a node that does not take it, in smaller ones.

        Returns:
            One entry a call: its ``result``, which may be None, or the RpcError with which the node answered it.

        Raises:
            RpcError: if the node did not answer at all.
        """
        results: list[Any] = []
        failures = 0
        while len(results) < len(calls):
            size = min(self.batch_size, self._limiter.calls_at_once or self.batch_size)
            part = calls[len(results) : len(results) + size]
            try:
                results += self._send(part)
            except RpcError as error:
                self._heed(error)
                if self._takes_smaller(error, part):
                    continue
                # One lost part of several is no reason to ask for all of them again.
                failures += 1
                if error.kind is not RpcErrorKind.TRANSIENT or len(part) == len(calls) or failures == _TIMES_SENT:
                    raise
            else:
                failures = 0
                self._count_answer(
                    len(part), any(_is_of_kind(each, RpcErrorKind.RATE) for each in results[-len(part) :])
                )
        return results

    def _heed(self, error: RpcError) -> None:
        if error.retry_after:
            self._limiter.pause(min(error.retry_after, LONGEST_WAIT))
        elif error.kind is RpcErrorKind.RATE:
            self._limiter.slow_down()
        self.has_answered = self.has_answered or not error.is_silent

    def _takes_smaller(self, error: RpcError, part: Sequence[Call]) -> bool:
        """Make batches smaller where the node refuses them, or loses two of them one after the other."""
        if len(part) == 1:
            return False
        if error.kind is RpcErrorKind.BATCH:
            self.batch_size = self._most_in_batch = max(1, len(part) // 2)
            return True
        if not error.is_lost or not self.has_answered:
            return False
        self._lost_batches += 1
        if self._lost_batches % _LOST_BATCHES_BEFORE_HALVING:
            return False
        self.batch_size = max(1, len(part) // 2)
        return True

    def _count_answer(self, calls: int, too_fast: bool) -> None:
        self.has_answered = True
        if not too_fast:
            self._limiter.answered()
        if calls > 1:
            self._lost_batches = 0
        self.answers += 1
        if self.answers % _ANSWERS_BEFORE_GROWTH == 0:
            self.batch_size = min(2 * self.batch_size, self._most_in_batch)

    def results(self, calls: Sequence[Call]) -> list[Any]:
        """As `send`, but every call must have a result.

        Raises:
            RpcError: the first with which the node answered a call, or of kind TRANSIENT if a result is missing.
        """
        answers = self.send(calls)
        # A busy node drops single calls of a batch. Lookups are asked again alone; what belongs together is not.
        dropped = [number for number, answer in enumerate(answers) if answer is None or _may_pass(answer)]
        if len(dropped) < len(calls) and all(calls[number][0] in _LOOKUPS for number in dropped):
            for number, answer in zip(dropped, self.send([calls[number] for number in dropped]), strict=True):
                answers[number] = answer
        for (method, _), answer in zip(calls, answers, strict=True):
            if isinstance(answer, RpcError):
                raise answer
            if answer is None:
                raise RpcError(f"{self} answered {method} without a result", RpcErrorKind.TRANSIENT)
        return answers

    def _send(self, calls: Sequence[Call]) -> list[Any]:
        self._limiter.wait(len(calls))
        with self._lock:
            self.requests += 1
            self.calls += len(calls)
        if len(calls) == 1:
            return [self._result(calls[0][0], self._provider.make_request(*calls[0]))]
        refusal: RpcError | None = None
        try:
            answers = self._provider.make_batch_request(list(calls))
        except RpcError as error:
            refusal = error
        else:
            if not isinstance(answers, dict):
                results = [self._result(method, answer) for (method, _), answer in zip(calls, answers, strict=True)]
                refusal = next((each for each in results if _is_of_kind(each, RpcErrorKind.BATCH)), None)
                if refusal is None:
                    return results
            else:
                refusal = self._result("a batch", answers)
                if not isinstance(refusal, RpcError):
                    raise RpcError(f"{self} answered a batch with a single result", RpcErrorKind.TRANSIENT)
        # One answer to the whole batch: a node that takes none says so in words that fit any wrong request.
        asks_for_logs = any(method == "eth_getLogs" for method, _ in calls)
        unclear = refusal.kind in {RpcErrorKind.FATAL, RpcErrorKind.UNKNOWN} and not refusal.is_hopeless
        if unclear or (refusal.kind is RpcErrorKind.RANGE and not asks_for_logs):
            raise RpcError(str(refusal), RpcErrorKind.BATCH)
        raise refusal

    def _result(self, method: str, answer: Any) -> Any:
        error = answer.get("error")
        if error is None:
            return in_usual_dress(method, answer.get("result"))
        code = error.get("code") if isinstance(error, dict) else None
        if not isinstance(code, int) or code.bit_length() > _CODE_BITS:
            code = None
        message = str(error.get("message", error) if isinstance(error, dict) else error)
        mask = getattr(self._provider, "mask", None)
        message = mask(message) if mask else message
        kind = classify(code, message)
        if kind is RpcErrorKind.RATE:
            self._limiter.slow_down()
        told = f"{self} answered {method} with error {code}: {message}"
        return RpcError(told, kind, is_hopeless=is_hopeless(code, message))


def _may_pass(answer: Any) -> bool:
    return any(_is_of_kind(answer, kind) for kind in (RpcErrorKind.RATE, RpcErrorKind.TRANSIENT, RpcErrorKind.UNKNOWN))


def _is_of_kind(answer: Any, kind: RpcErrorKind) -> bool:
    return isinstance(answer, RpcError) and answer.kind is kind
