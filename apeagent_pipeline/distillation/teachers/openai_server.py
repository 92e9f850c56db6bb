"""A teacher behind any OpenAI-compatible server: OpenRouter, vLLM, Ollama, llama.cpp.

Many requests run at once. A busy or broken server is asked again after the wait it names (``Retry-After``, which then
holds back every request) or after a growing, random one. Neither the key nor the address of the server appears in an
answer or an error.
"""

import asyncio
import contextlib
import email.utils
import math
import queue
import random
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic_core import from_json

from apeagent_pipeline.distillation.chain_of_draft import SYSTEM_PROMPT
from apeagent_pipeline.distillation.teachers.teacher import Keep, PromptRow, TeacherAnswer, TeacherError, forget
from apeagent_pipeline.reporting.foreign_text import printable
from apeagent_pipeline.settings import is_web_address

if TYPE_CHECKING:
    from httpx2 import AsyncByteStream, Response
    from openai import APIStatusError, AsyncOpenAI

# Nothing that is asked later can go better: wrong key, no money, no access, no such model or path.
_HOPELESS = {
    401: "the server refuses the key; set APEAGENT_TEACHER_API_KEY",
    402: "the account has no credit left",
    403: "the key has no access to this model; check APEAGENT_TEACHER_API_KEY and APEAGENT_TEACHER_MODEL",
    404: "no such model or path; check APEAGENT_TEACHER_MODEL and APEAGENT_TEACHER_BASE_URL",
}
_BUSY = {408, 409, 425, 429}  # and everything from 500
_LONGEST_BACKOFF_S = 30.0
LARGEST_ANSWER_BYTES = 16 << 20
"""Of one answer: a hundred times what 8,192 tokens take."""
_LONGEST_WORD = 40
_LOOK_S = 0.1  # how often a waiting request looks whether the asking was stopped


class OpenAITeacherConfig(BaseModel):
    """How a server is asked. Sampling defaults are those recommended for QwQ 32B."""

    model_config = ConfigDict(frozen=True)

    temperature: float = Field(0.6, description="Sampling temperature", ge=0)
    top_p: float = Field(0.95, description="Nucleus sampling", gt=0, le=1)
    max_tokens: int = Field(8192, description="Most tokens of an answer; reasoning models need thousands", ge=1)
    concurrency: int = Field(16, description="Requests under way at once", ge=1)
    requests_per_minute: float = Field(0.0, description="Rate limit, 0: none", ge=0)
    timeout_s: float = Field(300.0, description="Longest wait for one answer, or for a busy server, in seconds", gt=0)
    retries: int = Field(6, description="Repetitions of a request that a busy or broken server did not answer", ge=0)
    failures_in_a_row: int = Field(20, description="Give up after so many failed requests without an answer", ge=1)
    price: tuple[float, float] | None = Field(
        None, description="US dollars for a million tokens read and written; None: as the server says, or unknown"
    )


def openai_identity(model: str, config: OpenAITeacherConfig) -> Mapping[str, Any]:
    """What a finished answer depends on beside the prompts: the model and its sampling."""
    return {"teacher": "openai", "model": model, **config.model_dump(include={"temperature", "top_p"})}


class OpenAITeacher:
    """A model on an OpenAI-compatible server as a ``Teacher``."""

    deterministic = False

    def __init__(
        self, base_url: str, model: str, api_key: SecretStr | str | None, config: OpenAITeacherConfig | None = None
    ) -> None:
        """Nothing is asked yet.

        Args:
            base_url: Where the server's ``/chat/completions`` lies, such as ``https://openrouter.ai/api/v1``.
            model: The server's name of the model.
            api_key: The key; None for servers that want none.
            config: How it is asked.

        Raises:
            TeacherError: if the address or the model is empty or no web address.
        """
        if not is_web_address(base_url):
            raise TeacherError(
                "the teacher's address must begin with http:// or https:// and name a host; set "
                "APEAGENT_TEACHER_BASE_URL"
            )
        if not model:
            raise TeacherError("the teacher's model is empty; set APEAGENT_TEACHER_MODEL, such as qwen/qwq-32b")
        self.config = config or OpenAITeacherConfig()
        self.model = model
        self.name = f"openai:{model}"
        self.identity = openai_identity(model, self.config)
        self.limits: Mapping[str, Any] = {"max_tokens": self.config.max_tokens}
        self._base_url = base_url
        self._api_key = SecretStr(api_key) if isinstance(api_key, str) else api_key

    def answer(
        self, prompts: Iterable[PromptRow], seed: int, keep: Keep = forget
    ) -> Generator[TeacherAnswer, None, None]:
        """Ask with the configured concurrency; answers come as they are finished.

        An interruption (Ctrl-C) stops the asking; what is under way is waited for and kept, but not repeated. Signals
        reach the main thread alone, so the thread that asks and keeps is never cut off in the middle.

        Raises:
            TeacherError: if the server refuses every further request, or too many fail in a row.
        """
        done: queue.SimpleQueue[TeacherAnswer | BaseException | None] = queue.SimpleQueue()
        asking = _Asking(self.config, self.model, self.name, seed, keep, done)
        key = self._api_key.get_secret_value() if self._api_key else "none"

        def work() -> None:
            try:
                asyncio.run(asking.ask_all(self._base_url, key, prompts))
            except BaseException as error:
                done.put(error)
            finally:
                done.put(None)

        thread = threading.Thread(target=work, name=f"teacher {self.name}", daemon=True)
        thread.start()
        try:
            while (finished := done.get()) is not None:
                if isinstance(finished, BaseException):
                    raise finished
                yield finished
        finally:
            asking.stop.set()
            thread.join()


@dataclass
class _Asking:
    """One round of questions: what its concurrent requests share."""

    config: OpenAITeacherConfig
    model: str
    name: str
    seed: int | None
    keep: Keep
    done: "queue.SimpleQueue[TeacherAnswer | BaseException | None]"
    stop: threading.Event = field(default_factory=threading.Event)
    next_request: float = 0.0  # on the clock of time.monotonic: moved by the rate limit and by a busy server
    failed_in_a_row: int = 0
    hopeless: TeacherError | None = None

    async def ask_all(self, base_url: str, key: str, prompts: Iterable[PromptRow]) -> None:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        waiting = iter(prompts)

        async def worker(client: "AsyncOpenAI") -> None:
            while await self._turn() and (row := next(waiting, None)) is not None:
                try:
                    answer = await self._ask(client, row)
                except TeacherError as error:
                    self._give_up(error)
                    return
                self._finish(answer)

        http = DefaultAsyncHttpxClient(
            follow_redirects=False,  # prompts and key go to the configured server alone
            headers={"Accept-Encoding": "identity"},
            event_hooks={"response": [_bound]},
        )
        async with AsyncOpenAI(
            base_url=base_url, api_key=key, timeout=self.config.timeout_s, max_retries=0, http_client=http
        ) as client:  # no retries of its own: they could neither be stopped nor hold back the other requests
            await asyncio.gather(*(worker(client) for _ in range(self.config.concurrency)))
        if self.hopeless:
            raise self.hopeless

    def _finish(self, answer: TeacherAnswer) -> None:
        if answer.finish_reason == "failed":
            self.failed_in_a_row += 1
        else:
            self.failed_in_a_row = 0
            self.keep(answer)
        self.done.put(answer)
        if self.failed_in_a_row >= self.config.failures_in_a_row:
            self._give_up(
                TeacherError(
                    f"{self.name}: {self.failed_in_a_row} requests failed in a row, the last with {answer.error}. "
                    f"Finished answers are kept; run again when the server is back"
                )
            )

    def _give_up(self, why: TeacherError) -> None:
        self.hopeless = self.hopeless or why
        self.stop.set()

    async def _turn(self) -> bool:
        """Wait until the next request may go out; whether it still should."""
        while not self.stop.is_set() and (wait := self.next_request - time.monotonic()) > 0:
            await asyncio.sleep(min(wait, _LOOK_S))
        if self.config.requests_per_minute:
            self.next_request = max(self.next_request, time.monotonic()) + 60 / self.config.requests_per_minute
        return not self.stop.is_set()

    async def _ask(self, client: "AsyncOpenAI", row: PromptRow) -> TeacherAnswer:
        from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError, omit

        began = time.monotonic()
        repetition = 0
        while True:
            wait, seed = None, self.seed
            try:
                # The client's own timeout is one for each packet.
                async with asyncio.timeout(self.config.timeout_s):
                    completion = await client.chat.completions.create(
                        model=self.model,
                        messages=[
                            {"role": "system", "content": SYSTEM_PROMPT},
                            {"role": "user", "content": row["prompt"]},
                        ],
                        temperature=self.config.temperature,
                        top_p=self.config.top_p,
                        max_tokens=self.config.max_tokens,
                        seed=omit if seed is None else seed,
                    )
                return self._answer(row, completion, began)
            except (APITimeoutError, TimeoutError):
                why = f"no answer within {self.config.timeout_s:g} s"
            except APIConnectionError as error:
                why = f"no connection ({type(error.__cause__).__name__})"
            except _UnboundedError as error:
                why = str(error)
            except APIStatusError as error:
                # The server's own words may repeat parts of the key, so mostly the status alone is told.
                if error.status_code in _HOPELESS:
                    raise TeacherError(
                        f"{self.name}: status {error.status_code}, {_HOPELESS[error.status_code]}"
                    ) from None
                why = f"status {error.status_code}"
                if error.status_code not in _BUSY and error.status_code < 500:
                    if seed is not None and "seed" in error.message:
                        self.seed = None  # a server that knows no seeds
                        continue
                    return self._failed(row, f"{why}: {_without_key(error.message, client.api_key)}", began)
                wait = _retry_after(error)
            except (APIError, ValueError, TypeError, LookupError, AttributeError) as error:
                # Status 200 with half a JSON document, another content type, no choice in it, or one of odd types.
                why = f"malformed answer ({type(error).__name__})"
            repetition += 1
            if repetition > self.config.retries or not await self._wait_before_asking_again(repetition, wait):
                return self._failed(row, why, began)

    async def _wait_before_asking_again(self, repetition: int, asked_for: float | None) -> bool:
        """Wait as long as the server asks for, or else longer each time; whether to ask again."""
        now = time.monotonic()
        if asked_for is None:
            until = now + min(_LONGEST_BACKOFF_S, 0.25 * 2**repetition) * random.uniform(0.5, 1)  # noqa: S311
        elif asked_for > self.config.timeout_s:
            return False
        else:
            until = now + asked_for
            self.next_request = max(self.next_request, until)
        while not self.stop.is_set() and (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, _LOOK_S))
        return await self._turn()

    def _answer(self, row: PromptRow, completion: Any, began: float) -> TeacherAnswer:
        choice = completion.choices[0]
        message = choice.message
        if choice.finish_reason in ("error", "failed"):
            raise ValueError("the server broke off")
        refusal = _text(getattr(message, "refusal", None))
        usage = completion.usage
        read, written = _count(getattr(usage, "prompt_tokens", None)), _count(getattr(usage, "completion_tokens", None))
        cost = _cost(getattr(usage, "cost", None))  # OpenRouter tells what it charged
        if cost is None and self.config.price and read is not None and written is not None:
            cost = (read * self.config.price[0] + written * self.config.price[1]) / 1e6
        return TeacherAnswer(
            row["prompt_id"],
            _text(message.content) or refusal or "",
            "refused" if refusal else (_text(choice.finish_reason) or "unknown")[:_LONGEST_WORD],
            read,
            written,
            cost,
            time.monotonic() - began,
            reasoning=_text(getattr(message, "reasoning", None) or getattr(message, "reasoning_content", None)),
        )

    def _failed(self, row: PromptRow, why: str, began: float) -> TeacherAnswer:
        return TeacherAnswer(row["prompt_id"], "", "failed", latency_s=time.monotonic() - began, error=why)


class _UnboundedError(Exception):
    """An answer is longer than any answer is, or might be once it is unpacked."""


async def _bound(response: "Response") -> None:
    """Let nobody read more of an answer than an answer has."""
    packed = response.headers.get("content-encoding", "identity")
    if packed != "identity":
        raise _UnboundedError("an answer that is packed, although that was not asked for")
    response.stream = _bounded(response.stream)


def _bounded(stream: Any) -> "AsyncByteStream":
    from httpx2 import AsyncByteStream

    class Bounded(AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            body = bytearray()
            async for part in stream:
                body += part
                if len(body) > LARGEST_ANSWER_BYTES:
                    raise _UnboundedError(f"an answer of more than {LARGEST_ANSWER_BYTES >> 20} MiB")
            # The client reads it with json.loads, which ends the process at brackets as deep as Python's recursion
            # limit, and web3 sets that to 100,000. This reader has a limit of its own; what it refuses is nothing.
            with contextlib.suppress(ValueError):
                from_json(bytes(body))
                yield bytes(body)

        async def aclose(self) -> None:
            await stream.aclose()

    return Bounded()


def _text(value: Any) -> str | None:
    """Text as a server gave it; UTF-8, and so every file, has no place for half a surrogate pair."""
    if value is not None and not isinstance(value, str):
        raise TypeError("a text that is none")
    return value and value.encode(errors="replace").decode()


def _count(value: Any) -> int | None:
    """Tokens, None if it is no such number: what a budget adds up must be one."""
    return value if type(value) is int and 0 <= value < 1 << 53 else None


def _cost(value: Any) -> float | None:
    """Dollars, None if it is no such number."""
    is_number = isinstance(value, float) or _count(value) is not None
    return float(value) if is_number and math.isfinite(value) and value >= 0 else None


def _retry_after(error: "APIStatusError") -> float | None:
    """Seconds the server asks to wait, from either form of the header (RFC 9110, section 10.2.3)."""
    value = error.response.headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError, TypeError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _without_key(text: str, key: str) -> str:
    """The beginning of a server's words, each word that shares six characters with the key masked."""
    pieces = {key[begin : begin + 6] for begin in range(max(1, len(key) - 5))}
    words = printable(text).split()
    return " ".join("***" if any(piece in word for piece in pieces) else word for word in words)[:200]
