"""What a teacher is: something with a name that answers prompts one by one and tells what each answer cost."""

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from pydantic import Field

from apeagent_pipeline.errors import ApeagentError

Tokens = Annotated[int, Field(ge=0, lt=1 << 53)]
Dollars = Annotated[float, Field(ge=0, allow_inf_nan=False)]

PromptRow = Mapping[str, Any]
"""One row of ``build_prompts`` as a mapping. A language model reads ``prompt`` alone; the embedded policy its words."""


class TeacherError(ApeagentError, RuntimeError):
    """A teacher cannot go on; the message says why and what to do, and never holds a secret."""


@dataclass(frozen=True)
class TeacherAnswer:
    """One finished request.

    Attributes:
        prompt_id: Which prompt was answered.
        text: What was said; empty for ``failed``, ``lost`` and ``unusable``.
        finish_reason: ``stop``; ``length`` (cut off); ``refused`` (the model or a filter declined this prompt);
            ``unusable`` (generated and paid, but ``error`` says why it cannot be read); ``lost`` (nothing came, but the
            server may have generated and charged); ``failed`` (nothing came and nothing was charged); or another word
            of the server. Of ``lost`` and ``failed``, ``error`` says why.
        prompt_tokens: Tokens read, None where the teacher does not count.
        completion_tokens: Tokens written, thinking included, None where unknown.
        cost_usd: Price of the request in US dollars, None where unknown.
        latency_s: Seconds from asking to the finished answer, waiting for retries included.
        error: Why no answer came, without secrets.
        reasoning: What was thought before, where the server keeps it apart from the text.
        model, provider: Who answered, as the server says.
        estimated: Whether tokens or cost were estimated because the server did not tell them.
    """

    prompt_id: str
    text: str
    finish_reason: str
    prompt_tokens: Tokens | None = None
    completion_tokens: Tokens | None = None
    cost_usd: Dollars | None = None
    latency_s: float = 0.0
    error: str | None = None
    reasoning: str | None = None
    model: str | None = None
    provider: str | None = None
    estimated: bool = False


Keep = Callable[[TeacherAnswer], None]


def forget(answer: TeacherAnswer) -> None:
    """A ``keep`` that stores nothing."""


class Teacher(Protocol):
    """Answers prompts.

    Attributes:
        name: Shown in every report, such as ``rules`` or ``openai:qwen/qwq-32b``.
        identity: Everything a finished answer depends on beside the system prompt and the prompt (model, sampling):
            part of the cache key. Never an address or a key.
        limits: What only an answer that was cut off depends on, such as the most tokens it may have. With more room
            those that were cut off are asked for again, and nothing else.
        deterministic: The same prompt always gets the same answer at no cost; such answers are neither cached nor
            asked for again.
    """

    name: str
    identity: Mapping[str, Any]
    limits: Mapping[str, Any]
    deterministic: bool

    def answer(
        self, prompts: Iterable[PromptRow], seed: int, keep: Keep = forget
    ) -> Generator[TeacherAnswer, None, None]:
        """Answer every prompt, each as soon as it is finished, in any order.

        Args:
            prompts: What is asked; taken one by one, only when it is asked, so that whoever calls can stop the asking.
            seed: Another seed may bring another answer; a refused answer is asked for again with another one.
            keep: Called once with everything that was or may have been paid for (with all but failed ones), as soon as
                it is known and from whatever thread, even if the caller is interrupted meanwhile.

        Raises:
            TeacherError: if no further prompt can be answered (wrong key, unknown model, server gone).
        """
        ...
