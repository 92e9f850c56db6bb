"""JSON-RPC: retries, several endpoints, and no URL in any text.

A URL of a node usually is a password. HTTP libraries put it into exceptions and debug logs, and web3 into the name of a
provider; what leaves this module names an endpoint by its position in APEAGENT_RPC_URLS instead.
"""

import base64
import hashlib
import itertools
import logging
import random
import threading
import time
from collections.abc import Callable, Collection, Sequence
from http import HTTPStatus
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import requests
import urllib3
from pydantic import SecretStr
from pydantic_core import from_json
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from apeagent_pipeline.chain.retry_after import retry_after_seconds
from apeagent_pipeline.chain.rpc_errors import RpcError, RpcErrorKind, classify
from apeagent_pipeline.reporting.foreign_text import printable

ATTEMPTS = 8
TIMEOUT_SECONDS = 30.0
BATCH_SIZE = 100
LONGEST_ANSWER_SECONDS = 120.0
LARGEST_ANSWER_BYTES = 128 << 20
"""Unpacked. The logs of a hundred thousand swaps take a hundred million bytes."""

Call = tuple[str, list[Any]]
"""A JSON-RPC method and its positional parameters."""

Answer = dict[str, Any]
"""A JSON-RPC response object, with ``result`` or ``error``."""

T = TypeVar("T")

_LOOKUPS = frozenset({"eth_getBlockByNumber", "eth_getTransactionByHash"})
_LONGEST_WAIT = 60.0
_SHOWN_CHARACTERS = 300
_SHORTEST_SECRET = 6
_READ_AT_ONCE = 1 << 16
_CODE_BITS = 31


class Provider(Protocol):
    """A way to a node; every provider of web3 is one."""

    def make_request(self, method: Any, params: Any) -> Any:
        """The response object to one call."""
        ...

    def make_batch_request(self, requests: Any) -> Any:
        """The response objects to several calls in their order, or one to all of them."""
        ...


class MaskedHTTPProvider:
    """A provider over HTTP that tells nobody its URL.

    One request is one attempt: repeating is the client's business, which knows other endpoints.

    Args:
        url: ``http`` or ``https``.
        label: How texts name this endpoint.
    """

    def __init__(self, url: SecretStr, label: str) -> None:
        self.label = label
        self._url = url
        self._ids = itertools.count(1)
        self._secrets = _secret_parts(url.get_secret_value())
        self.identity = hashlib.sha256(b"apeagent endpoint " + url.get_secret_value().encode()).hexdigest()[:16]
        _hide_from_logs(self._secrets)
        self._thread = threading.local()

    def __str__(self) -> str:
        return self.label

    __repr__ = __str__

    def make_request(self, method: str, params: list[Any]) -> Answer:
        """Send one call.

        Raises:
            RpcError: if no JSON-RPC answer came back.
        """
        answer = self._post(self._request(method, params))
        if not isinstance(answer, dict):
            raise self._no_answer("an answer that is not one JSON-RPC object")
        return answer

    def make_batch_request(self, requests: Sequence[Call]) -> list[Answer] | Answer:
        """Send several calls at once; the answers come in the order of the calls, however the node sorts them.

        Raises:
            RpcError: if no answer came back, or answers are missing.
        """
        batch = [self._request(*call) for call in requests]
        answer = self._post(batch)
        if isinstance(answer, dict):
            return answer
        entries = answer if isinstance(answer, list) else []
        by_id = {each["id"]: each for each in entries if isinstance(each, dict) and isinstance(each.get("id"), int)}
        if by_id.keys() != {request["id"] for request in batch}:
            raise self._no_answer("a batch answer that lacks some of its requests")
        return [by_id[request["id"]] for request in batch]

    def mask(self, text: str) -> str:
        """The beginning of the text without any part of this endpoint's URL, and without control characters."""
        return printable(_without(self._secrets, text))[:_SHOWN_CHARACTERS]

    def _request(self, method: str, params: list[Any]) -> dict[str, Any]:
        return {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": params}

    def _post(self, request: Any) -> Any:
        if not hasattr(self._thread, "session"):
            self._thread.session = requests.Session()
        problem = ""
        try:
            response = self._thread.session.post(
                self._url.get_secret_value(),
                json=request,
                timeout=TIMEOUT_SECONDS,
                allow_redirects=False,  # a key must not travel to a place that was not configured
                stream=True,
            )
            body = self._read(response)
        except (requests.RequestException, urllib3.exceptions.HTTPError, UnicodeError) as error:
            problem = type(error).__name__
        if problem:
            # Raised outside the handler: the original, which carries the URL, must not travel along as a context.
            raise self._no_answer(f"no answer ({problem})")
        try:
            # Not json.loads: web3 sets Python's recursion limit to 100,000, and there a hundred thousand brackets end
            # the process. This reader has a limit of its own.
            answer = from_json(body)
        except ValueError:
            answer = None
        if response.status_code >= HTTPStatus.MULTIPLE_CHOICES and not (isinstance(answer, dict) and "error" in answer):
            raise self._http_error(response, body)
        if answer is None:
            raise self._no_answer("an answer that is not JSON")
        if response.status_code == HTTPStatus.TOO_MANY_REQUESTS:
            raise self._http_error(response, body)
        return answer

    def _read(self, response: requests.Response) -> bytes:
        """The unpacked body. The timeout of requests is one for each packet: it bounds neither length nor time."""
        until = time.monotonic() + LONGEST_ANSWER_SECONDS
        body = bytearray()
        with response:
            while part := response.raw.read1(_READ_AT_ONCE, decode_content=True):
                body += part
                if len(body) > LARGEST_ANSWER_BYTES:
                    # Of fewer blocks, or of fewer calls, the answer is shorter.
                    what = f"{self.label} gave an answer of more than {LARGEST_ANSWER_BYTES >> 20} MiB"
                    raise RpcError(what, RpcErrorKind.RANGE)
                if time.monotonic() > until:
                    raise self._no_answer(f"an answer that did not end within {LONGEST_ANSWER_SECONDS:g} s")
        return bytes(body)

    def _http_error(self, response: requests.Response, body: bytes) -> RpcError:
        text = self.mask(body[: 1 << 16].decode(errors="replace").strip())
        kind = classify(None, text, response.status_code)
        message = f"{self.label} answered HTTP {response.status_code}" + (f": {text}" if text else "")
        return RpcError(message, kind, retry_after_seconds(response.headers.get("Retry-After")))

    def _no_answer(self, what: str) -> RpcError:
        return RpcError(f"{self.label} gave {what}", RpcErrorKind.TRANSIENT)


class Pacer:
    """Spaces requests evenly, for all threads together.

    Args:
        per_second: Requests a second; 0 for no limit.
        sleep: Waits the given seconds.
    """

    def __init__(self, per_second: float, sleep: Callable[[float], None] = time.sleep) -> None:
        self._interval = 1 / per_second if per_second else 0.0
        self._sleep = sleep
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self, requests: int) -> None:
        """Wait until so many requests may be sent."""
        with self._lock:
            now = time.monotonic()
            at = max(now, self._next)
            self._next = at + requests * self._interval
        if at > now:
            self._sleep(at - now)

    def pause(self, seconds: float) -> None:
        """Let nobody send for a while: a node that refuses one thread refuses them all."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


class Endpoint:
    """One node, and what was learned about it.

    Args:
        provider: The way to the node.
        pacer: When requests may be sent.

    Attributes:
        requests: Requests sent so far; a batch counts once.
        calls: JSON-RPC calls sent so far; a batch counts as many as it holds.
        batch_size: Calls that the node takes in one batch, as far as known.
    """

    def __init__(self, provider: Provider, pacer: Pacer) -> None:
        self.requests = 0
        self.calls = 0
        self.batch_size = BATCH_SIZE
        self._provider = provider
        self._pacer = pacer
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return str(self._provider)

    @property
    def identity(self) -> str:
        """The same for the same URL in every process; the URL cannot be computed from it."""
        return getattr(self._provider, "identity", "") or str(self._provider)

    def send(self, calls: Sequence[Call]) -> list[Any]:
        """The results of several calls, sent in one batch or, to a node that does not take it, in smaller ones.

        Returns:
            One entry a call: its ``result``, which may be None, or the RpcError with which the node answered it.

        Raises:
            RpcError: if the node did not answer at all.
        """
        results: list[Any] = []
        while len(results) < len(calls):
            part = calls[len(results) : len(results) + self.batch_size]
            try:
                results += self._send(part)
            except RpcError as error:
                if error.retry_after:
                    self._pacer.pause(min(error.retry_after, _LONGEST_WAIT))
                if error.kind is not RpcErrorKind.BATCH or len(part) == 1:
                    raise
                self.batch_size = max(1, len(part) // 2)
        return results

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
        self._pacer.wait(len(calls))
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
        if refusal.kind is RpcErrorKind.FATAL or (refusal.kind is RpcErrorKind.RANGE and not asks_for_logs):
            raise RpcError(str(refusal), RpcErrorKind.BATCH)
        raise refusal

    def _result(self, method: str, answer: Any) -> Any:
        error = answer.get("error")
        if error is None:
            return answer.get("result")
        code = error.get("code") if isinstance(error, dict) else None
        if not isinstance(code, int) or code.bit_length() > _CODE_BITS:
            code = None
        message = str(error.get("message", error) if isinstance(error, dict) else error)
        if isinstance(self._provider, MaskedHTTPProvider):
            message = self._provider.mask(message)
        return RpcError(f"{self} answered {method} with error {code}: {message}", classify(code, message))


class RpcClient:
    """Asks one of several endpoints, again and elsewhere if need be.

    Args:
        providers: Of the same chain, in order of preference.
        attempts: How often each endpoint is tried before the error is raised.
        requests_per_second: JSON-RPC calls a second to each endpoint; 0 for no limit.
        sleep: Waits the given seconds; tests pass one that does not.

    Attributes:
        endpoints: In order of preference.
        retries: Attempts after the first.
    """

    def __init__(
        self,
        providers: Sequence[Provider],
        attempts: int = ATTEMPTS,
        requests_per_second: float = 0.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not providers:
            raise ValueError("an RpcClient needs at least one provider")
        self.endpoints = [Endpoint(provider, Pacer(requests_per_second, sleep)) for provider in providers]
        self.retries = 0
        self._attempts = attempts
        self._sleep = sleep
        self._current = 0
        self._lock = threading.Lock()

    def usable(self) -> list[Endpoint]:
        """The endpoints that have not been given up."""
        return list(self.endpoints)

    def stop_waiting(self) -> None:
        """Let no thread wait any longer."""

    @property
    def requests(self) -> int:
        """Requests sent so far to all endpoints; a batch counts once."""
        return sum(endpoint.requests for endpoint in self.endpoints)

    @property
    def calls(self) -> int:
        """JSON-RPC calls sent so far to all endpoints."""
        return sum(endpoint.calls for endpoint in self.endpoints)

    def call(self, method: str, *params: Any) -> Any:
        """The ``result`` of one call; ``null`` counts as a node that does not know yet, and is asked again.

        Raises:
            RpcError: as `ask`.
        """
        return self.ask(lambda endpoint: endpoint.results([(method, list(params))])[0])

    def ask(self, question: Callable[[Endpoint], T], avoid: Collection[Endpoint] = ()) -> T:
        """Put a question to an endpoint until it is answered.

        Args:
            question: Sends what it needs to the endpoint it is given and returns what it made of the answers. It raises
                an RpcError if these are no good: one of kind FATAL is final for this endpoint, others are repeated.
            avoid: Endpoints that must not answer.

        Raises:
            RpcError: the last one, after the last attempt, or at once if every endpoint gave a final one.
            ValueError: if no endpoint is left to ask.
        """
        left = [endpoint for endpoint in self.endpoints if endpoint not in avoid]
        if not left:
            raise ValueError("there is no other endpoint to ask")
        asked = len(left)

        def once() -> T:
            endpoint = self._choose(left)
            try:
                return question(endpoint)
            except RpcError as error:
                if error.kind is RpcErrorKind.FATAL:
                    left.remove(endpoint)
                self._turn_away_from(endpoint)
                raise

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            if isinstance(error, RpcError) and error.retry_after is not None:
                return 0.0  # the endpoint's pacer waits, for all threads
            # Another endpoint is asked at once; only after each of them failed is it time to wait.
            failed_rounds, within_round = divmod(state.attempt_number, asked)
            return 0.0 if within_round else _backoff(failed_rounds)

        return Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, RpcError) and bool(left)),
            stop=stop_after_attempt(self._attempts * asked),
            wait=wait,
            sleep=self._sleep,
            before_sleep=self._count_retry,
            reraise=True,
        )(once)

    def _choose(self, left: Sequence[Endpoint]) -> Endpoint:
        preferred = self.endpoints[self._current]
        return preferred if preferred in left else left[0]

    def _turn_away_from(self, endpoint: Endpoint) -> None:
        with self._lock:
            # Another thread may already have moved on.
            if self.endpoints[self._current] is endpoint:
                self._current = (self._current + 1) % len(self.endpoints)

    def _count_retry(self, state: RetryCallState) -> None:
        with self._lock:
            self.retries += 1


def _may_pass(answer: Any) -> bool:
    return _is_of_kind(answer, RpcErrorKind.RATE) or _is_of_kind(answer, RpcErrorKind.TRANSIENT)


def _is_of_kind(answer: Any, kind: RpcErrorKind) -> bool:
    return isinstance(answer, RpcError) and answer.kind is kind


def _backoff(failed_rounds: int) -> float:
    return min(30.0, 0.5 * 2 ** (failed_rounds - 1)) + random.uniform(0, 0.5)  # noqa: S311 - not a secret


def _secret_parts(url: str) -> list[str]:
    split = urlsplit(url)
    parts = {
        url,
        split.netloc,
        split.hostname or "",
        split.username or "",
        split.password or "",
        split.path,
        split.query,
    }
    parts |= set(split.path.split("/")) | {value for _, value in parse_qsl(split.query)}
    # Also as a server sees them, and may echo them: unquoted, and the login as the header holds it.
    parts |= {unquote(part) for part in parts}
    login = f"{unquote(split.username or '')}:{unquote(split.password or '')}"
    parts.add(base64.b64encode(login.encode()).decode() if split.username else "")
    # Longest first, so that a part does not break up the whole; a very short one would mask ordinary words.
    return sorted((part for part in parts if len(part) >= _SHORTEST_SECRET), key=len, reverse=True)


def _without(secrets: Sequence[str], text: str) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


class _SecretFilter(logging.Filter):
    """Masks parts of URLs in the records of a logger; urllib3 writes each request's path on its debug level."""

    def __init__(self) -> None:
        super().__init__()
        self.secrets: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = _without(self.secrets, record.getMessage()), None
        return True


_filter = _SecretFilter()


def _hide_from_logs(secrets: Sequence[str]) -> None:
    _filter.secrets = sorted({*_filter.secrets, *secrets}, key=len, reverse=True)
    for name in ("urllib3.connectionpool", "urllib3.util.retry"):
        logging.getLogger(name).addFilter(_filter)
