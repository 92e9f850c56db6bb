"""A teacher behind any OpenAI-compatible server: OpenRouter, vLLM, Ollama, llama.cpp.

Many requests run at once. A busy or broken server is asked again after the wait it names, which then holds back every
request, or after a growing, random one. A request that the server may have charged is written down before it is made
again. Neither the key nor the address of the server appears in an answer or an error.
"""

import asyncio
import contextlib
import queue
import random
import re
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic_core import from_json

from apeagent_pipeline.distillation.chain_of_draft import SYSTEM_PROMPT
from apeagent_pipeline.distillation.teachers.server_check import check_server
from apeagent_pipeline.distillation.teachers.server_errors import ServerRefusal, refusal
from apeagent_pipeline.distillation.teachers.server_replies import (
    LARGEST_ANSWER_BYTES,
    Reply,
    StreamedText,
    Unpacked,
    UnreadableReplyError,
    dollars,
    read_reply,
)
from apeagent_pipeline.distillation.teachers.teacher import Keep, PromptRow, TeacherAnswer, TeacherError, forget
from apeagent_pipeline.distillation.token_guess import token_guess
from apeagent_pipeline.settings import is_web_address

if TYPE_CHECKING:
    from httpx2 import AsyncByteStream, Response
    from openai import AsyncOpenAI

_LONGEST_BACKOFF_S = 30.0
_LOOK_S = 0.1  # how often a waiting request looks whether the asking was stopped
_USELESS_AT_FIRST = 5
"""Give up after so many replies that are no answers if no answer ever came: address or request must be wrong."""
_MOST_LOST = 2
"""A request is sent once more, and no more often, after the server may have charged or sent something unreadable."""
_TYPICAL_ANSWER_TOKENS = 2000
_REASONING_MODEL = re.compile(
    r"qwq|r1\b|reason|think|\bo[134]\b|gpt-oss|magistral|qwen3|glm-z|deepseek-v4", re.IGNORECASE
)
_NOT_IN_A_KEY = {
    "a quote": r"[\"'`\u2018-\u201f]",
    "a line break": r"[\r\n]",
    "a blank": r"\s",
    "a character that is not ASCII": r"[^\x21-\x7e]",
}


class OpenAITeacherConfig(BaseModel):
    """How a server is asked. Sampling defaults are those recommended for QwQ 32B."""

    model_config = ConfigDict(frozen=True)

    temperature: float = Field(0.6, description="Sampling temperature", ge=0)
    top_p: float = Field(0.95, description="Nucleus sampling", gt=0, le=1)
    max_tokens: int = Field(8192, description="Most tokens of an answer; reasoning models need thousands", ge=1)
    concurrency: int = Field(16, description="Requests under way at once", ge=1)
    requests_per_minute: float = Field(0.0, description="Rate limit, 0: none", ge=0)
    timeout_s: float = Field(
        300.0, description="Longest wait for a whole answer; with stream, for its next piece, in seconds", gt=0
    )
    patience_s: float = Field(
        900.0, description="Longest time that a request waits for a busy or broken server, in seconds", gt=0
    )
    retries: int = Field(60, description="Repetitions of a request that a busy or broken server did not answer", ge=0)
    failures_in_a_row: int = Field(20, description="Give up after so many failed requests without an answer", ge=1)
    stream: bool = Field(False, description="Receive answers piece by piece, so that a slow answer is no timeout")
    structured: bool = Field(False, description="Ask the server to enforce the form of the answer (JSON schema)")
    price: tuple[float, float] | None = Field(
        None, description="US dollars for a million tokens read and written; None: as the server says, or unknown"
    )


def is_reasoning_model(model: str) -> bool:
    """Whether a model's name says that it thinks before it answers, so that answers take minutes."""
    return _REASONING_MODEL.search(model) is not None


def openai_identity(model: str, config: OpenAITeacherConfig) -> Mapping[str, Any]:
    """What a finished answer depends on beside the prompts: the model and its sampling."""
    return {"teacher": "openai", "model": model, **config.model_dump(include={"temperature", "top_p"})}


def checked_key(api_key: SecretStr | str | None) -> SecretStr | None:
    """The key, if it can stand in a header.

    Raises:
        TeacherError: naming what is wrong with it, not the key.
    """
    if api_key is None:
        return None
    key = api_key if isinstance(api_key, str) else api_key.get_secret_value()
    wrong = {
        "a quote": r"[\"'`\u2018-\u201f]",
        "a line break": r"[\r\n]",
        "a blank": r"\s",
        "no ASCII": r"[^\x21-\x7e]",
    }
    for what, pattern in wrong.items():
        if re.search(pattern, key):
            raise TeacherError(f"the key holds {what}; set APEAGENT_TEACHER_API_KEY to the key alone")
    return SecretStr(key)


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
            TeacherError: if the address, the model or the key cannot be used.
        """
        if not is_web_address(base_url):
            raise TeacherError(
                "the teacher's address must begin with http:// or https:// and name a host; set "
                "APEAGENT_TEACHER_BASE_URL"
            )
        if not model:
            raise TeacherError("the teacher's model is empty; set APEAGENT_TEACHER_MODEL, such as qwen/qwen3-32b")
        self.config = config or OpenAITeacherConfig()
        self.model = model
        self.name = f"openai:{model}"
        self.identity = openai_identity(model, self.config)
        self.limits: Mapping[str, Any] = {"max_tokens": self.config.max_tokens}
        self.base_url = base_url
        self.api_key = checked_key(api_key)

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
        key = self.api_key.get_secret_value() if self.api_key else "none"

        def work() -> None:
            try:
                asyncio.run(asking.ask_all(self.base_url, key, prompts))
            except BaseException as error:  # handed to the caller's thread, which raises it
                done.put(error)
            finally:
                done.put(None)

        thread = threading.Thread(target=work, name=f"teacher {self.name}", daemon=True)
        thread.start()
        try:
            while (finished := done.get()) is not None:
                if isinstance(finished, BaseException):
                    raise self._with_remedy(finished)
                yield finished
        finally:
            asking.stop.set()
            thread.join()

    def _with_remedy(self, error: BaseException) -> BaseException:
        """For a model that is not offered, the names that are."""
        if not isinstance(error, TeacherError) or "no such model" not in str(error):
            return error
        found = check_server(self.base_url, self.model, self.api_key)
        return TeacherError(f"{error}. {found.problem}: {found.remedy}") if found.problem else error


@dataclass
class _Measured:
    """What answers took so far, to estimate what a server does not tell."""

    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    priced: int = 0

    def add(self, reply: Reply) -> None:
        if reply.prompt_tokens is not None and reply.completion_tokens is not None:
            self.answers += 1
            self.prompt_tokens += reply.prompt_tokens
            self.completion_tokens += reply.completion_tokens
            if reply.cost_usd is not None:
                self.priced += reply.prompt_tokens + reply.completion_tokens
                self.cost_usd += reply.cost_usd

    def read(self, prompt: str) -> int:
        if self.answers:
            return round(self.prompt_tokens / self.answers)
        return token_guess(SYSTEM_PROMPT) + token_guess(prompt)

    def written(self, most: int) -> int:
        if self.answers:
            return round(self.completion_tokens / self.answers)
        return min(most, _TYPICAL_ANSWER_TOKENS)

    def cost(self, tokens: int) -> float | None:
        return self.cost_usd * tokens / self.priced if self.priced else None


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
    answered: int = 0
    hopeless: TeacherError | None = None
    stream_options: bool = True
    measured: _Measured = field(default_factory=_Measured)

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
            event_hooks={"response": [_bound_error]},
        )
        async with AsyncOpenAI(
            base_url=base_url, api_key=key, timeout=self.config.timeout_s, max_retries=0, http_client=http
        ) as client:  # no retries of its own: they could neither be stopped nor hold back the other requests
            await asyncio.gather(*(worker(client) for _ in range(self.config.concurrency)))
        if self.hopeless:
            raise self.hopeless

    def _finish(self, answer: TeacherAnswer) -> None:
        if answer.finish_reason != "failed":
            self.keep(answer)
        if answer.finish_reason in ("failed", "lost"):
            self.failed_in_a_row += 1
        else:
            self.failed_in_a_row = 0
            self.answered += answer.finish_reason != "refused"
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
        """Ask until there is an answer, a second possible charge, or no hope within the patience."""
        began, repetition, unread, lost = time.monotonic(), 0, 0, row.get("lost_requests", 0)
        while True:
            wait, seed, options = None, self.seed, self.stream_options
            try:
                return self._answer(row, await self._request(client, row["prompt"], seed), began, client.api_key)
            except _LostError as error:
                failed, lost = self._lost(row, str(error), error.written, began), lost + 1
            except UnreadableReplyError as error:
                unread += 1
                failed = (
                    self._lost(row, str(error), None, began)
                    if error.may_have_cost
                    else self._useless(row, str(error), unread, began)
                )
                lost += error.may_have_cost
            except ServerRefusal as error:
                if self._asks_simpler(error.kind, seed, options):
                    continue
                failed, wait = self._refused(row, error, began), error.wait_s
                lost += error.kind == "lost"
                if error.kind not in ("lost", "wait"):
                    return failed
            except _NoConnectionError as error:
                failed = self._failed(row, str(error), began)
            repetition += 1
            if max(lost, unread) >= _MOST_LOST or repetition > self.config.retries:
                return failed
            if not await self._wait_before_asking_again(repetition, wait, began):
                return failed
            if failed.finish_reason == "lost":
                self.keep(failed)  # before it is sent again

    async def _request(self, client: "AsyncOpenAI", prompt: str, seed: int | None) -> Reply:
        """Send one request and read its reply.

        Raises:
            ServerRefusal: The server refused it.
            UnreadableReplyError: The reply is no completion.
            _LostError: It broke off after the server may have begun to generate.
            _NoConnectionError: It never reached the server.
        """
        from httpx2 import ConnectError, ConnectTimeout, HTTPError, PoolTimeout
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        streamed = StreamedText()
        try:
            async with asyncio.timeout(None if self.config.stream else self.config.timeout_s):
                request = client.chat.completions.with_streaming_response.create(**self._body(prompt, seed))
                async with request as response:
                    return await self._read(response.http_response, streamed)
        except APIStatusError as error:
            raise refusal(error.status_code, _error_of(error), error.response.headers, client.api_key) from None
        except (APIConnectionError, HTTPError) as error:
            cause = error.__cause__ or error
            if isinstance(cause, ConnectError | ConnectTimeout | PoolTimeout):
                raise _NoConnectionError(f"no connection ({type(cause).__name__})") from None
            if not isinstance(error, APITimeoutError):
                raise _LostError(f"the connection broke off ({type(cause).__name__})", streamed) from None
        except TimeoutError:
            pass
        piece = "piece of the " if self.config.stream else ""
        raise _LostError(f"no {piece}answer within {self.config.timeout_s:g} s", streamed) from None

    def _body(self, prompt: str, seed: int | None) -> dict[str, Any]:
        body = request_body(self.model, prompt, seed, self.config)
        if self.config.stream:
            body["stream"] = True
            if self.stream_options:
                body["stream_options"] = {"include_usage": True}
        return body

    async def _read(self, response: "Response", streamed: StreamedText) -> Reply:
        unpack = Unpacked(response.headers.get("content-encoding", ""))
        if "event-stream" not in response.headers.get("content-type", ""):
            body = b"".join([unpack(piece) async for piece in response.aiter_raw()])
            return _with_header_cost(read_reply(body), response)
        rest = b""
        pieces = response.aiter_raw()
        while True:
            async with asyncio.timeout(self.config.timeout_s):
                piece = await anext(pieces, None)
            if piece is None:
                break
            *lines, rest = (rest + unpack(piece)).split(b"\n")
            for line in lines:
                streamed.add(line.decode("utf-8", errors="replace").strip("\r"))
        streamed.add(rest.decode("utf-8", errors="replace").strip())
        reply = streamed.reply()
        if not reply.is_whole and reply.error is None and not reply.was_generated:
            raise _LostError("the stream broke off", streamed)
        return _with_header_cost(reply, response)

    async def _wait_before_asking_again(self, repetition: int, asked_for: float | None, began: float) -> bool:
        """Wait as long as the server asks for, or else longer each time; whether to ask again."""
        now = time.monotonic()
        if asked_for is None:
            until = now + min(_LONGEST_BACKOFF_S, 0.25 * 2**repetition) * random.uniform(0.5, 1)  # noqa: S311
        else:
            until = now + asked_for
        if until - began > self.config.patience_s:
            return False
        if asked_for is not None:
            self.next_request = max(self.next_request, until)
        while not self.stop.is_set() and (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, _LOOK_S))
        return await self._turn()

    def _asks_simpler(self, kind: str, seed: int | None, stream_options: bool) -> bool:
        """Leave out an option that the server does not know; whether the refused request had it."""
        if kind == "no_seed" and seed is not None:
            self.seed = None
            return True
        if kind == "no_stream_options" and self.config.stream and stream_options:
            self.stream_options = False
            return True
        return False

    def _answer(self, row: PromptRow, reply: Reply, began: float, key: str) -> TeacherAnswer:
        """What a reply is worth. What was generated is kept, whether it can be used or not."""
        is_broken = reply.error is not None or reply.finish_reason == "broken"
        said = reply.text or reply.reasoning
        if is_broken and not reply.was_generated:
            raise refusal(502, reply.error, {}, key)
        if not said and reply.finish_reason == "unknown" and not reply.was_generated and not reply.unreadable:
            raise refusal(502, "an empty answer", {}, key)
        error = reply.unreadable
        if is_broken:
            error = str(refusal(502, reply.error or "the server broke off", {}, key))
        elif not reply.is_whole:
            error = "the stream broke off"
        estimated = reply.prompt_tokens is None or reply.completion_tokens is None
        if not estimated:
            self.measured.add(reply)
        read = self.measured.read(row["prompt"]) if reply.prompt_tokens is None else reply.prompt_tokens
        written = reply.completion_tokens
        if written is None:
            written = token_guess((reply.text or "") + (reply.reasoning or ""))
        return TeacherAnswer(
            row["prompt_id"],
            "" if error else reply.text or "",
            "unusable" if error else reply.finish_reason,
            read,
            written,
            self._cost(read, written) if reply.cost_usd is None else reply.cost_usd,
            time.monotonic() - began,
            error=error,
            reasoning=reply.reasoning,
            model=reply.model,
            provider=reply.provider,
            estimated=estimated,
        )

    def _cost(self, read: int, written: int) -> float | None:
        if self.config.price:
            return (read * self.config.price[0] + written * self.config.price[1]) / 1e6
        return self.measured.cost(read + written)

    def _lost(self, row: PromptRow, why: str, streamed: StreamedText | None, began: float) -> TeacherAnswer:
        """A request that the server may have charged: what was written until it broke off, or a usual answer."""
        read = self.measured.read(row["prompt"])
        written = self.measured.written(self.config.max_tokens)
        if streamed and streamed.written:
            written = token_guess("".join(streamed.text + streamed.reasoning))
        spent = time.monotonic() - began
        cost = self._cost(read, written)
        return TeacherAnswer(row["prompt_id"], "", "lost", read, written, cost, spent, error=why, estimated=True)

    def _refused(self, row: PromptRow, error: ServerRefusal, began: float) -> TeacherAnswer:
        if error.kind == "hopeless":
            said = f" (the server says: {error.words})" if error.words else ""
            raise TeacherError(f"{self.name}: status {error.status}, {error.remedy}{said}") from None
        if error.kind == "refuse_prompt":
            spent = time.monotonic() - began
            return TeacherAnswer(row["prompt_id"], "", "refused", 0, 0, 0.0, spent, error=str(error))
        if error.kind == "lost":
            return self._lost(row, str(error), None, began)
        if error.kind == "wait":
            return self._failed(row, f"status {error.status}", began)
        return self._useless(row, str(error), _MOST_LOST, began)

    def _useless(self, row: PromptRow, why: str, times: int, began: float) -> TeacherAnswer:
        """A request that no further repetition helps."""
        if times >= _MOST_LOST and not self.answered and self.failed_in_a_row + 1 >= _USELESS_AT_FIRST:
            raise TeacherError(
                f"{self.name}: no answer came, the server sends {why}; check APEAGENT_TEACHER_BASE_URL (most end in "
                f"/v1) and APEAGENT_TEACHER_MODEL"
            )
        return self._failed(row, why, began)

    def _failed(self, row: PromptRow, why: str, began: float) -> TeacherAnswer:
        return TeacherAnswer(row["prompt_id"], "", "failed", latency_s=time.monotonic() - began, error=why)


class _NoConnectionError(Exception):
    """A request never reached the server."""


class _LostError(Exception):
    """A request broke off after the server may have begun to generate."""

    def __init__(self, why: str, written: StreamedText | None) -> None:
        super().__init__(why)
        self.written = written


def request_body(model: str, prompt: str, seed: int | None, config: OpenAITeacherConfig) -> dict[str, Any]:
    """The body of a chat completion request for one prompt."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": prompt}],
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_tokens": config.max_tokens,
    }
    return body if seed is None else {**body, "seed": seed}


def _error_of(error: Any) -> Any:
    """The error object of a refused request, in whatever place it stands."""
    document = error.body
    if isinstance(document, Mapping):
        return document.get("error") or document
    return document if isinstance(document, list) else None


def _with_header_cost(reply: Reply, response: "Response") -> Reply:
    """LiteLLM's proxy tells the cost in a header alone."""
    if reply.cost_usd is None:
        reply.cost_usd = dollars(response.headers.get("x-litellm-response-cost"))
    return reply


async def _bound_error(response: "Response") -> None:
    """Let nobody read more of a refusal than a refusal has; the client would unpack and parse it without a limit."""
    if response.status_code >= 300:
        is_packed = response.headers.get("content-encoding", "identity") != "identity"
        response.headers.pop("content-encoding", None)
        response.stream = _bounded(response.stream, is_packed)


def _bounded(stream: Any, is_packed: bool) -> "AsyncByteStream":
    from httpx2 import AsyncByteStream

    class Bounded(AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            body = bytearray()
            async for part in stream:
                body += part
                if is_packed or len(body) > LARGEST_ANSWER_BYTES:
                    return
            # The client reads it with json.loads, which ends the process at brackets as deep as Python's recursion
            # limit, and web3 sets that to 100,000. This reader has a limit of its own; what it refuses is nothing.
            with contextlib.suppress(ValueError):
                from_json(bytes(body))
                yield bytes(body)

        async def aclose(self) -> None:
            await stream.aclose()

    return Bounded()
