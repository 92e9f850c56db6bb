"""Reading what an OpenAI-compatible server sends: a completion, a stream of its pieces, or something else.

A generated answer costs money, so every shape of it that is known is read: content as text or as parts, a stream that
was not asked for, comment lines and blanks before the document, packed bodies.
"""

import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

LARGEST_ANSWER_BYTES = 16 << 20
"""Of one answer: a hundred times what 8,192 tokens take."""
_LONGEST_WORD = 40
_CUT_OFF = {"length", "model_length", "max_tokens", "max_output_tokens", "token_limit", "max_length", "max_new_tokens"}
_DONE = {"stop", "eos", "eos_token", "end_turn", "stop_sequence", "completed", "finish", "end", "stop_token"}
_FILTERED = {"content_filter", "safety", "blocked", "prohibited_content", "recitation", "sensitive", "content_filtered"}
_BROKEN = {"error", "failed", "network_error", "insufficient_system_resource"}


class UnreadableReplyError(Exception):
    """A reply that is no completion; ``may_have_cost`` where the beginning of an answer was seen."""

    def __init__(self, why: str, may_have_cost: bool = False) -> None:
        super().__init__(why)
        self.may_have_cost = may_have_cost


@dataclass
class Reply:
    """One completion as the server told it.

    Attributes:
        text, reasoning: What was said, and what was thought where the server keeps it apart; None if absent.
        finish_reason: ``stop``, ``length``, ``refused``, ``broken``, ``unknown`` or another word of the server.
        prompt_tokens, completion_tokens, cost_usd: As counted by the server, None where it does not say.
        model, provider: Who answered.
        error: The error object inside a status 200, if any.
        is_whole: Whether the answer ended; a stream may break off.
        unreadable: Why the text cannot be used, if it cannot.
    """

    text: str | None = None
    reasoning: str | None = None
    finish_reason: str = "unknown"
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    model: str | None = None
    provider: str | None = None
    error: Any = None
    is_whole: bool = True
    unreadable: str | None = None

    @property
    def was_generated(self) -> bool:
        """Whether the server says that it wrote something or charged for it."""
        return bool(self.completion_tokens or self.cost_usd)


class Unpacked:
    """Unpacks a body piece by piece, never more of it than an answer has."""

    def __init__(self, encoding: str) -> None:
        """For a ``Content-Encoding``.

        Raises:
            UnreadableReplyError: if the encoding is unknown.
        """
        if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise UnreadableReplyError(
                f"an answer packed as {encoding[:_LONGEST_WORD]!r}, which was not requested", True
            )
        self._unpack = None if encoding in ("", "identity") else zlib.decompressobj(wbits=47)
        self._size = 0

    def __call__(self, piece: bytes) -> bytes:
        """The next piece, unpacked.

        Raises:
            UnreadableReplyError: if the body is too long, or not packed as announced.
        """
        if self._unpack:
            if self._unpack.eof and piece:
                raise UnreadableReplyError("an answer with several encodings", True)
            try:
                piece = self._unpack.decompress(piece, LARGEST_ANSWER_BYTES + 1 - self._size)
            except zlib.error:
                raise UnreadableReplyError("an answer without the encoding that its header names", True) from None
        self._size += len(piece)
        if self._size > LARGEST_ANSWER_BYTES:
            raise UnreadableReplyError(f"an answer of more than {LARGEST_ANSWER_BYTES >> 20} MiB", True)
        return piece


def read_reply(body: bytes) -> Reply:
    """Read the body of a status 200.

    Raises:
        UnreadableReplyError: if the body is no completion in any known shape.
    """
    text = body.decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n\0")
    lines = text.splitlines()
    while lines and (not lines[0].strip() or lines[0].startswith(":")):
        lines.pop(0)
    if lines and lines[0].startswith(("data:", "event:", "id:", "retry:")):
        return _read_stream(lines)
    text = "\n".join(lines).strip()
    if not text:
        raise UnreadableReplyError("malformed answer: it is empty")
    if text.startswith("<"):
        raise UnreadableReplyError("malformed answer: a web page")
    try:
        document = _document(text)
    except ValueError:
        if text.startswith("{") and '"' in text:
            raise UnreadableReplyError("malformed answer: it was cut off or is not JSON", may_have_cost=True) from None
        raise UnreadableReplyError("malformed answer: it is not JSON") from None
    if isinstance(document, list) and len(document) == 1:
        document = document[0]
    if not isinstance(document, Mapping):
        raise UnreadableReplyError(f"malformed answer: {type(document).__name__} instead of an object")
    return reply_of(document)


def _document(text: str) -> Any:
    """The JSON value of a body; what stands behind its last bracket, such as a proxy's remark, does not count.

    Raises:
        ValueError: if it is none.
    """
    try:
        return from_json(text)
    except ValueError:
        end = text.rfind("}") + 1
        if not 0 < end < len(text):
            raise
        return from_json(text[:end])


def reply_of(document: Mapping[str, Any]) -> Reply:
    """The reply in a completion object.

    Raises:
        UnreadableReplyError: if the object has neither choices nor an error nor a usage.
    """
    reply = _with_usage(document)
    choices = document.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, Mapping):
        if not reply.was_generated and not _says_something(reply.error):
            raise UnreadableReplyError("malformed answer: it has no choices")
        reply.finish_reason, reply.unreadable = "broken", "an answer without a choice"
        return reply
    message = choice.get("message") or choice.get("delta")
    message = message if isinstance(message, Mapping) else {"content": choice.get("text")}
    reply.error = reply.error or choice.get("error") or None
    reply.finish_reason = _finish(choice)
    reply.reasoning = _any_text(message.get("reasoning") or message.get("reasoning_content")) or _any_text(
        message.get("reasoning_details")
    )
    content = message.get("content")
    if isinstance(content, list):
        thoughts = [
            part for part in content if isinstance(part, Mapping) and part.get("type") in ("thinking", "reasoning")
        ]
        reply.reasoning = reply.reasoning or _any_text(thoughts)
        content = [part for part in content if part not in thoughts]
    reply.text = _any_text(content)
    refused = _any_text(message.get("refusal"))
    if refused:
        reply.text, reply.finish_reason = reply.text or refused, "refused"
    if reply.text is None and content not in (None, "", [], {}):
        reply.unreadable = f"content of an unknown shape ({type(content).__name__})"
    return reply


@dataclass
class StreamedText:
    """Puts the pieces of a streamed completion together."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    last: Reply = field(default_factory=lambda: Reply(is_whole=False))

    def add(self, line: str) -> None:
        """Take one line of an event stream; comments and events that are no JSON are passed over."""
        if not line.startswith("data:"):
            return
        data = line[5:].strip()
        if data == "[DONE]":
            self.last.is_whole = True
            return
        try:
            document = from_json(data)
            piece = reply_of(document)
        except (ValueError, UnreadableReplyError, AttributeError):
            return
        last = self.last
        self.text += filter(None, [piece.text])
        self.reasoning += filter(None, [piece.reasoning])
        if piece.finish_reason != "unknown" and document.get("choices"):
            last.finish_reason, last.is_whole = piece.finish_reason, True
        for name in ("prompt_tokens", "completion_tokens", "cost_usd", "model", "provider", "error"):
            value = getattr(piece, name)
            if value is not None:
                setattr(last, name, value)

    @property
    def written(self) -> int:
        """Characters that came so far."""
        return sum(map(len, self.text)) + sum(map(len, self.reasoning))

    @property
    def is_thinking(self) -> bool:
        """Whether only thoughts came so far."""
        said = "".join(self.text)
        return (not said and bool(self.reasoning)) or ("<think" in said and "</think" not in said)

    def reply(self) -> Reply:
        """The completion, as far as it came."""
        self.last.text = "".join(self.text) or None
        self.last.reasoning = "".join(self.reasoning) or None
        return self.last


def _read_stream(lines: Iterable[str]) -> Reply:
    streamed = StreamedText()
    for line in lines:
        streamed.add(line)
    return streamed.reply()


def _with_usage(document: Mapping[str, Any]) -> Reply:
    usage = document.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    return Reply(
        prompt_tokens=count(usage.get("prompt_tokens", usage.get("input_tokens"))),
        completion_tokens=count(usage.get("completion_tokens", usage.get("output_tokens"))),
        cost_usd=_cost_told(usage, document),
        model=_word(document.get("model")),
        provider=_word(document.get("provider")),
        error=document.get("error") or None,
    )


def _cost_told(usage: Mapping[str, Any], document: Mapping[str, Any]) -> float | None:
    """Dollars charged by a router; where the user's own key pays the provider, the provider's price is added."""
    told = dollars(usage.get("cost", usage.get("total_cost", document.get("cost"))))
    details = usage.get("cost_details")
    upstream = dollars(details.get("upstream_inference_cost")) if isinstance(details, Mapping) else None
    if upstream and (usage.get("is_byok") is True or (not told and usage.get("is_byok") is None)):
        return (told or 0.0) + upstream
    return told


def _says_something(error: Any) -> bool:
    if isinstance(error, Mapping):
        return any(isinstance(error.get(name), str | int) for name in ("message", "code", "type", "detail"))
    return bool(error) and isinstance(error, str)


def _finish(choice: Mapping[str, Any]) -> str:
    said, native = _word(choice.get("finish_reason")), _word(choice.get("native_finish_reason"))
    for word in (native, said):
        name = (word or "").lower()
        if name in _CUT_OFF:
            return "length"
        if name in _FILTERED:
            return "refused"
    name = (said or "").lower()
    return "stop" if name in _DONE else "broken" if name in _BROKEN else said or "unknown"


def _any_text(value: Any) -> str | None:
    """The text in a text, a part, or a list of parts; None if there is none.

    UTF-8, and so every file, has no place for half a surrogate pair.
    """
    if isinstance(value, str):
        return value.encode(errors="replace").decode() or None
    if isinstance(value, Mapping):
        return next(
            filter(None, (_any_text(value.get(name)) for name in ("text", "content", "thinking", "summary"))), None
        )
    if isinstance(value, list):
        return "".join(filter(None, map(_any_text, value))) or None
    return None


def _word(value: Any) -> str | None:
    return value.encode(errors="replace").decode()[:_LONGEST_WORD] if isinstance(value, str) and value else None


def count(value: Any) -> int | None:
    """Tokens, None if it is no such number: what a budget adds up must be one."""
    return value if type(value) is int and 0 <= value < 1 << 53 else None


def dollars(value: Any) -> float | None:
    """Dollars, from a number or its text; None if it is no such number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number >= 0 else None
