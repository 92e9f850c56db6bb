"""A teacher behind any OpenAI-compatible server: OpenRouter, vLLM, Ollama, llama.cpp.

Many requests run at once; the client's own retries (backoff with jitter, ``Retry-After`` honoured) carry them over
busy servers. Neither the key nor the address of the server appears in an answer or an error.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Generator, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

from aiolimiter import AsyncLimiter
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from apeagent_pipeline.distillation.chain_of_draft import SYSTEM_PROMPT
from apeagent_pipeline.distillation.teachers.teacher import Keep, PromptRow, TeacherAnswer, TeacherError, forget

if TYPE_CHECKING:
    from openai import AsyncOpenAI

# Nothing that is asked later can go better: wrong key, no money, no access, no such model or path.
_HOPELESS = {
    401: "the server refuses the key; set APEAGENT_TEACHER_API_KEY",
    402: "the account has no credit left",
    403: "the key has no access to this model; check APEAGENT_TEACHER_API_KEY and APEAGENT_TEACHER_MODEL",
    404: "no such model or path; check APEAGENT_TEACHER_MODEL and APEAGENT_TEACHER_BASE_URL",
}


class OpenAITeacherConfig(BaseModel):
    """How a server is asked. Sampling defaults are those recommended for QwQ 32B."""

    model_config = ConfigDict(frozen=True)

    temperature: float = Field(0.6, description="Sampling temperature", ge=0)
    top_p: float = Field(0.95, description="Nucleus sampling", gt=0, le=1)
    max_tokens: int = Field(8192, description="Most tokens of an answer; reasoning models need thousands", ge=1)
    concurrency: int = Field(16, description="Requests under way at once", ge=1)
    requests_per_minute: float = Field(0.0, description="Rate limit, 0: none", ge=0)
    timeout_s: float = Field(300.0, description="Longest wait for one answer, in seconds", gt=0)
    retries: int = Field(6, description="Repetitions of a request that a busy or broken server did not answer", ge=0)
    failures_in_a_row: int = Field(20, description="Give up after so many failed requests without an answer", ge=1)
    prompt_price: float = Field(0.0, description="US dollars for a million tokens read; 0: as the server says", ge=0)
    completion_price: float = Field(0.0, description="US dollars for a million tokens written", ge=0)

    @classmethod
    def preset(cls, profile: str) -> Self:
        """The values of a profile, ``demo`` or ``full``."""
        if profile == "demo":
            return cls()
        if profile == "full":
            return cls(concurrency=64)
        raise ValueError(f"profile {profile!r} is unknown; use demo or full")


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
        if not base_url.startswith(("http://", "https://")):
            raise TeacherError(
                "the teacher's address must begin with http:// or https://; set APEAGENT_TEACHER_BASE_URL"
            )
        if not model:
            raise TeacherError("the teacher's model is empty; set APEAGENT_TEACHER_MODEL, such as qwen/qwq-32b")
        self.config = config or OpenAITeacherConfig()
        self.model = model
        self.name = f"openai:{model}"
        self.identity: Mapping[str, Any] = {
            "teacher": "openai",
            "model": model,
            **self.config.model_dump(include={"temperature", "top_p", "max_tokens"}),
        }
        self._base_url = base_url
        self._api_key = SecretStr(api_key) if isinstance(api_key, str) else api_key

    def answer(
        self, prompts: Iterable[PromptRow], seed: int, keep: Keep = forget
    ) -> Generator[TeacherAnswer, None, None]:
        """Ask with the configured concurrency; answers come as they are finished.

        An interruption (Ctrl-C) stops the asking; what is under way is waited for and kept. Signals reach the main
        thread alone, so the thread that asks and keeps is never cut off in the middle.

        Raises:
            TeacherError: if the server refuses every further request, or too many fail in a row.
        """
        done: queue.SimpleQueue[TeacherAnswer | BaseException | None] = queue.SimpleQueue()
        stop = threading.Event()

        def work() -> None:
            try:
                asyncio.run(self._ask_all(prompts, seed, keep, done, stop))
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
            stop.set()
            thread.join()

    async def _ask_all(
        self,
        prompts: Iterable[PromptRow],
        seed: int,
        keep: Keep,
        done: "queue.SimpleQueue[TeacherAnswer | BaseException | None]",
        stop: threading.Event,
    ) -> None:
        from openai import AsyncOpenAI

        waiting = iter(prompts)
        limiter = AsyncLimiter(1, 60 / self.config.requests_per_minute) if self.config.requests_per_minute else None
        hopeless: list[TeacherError] = []
        failed_in_a_row = 0

        async def worker(client: "AsyncOpenAI") -> None:
            nonlocal failed_in_a_row
            while not stop.is_set():
                if limiter:
                    await limiter.acquire()
                row = next(waiting, None)
                if row is None:
                    return
                try:
                    answer = await self._ask(client, row, seed)
                except TeacherError as error:
                    hopeless.append(error)
                    stop.set()
                    return
                failed_in_a_row = failed_in_a_row + 1 if answer.finish_reason == "failed" else 0
                if answer.finish_reason != "failed":
                    keep(answer)
                done.put(answer)
                if failed_in_a_row >= self.config.failures_in_a_row:
                    hopeless.append(
                        TeacherError(
                            f"{self.name}: {failed_in_a_row} requests failed in a row, the last with {answer.error}. "
                            f"Finished answers are kept; run again when the server is back"
                        )
                    )
                    stop.set()

        key = self._api_key.get_secret_value() if self._api_key else "none"
        client = AsyncOpenAI(
            base_url=self._base_url, api_key=key, timeout=self.config.timeout_s, max_retries=self.config.retries
        )
        async with client:
            await asyncio.gather(*(worker(client) for _ in range(self.config.concurrency)))
        if hopeless:
            raise hopeless[0]

    async def _ask(self, client: "AsyncOpenAI", row: PromptRow, seed: int) -> TeacherAnswer:
        from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError

        began = time.monotonic()
        why = ""
        for repetition in range(self.config.retries + 1):
            if repetition:
                await asyncio.sleep(min(8.0, 0.25 * 2**repetition))
            try:
                completion = await client.chat.completions.create(
                    model=self.model,
                    messages=[
                        {"role": "system", "content": SYSTEM_PROMPT},
                        {"role": "user", "content": row["prompt"]},
                    ],
                    temperature=self.config.temperature,
                    top_p=self.config.top_p,
                    max_tokens=self.config.max_tokens,
                    seed=seed,
                )
                choice = completion.choices[0]
                text = choice.message.content or ""
                finish_reason = choice.finish_reason or "unknown"
            except APITimeoutError:
                return self._failed(row, f"no answer within {self.config.timeout_s:g} s", began)
            except APIConnectionError as error:
                return self._failed(row, f"no connection ({type(error.__cause__).__name__})", began)
            except APIStatusError as error:
                # The server's own words may repeat parts of the key, so only the status is told.
                if error.status_code in _HOPELESS:
                    raise TeacherError(
                        f"{self.name}: status {error.status_code}, {_HOPELESS[error.status_code]}"
                    ) from None
                return self._failed(row, f"status {error.status_code}", began)
            except (APIError, ValueError, TypeError, AttributeError, IndexError) as error:
                # Status 200 with half a JSON document, another content type, or no choice in it.
                why = f"malformed answer ({type(error).__name__})"
                continue
            return self._finished(row, text, finish_reason, completion.usage, began)
        return self._failed(row, why, began)

    def _finished(self, row: PromptRow, text: str, finish_reason: str, usage: Any, began: float) -> TeacherAnswer:
        read = getattr(usage, "prompt_tokens", None)
        written = getattr(usage, "completion_tokens", None)
        cost = getattr(usage, "cost", None)
        prices = self.config.prompt_price, self.config.completion_price
        if any(prices) and read is not None and written is not None:
            cost = (read * prices[0] + written * prices[1]) / 1e6
        known_cost = float(cost) if isinstance(cost, int | float) else None
        waited = time.monotonic() - began
        return TeacherAnswer(row["prompt_id"], text, finish_reason, read, written, known_cost, waited)

    def _failed(self, row: PromptRow, why: str, began: float) -> TeacherAnswer:
        return TeacherAnswer(row["prompt_id"], "", "failed", latency_s=time.monotonic() - began, error=why)
