"""The engines that generate answers: llama.cpp's server in this process, or transformers. Both answer greedily."""

import queue
import secrets
import threading
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from apeagent_pipeline.errors import ApeagentError
from apeagent_pipeline.student.generation import Messages, Student

CONTEXT_TOKENS = 4096
_BATCH = 8
"""Tokens that llama.cpp may be ahead of whoever reads them; so many are generated for a client that went away."""


class EngineError(ApeagentError, RuntimeError):
    """The engine cannot load the model, or refuses a question, such as one that is too long."""


class Engine(Protocol):
    """Generates the likeliest answer to a chat."""

    name: str

    def stream(self, messages: Messages, max_new_tokens: int) -> Generator[str]:
        """The answer, about one token a piece; closing it stops the generation.

        Raises:
            EngineError: the chat is too long.
        """


class LlamaCppEngine:
    """A GGUF file in llama.cpp's own server, through the optional package xllamacpp.

    The server also listens on a port of 127.0.0.1, where answers would not be checked: a random key closes it.
    """

    name = "llama.cpp"

    def __init__(self, gguf: Path, threads: int = 0, *, lora: Path | None = None) -> None:
        """Load the file.

        Args:
            gguf: The merged model, or the base.
            threads: Of the CPU; 0: llama.cpp's own choice.
            lora: The adapter as a GGUF file of its own, for the base.

        Raises:
            EngineError: xllamacpp is not installed, or the file cannot be loaded.
        """
        if not find_spec("xllamacpp"):
            raise EngineError("the engine llama.cpp needs xllamacpp: pip install 'apeagent_pipeline[serve]'")
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(gguf)
        parameters.n_ctx, parameters.n_parallel, parameters.port = CONTEXT_TOKENS, 1, 0
        parameters.api_keys = [secrets.token_urlsafe()]
        parameters.verbosity = -1
        if lora is not None:
            parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
        if threads:
            parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
        try:
            self._server = xllamacpp.Server(parameters)
        except Exception as error:
            raise EngineError(f"{lora or gguf}: llama.cpp cannot load this file ({error})") from error

    def stream(self, messages: Messages, max_new_tokens: int) -> Generator[str]:
        """See ``Engine``."""
        # A batch of tokens changes the thread, not each: the check shows whole lines only.
        batches: queue.Queue[list[str] | Exception | None] = queue.Queue()
        waiting: list[str] = []
        stopped = threading.Event()
        request = {
            "messages": messages, "max_tokens": max_new_tokens, "temperature": 0, "repeat_penalty": 1.0, "stream": True
        }  # fmt: skip

        def take(chunk: dict[str, Any]) -> bool:
            if "error" in chunk:
                batches.put(EngineError(f"llama.cpp: {chunk['error'].get('message', chunk['error'])}"))
            elif chunk.get("choices") and (piece := chunk["choices"][0]["delta"].get("content")):
                waiting.append(piece)
                if "\n" in piece or len(waiting) >= _BATCH:
                    pass_on()
            return stopped.is_set()

        def pass_on() -> None:
            batches.put(waiting.copy())
            waiting.clear()

        def generate() -> None:
            try:
                refused = self._server.handle_chat_completions(request, take)
                if isinstance(refused, dict) and "error" in refused:
                    take(refused)
            except Exception as error:
                batches.put(EngineError(f"llama.cpp: {error}"))
            finally:
                pass_on()
                batches.put(None)

        threading.Thread(target=generate, daemon=True).start()
        try:
            while (batch := batches.get()) is not None:
                if isinstance(batch, Exception):
                    raise batch
                yield from batch
        finally:
            stopped.set()


class TransformersEngine:
    """Base and adapter in transformers, one question at a time. Slower than llama.cpp, and always available."""

    name = "transformers"

    def __init__(self, base: Path, adapter: Path) -> None:
        """Load base and adapter.

        Raises:
            BaseModelError, AdapterError: a folder does not hold what it should.
        """
        self._student = Student.load(base, adapter)
        self._turn = threading.Lock()

    def stream(self, messages: Messages, max_new_tokens: int) -> Generator[str]:
        """See ``Engine``."""
        tokens = len(self._student.tokenizer(self._student.render(messages))["input_ids"])
        if tokens + max_new_tokens > CONTEXT_TOKENS:
            raise EngineError(f"the question has {tokens} tokens; at most {CONTEXT_TOKENS - max_new_tokens} fit")
        with self._turn:
            yield from self._student.stream(messages, max_new_tokens=max_new_tokens)
