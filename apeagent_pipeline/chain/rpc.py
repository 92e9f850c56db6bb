"""JSON-RPC through web3's providers: retries, several endpoints, and no URL in any text.

A URL of a node usually is a password. web3 and requests put it into exceptions, ``str(provider)`` and debug logs; what
leaves this module names an endpoint by its position in APEAGENT_RPC_URLS instead.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import requests
from pydantic import SecretStr
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter
from web3 import HTTPProvider
from web3.providers.base import BaseProvider
from web3.types import RPCEndpoint, RPCResponse

from apeagent_pipeline.chain.rpc_errors import RpcError, RpcErrorKind, classify

ATTEMPTS = 8
TIMEOUT_SECONDS = 30.0
BATCH_SIZE = 100

_LONGEST_WAIT = 60.0
_SHOWN_CHARACTERS = 300
_SHORTEST_SECRET = 6


class MaskedHTTPProvider(HTTPProvider):
    """web3's HTTP provider without its habit of telling everybody the URL.

    One request is one attempt: repeating is the client's business, which knows other endpoints.

    Args:
        url: ``http`` or ``https``.
        label: How texts name this endpoint.
    """

    def __init__(self, url: SecretStr, label: str) -> None:
        super().__init__(url.get_secret_value(), exception_retry_configuration=None)
        self.label = label
        self._secrets = _secret_parts(url.get_secret_value())
        _hide_from_logs(self._secrets)
        self._thread = threading.local()

    def __str__(self) -> str:
        return self.label

    __repr__ = __str__

    def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        """Send one request.

        Raises:
            RpcError: if no JSON-RPC answer came back.
        """
        answer = self._post(self.encode_rpc_request(method, params))
        if not isinstance(answer, dict):
            raise self._no_answer("an answer that is not one JSON-RPC object")
        return RPCResponse(**answer)

    def make_batch_request(self, requests: list[tuple[RPCEndpoint, Any]]) -> list[RPCResponse] | RPCResponse:
        """Send several requests at once; the answers come in the order of the requests, however the node sorts them.

        Raises:
            RpcError: if no answer came back, or answers are missing.
        """
        data = self.encode_batch_rpc_request(requests)
        answer = self._post(data)
        if isinstance(answer, dict):
            return RPCResponse(**answer)
        by_id = {entry.get("id"): entry for entry in answer if isinstance(entry, dict)} if answer else {}
        wanted = [request["id"] for request in json.loads(data)]
        if len(by_id) != len(wanted) or any(number not in by_id for number in wanted):
            raise self._no_answer("a batch answer that lacks some of its requests")
        return [RPCResponse(**by_id[number]) for number in wanted]

    def mask(self, text: str) -> str:
        """The text without any part of this endpoint's URL."""
        return _without(self._secrets, text)[:_SHOWN_CHARACTERS]

    def _post(self, data: bytes) -> Any:
        if not hasattr(self._thread, "session"):
            self._thread.session = requests.Session()
        problem = ""
        try:
            response = self._thread.session.post(
                self.endpoint_uri, data=data, headers={"Content-Type": "application/json"}, timeout=TIMEOUT_SECONDS
            )
        except requests.RequestException as error:
            problem = type(error).__name__
        if problem:
            # Raised outside the handler: the original, which carries the URL, must not travel along as a context.
            raise self._no_answer(f"no answer ({problem})")
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if response.status_code >= HTTPStatus.BAD_REQUEST and not (isinstance(answer, dict) and "error" in answer):
            raise self._http_error(response)
        if answer is None:
            raise self._no_answer("an answer that is not JSON")
        if response.status_code == HTTPStatus.TOO_MANY_REQUESTS:
            raise self._http_error(response)
        return answer

    def _http_error(self, response: requests.Response) -> RpcError:
        text = self.mask(response.text.strip())
        kind = classify(None, text, response.status_code)
        message = f"{self.label} answered HTTP {response.status_code}" + (f": {text}" if text else "")
        return RpcError(message, kind, _retry_after(response.headers.get("Retry-After")))

    def _no_answer(self, what: str) -> RpcError:
        return RpcError(f"{self.label} gave {what}", RpcErrorKind.TRANSIENT)


class RpcClient:
    """Asks one of several endpoints, again and elsewhere if need be.

    Args:
        providers: web3 providers of the same chain in order of preference.
        attempts: How often a request is tried in all before the error is raised.
        sleep: Waits the given seconds; tests pass one that does not.

    Attributes:
        requests: JSON-RPC requests sent so far; a batch counts once.
        retries: Attempts after the first.
    """

    def __init__(
        self, providers: Sequence[BaseProvider], attempts: int = ATTEMPTS, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        if not providers:
            raise ValueError("an RpcClient needs at least one provider")
        self.requests = 0
        self.retries = 0
        self._providers = list(providers)
        self._attempts = attempts
        self._sleep = sleep
        self._current = 0
        self._lock = threading.Lock()

    def call(self, method: str, *params: Any, required: bool = True) -> Any:
        """The ``result`` of one request.

        Args:
            method: JSON-RPC method.
            params: Its parameters, positional.
            required: Whether ``null`` counts as a node that does not know yet, and is asked again.

        Raises:
            RpcError: after the last attempt, or at once if it makes no sense to ask again.
        """

        def ask(provider: BaseProvider) -> Any:
            return self._result(provider, method, provider.make_request(RPCEndpoint(method), list(params)), required)

        return self._attempt(ask)

    def call_many(self, method: str, params: Sequence[Sequence[Any]]) -> list[Any]:
        """The results of the same method for many parameters, in batches, none of them ``null``.

        Raises:
            RpcError: as `call`.
        """
        results: list[Any] = []
        for start in range(0, len(params), BATCH_SIZE):
            batch = [(RPCEndpoint(method), list(values)) for values in params[start : start + BATCH_SIZE]]

            def ask(provider: BaseProvider, batch: list[tuple[RPCEndpoint, Any]] = batch) -> list[Any]:
                answers = provider.make_batch_request(batch)  # type: ignore[attr-defined]
                if isinstance(answers, dict):
                    return [self._result(provider, method, answers, True)]
                return [self._result(provider, method, answer, True) for answer in answers]

            results += self._attempt(ask)
        return results

    def _attempt(self, ask: Callable[[BaseProvider], Any]) -> Any:
        refused: set[int] = set()

        def once() -> Any:
            with self._lock:
                self.requests += 1
                index = self._current
            try:
                return ask(self._providers[index])
            except RpcError as error:
                if error.kind is not RpcErrorKind.RANGE:
                    if error.kind is RpcErrorKind.FATAL:
                        refused.add(index)
                    self._turn_away_from(index)
                raise

        def worth_repeating(error: BaseException) -> bool:
            if not isinstance(error, RpcError) or error.kind is RpcErrorKind.RANGE:
                return False
            return error.kind is not RpcErrorKind.FATAL or len(refused) < len(self._providers)

        return Retrying(
            retry=retry_if_exception(worth_repeating),
            stop=stop_after_attempt(self._attempts),
            wait=_wait,
            sleep=self._sleep,
            before_sleep=self._count_retry,
            reraise=True,
        )(once)

    def _turn_away_from(self, index: int) -> None:
        with self._lock:
            # Another thread may already have moved on.
            if self._current == index:
                self._current = (index + 1) % len(self._providers)

    def _count_retry(self, state: RetryCallState) -> None:
        with self._lock:
            self.retries += 1

    def _result(self, provider: BaseProvider, method: str, answer: Any, required: bool) -> Any:
        error = answer.get("error")
        if error is not None:
            code = error.get("code") if isinstance(error, dict) else None
            message = str(error.get("message", error) if isinstance(error, dict) else error)
            if isinstance(provider, MaskedHTTPProvider):
                message = provider.mask(message)
            raise RpcError(f"{provider} answered {method} with error {code}: {message}", classify(code, message))
        if "result" not in answer or (required and answer["result"] is None):
            raise RpcError(f"{provider} answered {method} without a result", RpcErrorKind.TRANSIENT)
        return answer["result"]


_backoff = wait_exponential_jitter(initial=0.5, max=30, jitter=0.5)


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, RpcError) else None
    return _backoff(state) if asked is None else min(asked, _LONGEST_WAIT)


def _retry_after(header: str | None) -> float | None:
    # Seconds only; the other form, a date, is not used by any provider seen, and plain backoff covers it.
    try:
        return max(float(header), 0.0) if header else None
    except ValueError:
        return None


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
    for name in ("urllib3.connectionpool", "urllib3.util.retry", "web3.providers.HTTPProvider"):
        logging.getLogger(name).addFilter(_filter)
