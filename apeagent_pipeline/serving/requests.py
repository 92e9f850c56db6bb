"""What clients of OpenAI and Ollama ask for: read, or refused with the cause.

A field that only shapes how an answer is drawn (temperature, seed, penalties) is ignored. A field that asks for another
kind of answer than one text (tools, JSON, several answers, sound) is refused, so that no client waits for it.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.requests import Request

from apeagent_pipeline.errors import ApeagentError
from apeagent_pipeline.serving.dialects import DIALECTS, Dialect

MODEL = "apeagent"
_LONGEST_BODY = 1 << 20
_LONGEST_QUESTION = 20_000
"""Characters; a context of 4,096 tokens holds less."""


class RequestError(ApeagentError, ValueError):
    """A request that cannot be answered.

    Attributes:
        status: Of the HTTP answer.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        """Keep the status."""
        self.status = status
        super().__init__(message)


class Message(BaseModel):
    """One message of a chat; OpenAI's clients may send its text in parts."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, Any]] | None = None
    images: list[Any] | None = None

    @property
    def text(self) -> str:
        """The whole text."""
        if isinstance(self.content, list):
            return "".join(str(part.get("text") or "") for part in self.content)
        return self.content or ""

    @property
    def other_part(self) -> str | None:
        """The type of a part that is no text, such as ``image_url``, or None."""
        if self.images:
            return "images"
        parts = self.content if isinstance(self.content, list) else []
        return next((str(part.get("type")) for part in parts if part.get("type") not in ("text", "input_text")), None)


class _StreamOptions(BaseModel):
    include_usage: bool | None = None


_Options = Annotated[dict[str, Any], BeforeValidator(lambda value: {} if value is None else value)]
_Messages = Annotated[list[Message], BeforeValidator(lambda value: [] if value is None else value)]
_Name = Annotated[str, BeforeValidator(lambda value: MODEL if value is None else value)]


class ChatRequest(BaseModel):
    """A request of either interface; fields that are not named here are ignored, and null is a field left out."""

    model_config = ConfigDict(extra="ignore")

    model: _Name = MODEL
    messages: _Messages = []
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=-2)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    options: _Options = {}
    n: int | None = 1
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    tool_choice: Any = None
    response_format: dict[str, Any] | None = None
    format: str | dict[str, Any] | None = None
    logprobs: bool | int | None = None
    modalities: list[str] | None = None

    @property
    def dialect(self) -> Dialect | None:
        """The dialect that the model's tag asks for, such as ``apeagent:recommendation``; None: the question's own."""
        tag = self.model.rpartition(":")[2]
        return next((dialect for dialect in DIALECTS if dialect == tag), None)

    @property
    def longest(self) -> int | None:
        """The largest number of tokens that the client asks for, or None."""
        wanted = self.max_completion_tokens or self.max_tokens or self.options.get("num_predict")
        return wanted if isinstance(wanted, int) and wanted > 0 else None

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end an answer, without empty ones."""
        wanted = self.stop or self.options.get("stop") or []
        return tuple(
            text for text in ([wanted] if isinstance(wanted, str) else wanted) if text and isinstance(text, str)
        )

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a count of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def chat(self) -> list[dict[str, str]]:
        """The messages with their text."""
        names = {"developer": "system"}
        return [{"role": names.get(each.role, each.role), "content": each.text} for each in self.messages]

    def refuse_what_is_not_given(self) -> None:
        """Raise for a request that asks for another kind of answer than one text.

        Raises:
            RequestError: with the field's name.
        """
        wants_json = (self.response_format or {}).get("type", "text") != "text"
        other_part = next((part for part in (each.other_part for each in self.messages) if part), None)
        last = self.messages[-1] if self.messages else None
        causes = (
            (
                last is None or last.role != "user" or not last.text.strip(),
                "the last message must be a user message with text",
            ),
            (other_part, f"content of type {other_part}: only text is read"),
            ((self.tools or self.functions) and self.tool_choice != "none", "tools: this model does not support tools"),
            (wants_json, "response_format: answers are plain text, not JSON"),
            (self.format, "format: answers are plain text, not JSON"),
            (self.n not in (None, 1), f"n={self.n}: one answer is given; send the request again for another"),
            (self.logprobs, "logprobs are not given"),
            (set(self.modalities or ()) - {"text"}, "modalities: answers are text"),
            (
                last and len(last.text) > _LONGEST_QUESTION,
                f"a question may have at most {_LONGEST_QUESTION:,} characters",
            ),
        )
        for applies, cause in causes:
            if applies:
                raise RequestError(cause)


async def read_request(http: Request) -> ChatRequest:
    """Read a request's body.

    Raises:
        RequestError: the body is too long, no JSON, or a field has another type.
    """
    body = b""
    async for piece in http.stream():
        body += piece
        if len(body) > _LONGEST_BODY:
            raise RequestError(f"the request has more than {_LONGEST_BODY:,} bytes", 413)
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, problem["loc"])) or "body"
        raise RequestError(f"{where}: {problem['msg']}") from None
