"""JSON-RPC over HTTP: several endpoints, retries, and no URL in any text.

The URL of a node usually is a password. HTTP libraries put it into exceptions and debug logs, and web3 into the name of
a provider. Texts of this module name an endpoint by its position in APEAGENT_RPC_URLS instead.
"""

import hashlib
import itertools
import logging
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, TypeVar

import requests
import urllib3
from pydantic import SecretStr
from pydantic_core import from_json

from apeagent_pipeline.chain.endpoint import BATCH_SIZE, LONGEST_WAIT, Call, Endpoint, Provider
from apeagent_pipeline.chain.masking import hide_from_logs, secret_parts, without
from apeagent_pipeline.chain.pacing import RateLimiter
from apeagent_pipeline.chain.retry_after import retry_after_seconds
from apeagent_pipeline.chain.rpc_errors import RpcError, RpcErrorKind, classify, is_hopeless
from apeagent_pipeline.reporting.foreign_text import printable

__all__ = ["ATTEMPTS", "BATCH_SIZE", "Call", "Endpoint", "MaskedHTTPProvider", "Provider", "RateLimiter", "RpcClient"]

_log = logging.getLogger(__name__)

ATTEMPTS = 8
TIMEOUT_SECONDS = 20.0
LONGEST_ANSWER_SECONDS = 30.0
LARGEST_ANSWER_BYTES = 128 << 20
"""Unpacked. The logs of a hundred thousand swaps take a hundred million bytes."""

Answer = dict[str, Any]
"""A JSON-RPC response object, with ``result`` or ``error``."""

T = TypeVar("T")

_ATTEMPTS_AT_FIRST, _ATTEMPTS_AT_UNKNOWN = 4, 6
_PATIENCE_SECONDS, _PATIENCE_AT_FIRST = 60.0, 35.0
_GIVEN_UP_SECONDS, _HOPELESS_SECONDS = 120.0, 600.0
_SECONDS_WORTH_TELLING, _SECONDS_BETWEEN_NEWS = 2.0, 10.0
_SHOWN_CHARACTERS = 300
_READ_AT_ONCE = 1 << 16
_LARGEST_CODE = 1 << 31
_DECIMAL = re.compile("[0-9]{1,18}")


class MaskedHTTPProvider:
    """A provider over HTTP whose texts never show its URL.

    One request is one attempt. The client repeats it, because it knows other endpoints.

    Args:
        url: ``http`` or ``https``.
        label: How texts name this endpoint.
    """

    def __init__(self, url: SecretStr, label: str) -> None:
        self.label = label
        self._url = url
        self._ids = itertools.count(1)
        self._secrets = secret_parts(url.get_secret_value())
        self.identity = hashlib.sha256(b"apeagent endpoint " + url.get_secret_value().encode()).hexdigest()[:16]
        hide_from_logs(self._secrets)
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
        if isinstance(answer, list) and len(answer) == 1:
            answer = answer[0]
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
        entries = [each for each in answer if isinstance(each, dict)] if isinstance(answer, list) else []
        if len(entries) == 1 < len(batch) and entries[0].get("error") is not None:
            return entries[0]
        by_id = {_number(each.get("id")): each for each in entries}
        if not by_id.keys() >= {request["id"] for request in batch}:
            what = "a batch answer that lacks some of its requests"
            raise RpcError(f"{self.label} gave {what}", RpcErrorKind.TRANSIENT, is_lost=True)
        return [by_id[request["id"]] for request in batch]

    def mask(self, text: str) -> str:
        """The beginning of the text without any part of this endpoint's URL, and without control characters."""
        return printable(without(self._secrets, text))[:_SHOWN_CHARACTERS]

    def _request(self, method: str, params: list[Any]) -> dict[str, Any]:
        return {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": params}

    def _post(self, request: Any) -> Any:
        if not hasattr(self._thread, "session"):
            self._thread.session = _session_for(self._url.get_secret_value())
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
            raise self._no_answer(f"no answer ({problem})", is_silent=True)
        try:
            # Not json.loads: web3 sets Python's recursion limit to 100,000, and there a hundred thousand brackets end
            # the process. This reader has a limit of its own.
            answer = from_json(body)
        except ValueError:
            answer = None
        if response.status_code >= HTTPStatus.MULTIPLE_CHOICES and not _has_answers(answer):
            raise self._http_error(response, body, answer)
        if answer is None:
            raise self._no_answer("an answer that is not JSON")
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
                    what = f"an answer that did not end within {LONGEST_ANSWER_SECONDS:g} s"
                    raise self._no_answer(what, is_silent=True)
        return bytes(body)

    def _http_error(self, response: requests.Response, body: bytes, answer: Any) -> RpcError:
        """One error from the HTTP status and, if the body holds one, the JSON-RPC error."""
        error = answer[0] if isinstance(answer, list) and len(answer) == 1 else answer
        error = error.get("error") if isinstance(error, dict) else None
        code = error.get("code") if isinstance(error, dict) else None
        code = code if isinstance(code, int) and abs(code) < _LARGEST_CODE else None
        told = str(error.get("message", error) if isinstance(error, dict) else error or "")
        text = self.mask(told or body[: 1 << 16].decode(errors="replace").strip())
        status = response.status_code
        message = f"{self.label} answered HTTP {status}" + (f": {text}" if text else "")
        wait = retry_after_seconds(response.headers.get("Retry-After"))
        hopeless = is_hopeless(code, text, status)
        return RpcError(message, classify(code, text, status), wait, is_hopeless=hopeless)

    def _no_answer(self, what: str, *, is_silent: bool = False) -> RpcError:
        return RpcError(f"{self.label} gave {what}", RpcErrorKind.TRANSIENT, is_silent=is_silent)


class RpcClient:
    """Asks one of several endpoints, again and elsewhere if need be.

    Args:
        providers: Of the same chain, in order of preference.
        attempts: How often each endpoint is tried before the error is raised; half as often if it never answered.
        requests_per_second: JSON-RPC calls a second to each endpoint; 0 for no limit.
        sleep: Waits the given seconds; tests pass a function that does not.

    Attributes:
        endpoints: In order of preference.
        retries: Attempts after the first.
        tell: Called with a line for the screen whenever something is waited for.
    """

    def __init__(
        self,
        providers: Sequence[Provider],
        attempts: int = ATTEMPTS,
        requests_per_second: float = 0.0,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        if not providers:
            raise ValueError("an RpcClient needs at least one provider")
        self._stopped = threading.Event()
        self._sleep = sleep or self._sleep_until_stopped
        self.endpoints = [Endpoint(provider, RateLimiter(requests_per_second, self._sleep)) for provider in providers]
        self.retries = 0
        self.tell: Callable[[str], None] = _log.warning
        self._attempts = attempts
        self._current = 0
        self._told = 0.0
        self._lock = threading.Lock()

    def _sleep_until_stopped(self, seconds: float) -> None:
        self._stopped.wait(seconds)

    def usable(self) -> list[Endpoint]:
        """The endpoints that have not been given up."""
        return [endpoint for endpoint in self.endpoints if endpoint.given_up is None]

    def stop_waiting(self) -> None:
        """Let waiting threads fail at once: another one has failed for good."""
        self._stopped.set()

    def resume(self) -> None:
        """Let threads wait again, after `stop_waiting`."""
        self._stopped.clear()

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
        allowed = [endpoint for endpoint in self.endpoints if endpoint not in avoid]
        if not allowed:
            raise ValueError("there is no other endpoint to ask")
        left = [endpoint for endpoint in allowed if endpoint.given_up is None]
        if not left:
            raise next(endpoint.given_up for endpoint in allowed if endpoint.given_up is not None)
        failures: Counter[Endpoint] = Counter()
        answers = {endpoint: endpoint.answers for endpoint in left}
        begun = time.monotonic()
        while True:
            endpoint = self._choose(left)
            try:
                return question(endpoint)
            except RpcError as error:
                failures[endpoint] += 1
                self._turn_away_from(endpoint)
                if self._is_final(endpoint, error, failures[endpoint], time.monotonic() - begun):
                    left.remove(endpoint)
                    is_dead = error.kind is not RpcErrorKind.FATAL and endpoint.answers == answers[endpoint]
                    if is_dead and endpoint.given_up is None:
                        # In all that time it answered no other thread either: other days need not try.
                        endpoint.give_up(error, _GIVEN_UP_SECONDS)
                if not left or self._stopped.is_set():
                    raise endpoint.given_up or error from None
                self._count_retry()
                self._wait(endpoint, error, failures, left)

    def _is_final(self, endpoint: Endpoint, error: RpcError, failures: int, seconds: float) -> bool:
        """Whether an endpoint is not asked again for this question, or, given up, for any."""
        if error.retry_after is not None and error.retry_after > LONGEST_WAIT:
            at = datetime.now(UTC) + timedelta(seconds=error.retry_after)
            told = f"{error}: it asks for no requests until {at:%H:%M} UTC on {at.date()}. Run the command again then"
            endpoint.give_up(RpcError(told, RpcErrorKind.FATAL, is_hopeless=True), error.retry_after)
            return True
        if error.is_hopeless:
            endpoint.give_up(error, _HOPELESS_SECONDS)
            return True
        if error.kind is RpcErrorKind.FATAL:
            return True
        attempts = self._attempts if endpoint.has_answered else min(self._attempts, _ATTEMPTS_AT_FIRST)
        patience = _PATIENCE_SECONDS if endpoint.has_answered else _PATIENCE_AT_FIRST
        if error.kind is RpcErrorKind.UNKNOWN:
            attempts = min(attempts, _ATTEMPTS_AT_UNKNOWN)
        return failures >= attempts or (error.is_silent and seconds > patience)

    def _wait(self, endpoint: Endpoint, error: RpcError, failures: Counter[Endpoint], left: Sequence[Endpoint]) -> None:
        # Another endpoint is asked at once. Only after each of them failed is it time to wait.
        rounds = min(failures[each] for each in left)
        if error.retry_after:
            seconds = error.retry_after  # the endpoint's limiter waits, for all threads
        elif len(left) > 1 and any(failures[each] < failures[endpoint] for each in left):
            return
        else:
            seconds = _backoff(max(rounds, 1))
        with self._lock:
            now = time.monotonic()
            is_news = seconds >= _SECONDS_WORTH_TELLING or error.is_silent
            is_news = is_news and now - self._told >= _SECONDS_BETWEEN_NEWS
            self._told = now if is_news else self._told
        if is_news:
            self.tell(f"waiting {seconds:.0f} s, because {error}")
        if not error.retry_after:
            self._sleep(seconds)

    def _choose(self, left: Sequence[Endpoint]) -> Endpoint:
        preferred = self.endpoints[self._current]
        return preferred if preferred in left else left[0]

    def _turn_away_from(self, endpoint: Endpoint) -> None:
        with self._lock:
            # Another thread may already have moved on.
            if self.endpoints[self._current] is endpoint:
                self._current = (self._current + 1) % len(self.endpoints)

    def _count_retry(self) -> None:
        with self._lock:
            self.retries += 1


def _backoff(failed_rounds: int) -> float:
    return min(30.0, 0.5 * 2 ** (failed_rounds - 1)) + random.uniform(0, 0.5)  # noqa: S311 - not a secret


def _session_for(url: str) -> requests.Session:
    """A session with the environment's proxies, certificates and netrc, which requests looks up for every request."""
    session = requests.Session()
    found = session.merge_environment_settings(url, {}, None, None, None)
    session.proxies, session.verify, session.cert = found["proxies"], found["verify"], found["cert"]
    session.auth = requests.utils.get_netrc_auth(url)
    session.trust_env = False
    return session


def _number(request_id: Any) -> int | float | None:
    """The id of an answer as a number, though some nodes send it back as text; None for anything else."""
    if isinstance(request_id, str) and _DECIMAL.fullmatch(request_id):
        return int(request_id)
    return request_id if isinstance(request_id, int | float) else None


def _has_answers(body: Any) -> bool:
    """Whether a batch was answered call by call, whatever the HTTP status."""
    return isinstance(body, list) and len(body) > 1
