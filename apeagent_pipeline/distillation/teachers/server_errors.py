"""What a server's refusal means: wait, refuse this prompt, or end the run.

Servers and routers report the same condition under different statuses, inside a status 200, or in words alone. The
rules here were collected from public documentation and reports of OpenAI-compatible servers.
"""

import contextlib
import email.utils
import math
import re
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic_core import from_json

from apeagent_pipeline.distillation.teachers.server_replies import LARGEST_ANSWER_BYTES
from apeagent_pipeline.reporting.foreign_text import printable

if TYPE_CHECKING:
    from httpx2 import AsyncByteStream, Response

Kind = Literal["wait", "lost", "refuse_prompt", "fail", "hopeless", "no_seed", "no_stream_options"]
"""``wait``: nothing was generated, ask again later. ``lost``: the server may have generated and charged.
``refuse_prompt``: this prompt alone is refused. ``fail``: this request cannot succeed. ``hopeless``: no request can."""

_FLAGGED = re.compile(
    r"moderat|flagged|content[ _-]?(?:policy|filter|management)|safety|prohibited|policy[ _]violation|responsible ?ai|"
    r"data_inspection|inappropriate|harmful|blocked by",
    re.IGNORECASE,
)
_ACCESS = re.compile(
    r"api[ _-]?key|permission|unauthori[sz]ed|not allowed|access|region|country|territor|organi[sz]ation|subscri|"
    r"account|terms",
    re.IGNORECASE,
)
_NO_CREDIT = re.compile(
    r"insufficient[ _](?:quota|credit|balance|funds)|exceeded your current quota|billing", re.IGNORECASE
)
_TOO_MANY_TOKENS = re.compile(r"max[ _]?(?:completion[ _])?tokens|can only afford|fewer tokens", re.IGNORECASE)
_NO_ROOM = re.compile(
    r"context[ _](?:length|window|size)|(?:max[ _]?(?:completion[ _]|output[ _]|new[ _])?tokens|tokens).{0,40}"
    r"(?:too (?:large|high|many|long)|exceed|must be (?:less|at most|<)|supports? at most|greater than|above the)"
    r"|supports at most \d+",
    re.IGNORECASE,
)
_SPENDING_LIMIT = re.compile(r"in[- ]?flight|concurren|temporar|per (?:second|minute|hour)|resets? in", re.IGNORECASE)
_NO_MODEL = re.compile(
    r"model.{0,60}(?:not (?:found|exist|available|supported|a valid)|does(?: not|n't) exist|no longer|decommission|"
    r"deprecat|retired|unknown|invalid(?!_request))|(?:no such|unknown|invalid|not a valid) model|"
    r"no endpoints found for",
    re.IGNORECASE,
)
_BAD_REQUESTS: list[tuple[re.Pattern[str], tuple[Kind, str]]] = [
    (_FLAGGED, ("refuse_prompt", "")),
    (
        re.compile("response_format|json_schema|structured output|guided", re.IGNORECASE),
        ("hopeless", "the server knows no structured output; unset APEAGENT_TEACHER_STRUCTURED"),
    ),
    (re.compile("stream_options"), ("no_stream_options", "")),
    (re.compile("seed"), ("no_seed", "")),
    (_NO_ROOM, ("hopeless", "the model allows fewer tokens than requested; lower APEAGENT_TEACHER_MAX_TOKENS")),
    (_NO_MODEL, ("hopeless", "no such model; check APEAGENT_TEACHER_MODEL")),
]
"""What a text says about a request that is wrong; the first that fits counts."""
_DATA_POLICY = re.compile(r"data policy|privacy|guardrail|zdr|training on", re.IGNORECASE)
_SERVER_MAY_HAVE_WORKED = {499, 504, 522, 524}
_BUSY = {408, 409, 423, 425, 429}  # and everything from 500
_IN_WORDS = re.compile(
    r"(?:try again|retry|resets?|available|wait)[^.\d]{0,30}?((?:\d+(?:\.\d+)?\s*(?:ms|milliseconds?|h(?:ours?)?|"
    r"m(?:in(?:ute)?s?)?|s(?:ec(?:ond)?s?)?)\s*)+)",
    re.IGNORECASE,
)
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|milliseconds?|h|m|s)?", re.IGNORECASE)
_UNITS = {"ms": 0.001, "h": 3600.0, "m": 60.0, "s": 1.0}


@dataclass(eq=False)
class ServerRefusal(Exception):  # noqa: N818 (a refusal is what it is)
    """A reply that is no answer.

    Attributes:
        kind: What to do.
        status: HTTP status, or the code of an error object inside a status 200.
        words: What the server said, shortened, without the key.
        remedy: The setting to change, for hopeless ones.
        wait_s: Seconds that the server asks to wait.
    """

    kind: Kind
    status: int
    words: str
    remedy: str = ""
    wait_s: float | None = None

    def __str__(self) -> str:
        said = f": {self.words}" if self.words else ""
        return f"status {self.status}" + said


def refusal(status: int, error: Any, headers: Mapping[str, str], key: str) -> ServerRefusal:
    """Classify a refused request.

    Args:
        status: HTTP status; that of an error object counts more.
        error: The document's ``error``: an object, a text, or None.
        headers: Of the response, names in lower case.
        key: The API key; no part of it is repeated.
    """
    details = error if isinstance(error, Mapping) else {}
    message = _message(error)
    code = details.get("code")
    number = int(code) if isinstance(code, int | str) and str(code).isdigit() and 400 <= int(code) < 600 else status
    metadata = details.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    named = code if isinstance(code, str) and not code.isdigit() else ""
    haystack = " ".join([message, named, str(details.get("type") or ""), *map(str, metadata.values())])
    wait = _wait_asked_for(headers, details, message)
    kind, remedy = _meaning(number, haystack, wait)
    return ServerRefusal(kind, number, without_key(message, key), remedy, wait if kind in ("wait", "lost") else None)


def _meaning(status: int, said: str, wait: float | None) -> tuple[Kind, str]:  # noqa: PLR0911 (one row a status)
    if status == 401:
        return "hopeless", "the server refuses the key; set APEAGENT_TEACHER_API_KEY"
    if status == 402:
        if _TOO_MANY_TOKENS.search(said):
            return "hopeless", "the credit does not cover this length; lower APEAGENT_TEACHER_MAX_TOKENS or add credit"
        if wait is not None or _SPENDING_LIMIT.search(said):
            return "wait", ""
        return "hopeless", "the account has no credit left"
    if status in (403, 451):
        if status == 451 or _FLAGGED.search(said):
            return "refuse_prompt", ""
        if _ACCESS.search(said) or not said.strip():
            return "hopeless", (
                "the key has no access to this model; check APEAGENT_TEACHER_API_KEY and APEAGENT_TEACHER_MODEL"
            )
        return "refuse_prompt", ""
    if status in (404, 410):
        if _DATA_POLICY.search(said):
            return "hopeless", (
                "the account's data policy excludes every provider of this model; change the privacy settings of the "
                "account, or choose another APEAGENT_TEACHER_MODEL"
            )
        return "hopeless", "no such model or path; check APEAGENT_TEACHER_MODEL and APEAGENT_TEACHER_BASE_URL"
    if status == 429 and _NO_CREDIT.search(said):
        return "hopeless", "the account has no credit left"
    if status in _SERVER_MAY_HAVE_WORKED:
        return "lost", ""
    if status in _BUSY or status >= 500:
        return "wait", ""
    return _meaning_of_bad_request(said)


def _meaning_of_bad_request(said: str) -> tuple[Kind, str]:
    return next((meaning for pattern, meaning in _BAD_REQUESTS if pattern.search(said)), ("fail", ""))


def _message(error: Any) -> str:
    """What an error says, in whatever shape: text, object, list of objects."""
    if isinstance(error, str):
        return error
    if isinstance(error, Mapping):
        metadata = error.get("metadata")
        raw = metadata.get("raw") if isinstance(metadata, Mapping) else None
        parts = [error.get("message") or error.get("detail") or error.get("msg"), raw]
        return "; ".join(_message(part) for part in parts if part)
    if isinstance(error, list):
        return "; ".join(map(_message, error[:3]))
    return ""


def _wait_asked_for(headers: Mapping[str, str], error: Mapping[str, Any], message: str) -> float | None:
    """Seconds that the server asks to wait: from a header, the error object or its words; None if it does not say."""
    metadata = error.get("metadata")
    inner = metadata.get("headers") if isinstance(metadata, Mapping) else None
    told = {str(name).lower(): str(value) for name, value in inner.items()} if isinstance(inner, Mapping) else {}
    told = {**told, **{name.lower(): value for name, value in headers.items()}}
    if "retry-after-ms" in told and (wait := _seconds(told["retry-after-ms"], 0.001)) is not None:
        return wait
    if "retry-after" in told and (wait := _seconds(told["retry-after"])) is not None:
        return wait
    for place in (error, metadata if isinstance(metadata, Mapping) else {}):
        for name in ("retry_after", "retry_after_seconds", "retryDelay", "retry_delay"):
            if name in place and (wait := _seconds(str(place[name]))) is not None:
                return wait
    resets = {name: value for name, value in told.items() if "ratelimit" in name and "reset" in name}
    spent = [name for name in resets if told.get(name.replace("reset", "remaining"), "") in ("0", "0.0")]
    waits = [wait for name in spent or resets if (wait := _seconds(resets[name])) is not None]
    if waits:
        return max(waits) if spent else min(waits)
    found = _IN_WORDS.search(message)
    return _span(found[1]) if found else None


def _seconds(value: str, unit: float = 1.0) -> float | None:
    """A wait in seconds, milliseconds, ``6m0s``, a time stamp in seconds or milliseconds, or a date."""
    value = value.strip()
    try:
        number = float(value)
    except ValueError:
        if re.fullmatch(r"(?:\d+(?:\.\d+)?\s*(?:ms|h|m|s)\s*)+", value, re.IGNORECASE):
            return _span(value)
        moment = _moment(value)
        return None if moment is None else max(0.0, moment - time.time())
    if not math.isfinite(number):
        return None
    if number > 1e11:
        return max(0.0, number / 1000 - time.time())
    return max(0.0, number - time.time()) if number > 1e8 else max(0.0, number * unit)


def _moment(value: str) -> float | None:
    """The time stamp of a date as HTTP (RFC 9110, section 10.2.3) or ISO 8601 write it."""
    for read in (email.utils.parsedate_to_datetime, datetime.fromisoformat):
        try:
            return read(value).timestamp()
        except (ValueError, OverflowError, TypeError):
            continue
    return None


def _span(text: str) -> float:
    def unit(name: str) -> float:
        name = name.lower()
        return _UNITS["ms"] if name.startswith(("ms", "milli")) else _UNITS[name[:1] or "s"]

    return sum(float(number) * unit(name) for number, name in _SPAN.findall(text))


def without_key(text: str, key: str) -> str:
    """The beginning of a server's words, each word that shares six characters with the key masked."""
    pieces = {key[begin : begin + 6] for begin in range(max(1, len(key) - 5))}
    words = printable(text).split()
    return " ".join("***" if any(piece in word for piece in pieces) else word for word in words)[:200]


def error_of(error: Any) -> Any:
    """The error object of a refused request, in whatever place it stands."""
    document = error.body
    if isinstance(document, Mapping):
        return document.get("error") or document
    return document if isinstance(document, list) else None


async def bound_refusal(response: "Response") -> None:
    """Limit the size of an error response: the client would decompress and parse one of any size."""
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
