"""How a server is asked: model, sampling, limits and key, and the request that follows from them."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic_core import from_json

from apeagent_pipeline.distillation.canary_words import SEPARATOR
from apeagent_pipeline.distillation.chain_of_draft import SYSTEM_PROMPT
from apeagent_pipeline.distillation.teachers.teacher import TeacherError

_REASONING_MODEL = re.compile(
    r"qwq|r1\b|reason|think|\bo[134]\b|gpt-oss|magistral|qwen3|glm-z|deepseek-v4", re.IGNORECASE
)
_NOT_IN_A_KEY = {
    "a quote": r"[\"'`\u2018-\u201f]",
    "a line break": r"[\r\n]",
    "a blank": r"\s",
    "a character that is not ASCII": r"[^\x21-\x7e]",
}

_ANSWER_SCHEMA: dict[str, Any] = {
    "name": "chain_of_draft",
    "strict": True,
    "schema": {
        "type": "object",
        "properties": {
            "drafts": {"type": "array", "items": {"type": "string"}},
            "action": {"type": "string", "pattern": r"^(HOLD|(BUY|SELL) [0-9]+(\.[0-9]+)? ETH)$"},
        },
        "required": ["drafts", "action"],
        "additionalProperties": False,
    },
}


class OpenAITeacherConfig(BaseModel):
    """How a server is asked. Sampling defaults are those recommended for QwQ 32B."""

    model_config = ConfigDict(frozen=True)

    temperature: float = Field(0.6, description="Sampling temperature", ge=0)
    top_p: float = Field(0.95, description="Nucleus sampling", gt=0, le=1)
    max_tokens: int = Field(
        8192, description="Largest number of tokens in an answer; reasoning models need thousands", ge=1
    )
    concurrency: int = Field(16, description="Largest number of requests at the same time", ge=1)
    requests_per_minute: float = Field(0.0, description="Largest number of requests a minute; 0: no limit", ge=0)
    timeout_s: float = Field(
        300.0, description="Longest wait for a whole answer, or with stream for its next piece, in seconds", gt=0
    )
    patience_s: float = Field(
        900.0, description="Longest time that a request waits for a busy or broken server, in seconds", gt=0
    )
    retries: int = Field(60, description="Retries of a request that a busy or broken server did not answer", ge=0)
    failures_in_a_row: int = Field(20, description="Failed requests in a row after which the run gives up", ge=1)
    stream: bool = Field(False, description="Stream answers, so that a slow one does not time out")
    structured: bool = Field(False, description="Ask the server to enforce the form of the answer (JSON schema)")
    price: tuple[float, float] | None = Field(
        None, description="US dollars per million tokens read and written; None: the server's price, if it gives one"
    )


def is_reasoning_model(model: str) -> bool:
    """Whether a model's name says that it thinks before it answers, so that answers take minutes."""
    return _REASONING_MODEL.search(model) is not None


def openai_identity(model: str, config: OpenAITeacherConfig) -> Mapping[str, Any]:
    """What a finished answer depends on beside the prompts: the model, its sampling and an enforced form."""
    form = {"structured": True} if config.structured else {}
    return {"teacher": "openai", "model": model, **config.model_dump(include={"temperature", "top_p"}), **form}


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


def request_body(model: str, prompt: str, seed: int | None, config: OpenAITeacherConfig) -> dict[str, Any]:
    """The body of a chat completion request for one prompt."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": prompt}],
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_tokens": config.max_tokens,
    }
    if config.structured:
        body["response_format"] = {"type": "json_schema", "json_schema": _ANSWER_SCHEMA}
    return body if seed is None else {**body, "seed": seed}


def chain_of_draft_text(text: str) -> str:
    """A structured answer as the text it stands for; any other text as it is."""
    try:
        found = from_json(text)
    except ValueError:
        return text
    if not isinstance(found, dict) or set(found) != {"drafts", "action"} or not isinstance(found["drafts"], list):
        return text
    return "\n".join(map(str, [*found["drafts"], SEPARATOR, found["action"]]))
