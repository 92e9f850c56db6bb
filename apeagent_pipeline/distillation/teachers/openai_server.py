"""A teacher behind any OpenAI-compatible server: OpenRouter, vLLM, Ollama, llama.cpp.

Many requests run at once. A busy or broken server is asked again after the wait it names, which then holds back every
request, or after a growing, random one. A request that the server may have charged is written down before it is made
again. Neither the key nor the address of the server appears in an answer or an error.
"""

import asyncio
import queue
import random
import threading
import time
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from apeagent_pipeline.distillation.teachers.answer_books import AnswerBooks
from apeagent_pipeline.distillation.teachers.server_check import check_server
from apeagent_pipeline.distillation.teachers.server_config import (
    OpenAITeacherConfig,
    checked_key,
    openai_identity,
    request_body,
)
from apeagent_pipeline.distillation.teachers.server_errors import ServerRefusal, bound_refusal, error_of, refusal
from apeagent_pipeline.distillation.teachers.server_replies import (
    Reply,
    StreamedText,
    Unpacked,
    UnreadableReplyError,
    dollars,
    read_reply,
)
from apeagent_pipeline.distillation.teachers.teacher import Keep, PromptRow, TeacherAnswer, TeacherError, forget
from apeagent_pipeline.settings import is_web_address

if TYPE_CHECKING:
    from httpx2 import Response
    from openai import AsyncOpenAI

_LONGEST_BACKOFF_S = 30.0
_LOOK_S = 0.1  # how often a waiting request looks whether the asking was stopped
_USELESS_AT_FIRST = 5
"""Give up after so many replies that are no answers if no answer ever came: address or request must be wrong."""
_MOST_LOST = 2
"""A request is sent once more, and no more often, after the server may have charged or sent something unreadable."""


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
    books: AnswerBooks = field(init=False)

    def __post_init__(self) -> None:
        self.books = AnswerBooks(self.config)

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
            event_hooks={"response": [bound_refusal]},
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
                    f"Finished answers are kept; run the command again when the server is back"
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
                reply = await self._request(client, row["prompt"], seed)
                return self.books.answer(row, reply, time.monotonic() - began, client.api_key)
            except _LostError as error:
                failed, lost = self.books.lost(row, str(error), time.monotonic() - began, error.written), lost + 1
            except UnreadableReplyError as error:
                unread += 1
                failed = (
                    self.books.lost(row, str(error), time.monotonic() - began)
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
            raise refusal(error.status_code, error_of(error), error.response.headers, client.api_key) from None
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

    def _refused(self, row: PromptRow, error: ServerRefusal, began: float) -> TeacherAnswer:
        if error.kind == "hopeless":
            said = f" (the server says: {error.words})" if error.words else ""
            raise TeacherError(f"{self.name}: status {error.status}, {error.remedy}{said}") from None
        if error.kind == "refuse_prompt":
            spent = time.monotonic() - began
            return TeacherAnswer(row["prompt_id"], "", "refused", 0, 0, 0.0, spent, error=str(error))
        if error.kind == "lost":
            return self.books.lost(row, str(error), time.monotonic() - began)
        if error.kind == "wait":
            return self._failed(row, f"status {error.status}", began)
        return self._useless(row, str(error), _MOST_LOST, began)

    def _useless(self, row: PromptRow, why: str, times: int, began: float) -> TeacherAnswer:
        """The answer to a request that another retry would not help; a server that never answered ends the run."""
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


def _with_header_cost(reply: Reply, response: "Response") -> Reply:
    """LiteLLM's proxy tells the cost in a header alone."""
    if reply.cost_usd is None:
        reply.cost_usd = dollars(response.headers.get("x-litellm-response-cost"))
    return reply
