"""What a node's error means: ask for less, ask later, ask again, or give up."""

import re
from enum import StrEnum
from http import HTTPStatus

from apeagent_pipeline.chain.errors import ChainError


class RpcErrorKind(StrEnum):
    """What to do about an error."""

    RANGE = "range"
    """The answer would be too big or the range is too long: ask for fewer blocks."""
    BATCH = "batch"
    """Too many requests in one batch, or no batches at all: send fewer at once."""
    RATE = "rate"
    """Too many requests: ask later."""
    TRANSIENT = "transient"
    """The node, or the way to it, is not well: ask again, or ask another endpoint."""
    UNKNOWN = "unknown"
    """No known wording: ask for less, then later, then elsewhere."""
    FATAL = "fatal"
    """Asking again gives the same answer."""


class RpcError(ChainError):
    """A request was not answered. The text names the endpoint by its position, never by its URL.

    Attributes:
        kind: What to do about it.
        retry_after: Seconds the server asked to wait, or None.
    """

    def __init__(self, message: str, kind: RpcErrorKind, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after = retry_after


_BATCH = re.compile(r"\bbatch(?:es|ing)?\b", re.IGNORECASE)
_RATE = re.compile(
    r"rate.?limit|too many requests|requests? (?:per|/) ?s|request (?:rate|limit)|compute units|throughput|capacity",
    re.IGNORECASE,
)
_LAG = re.compile(
    r"beyond (?:the )?current head|(?:header|block) not found|unknown block|missing trie node|no backend|unhealthy",
    re.IGNORECASE,
)
_RANGE = re.compile(
    r"block.?range|max(?:imum)? (?:block range|results)|ranges? over|limit the query|query timeout|query returned more"
    r"|\brange\b.*(?:limit|exceed|wide|large|bigger|than|support|max)|(?:limited to|exceeds?).*\brange\b"
    r"|response (?:size|too large)|more than \d+ results|too many (?:logs|results)",
    re.IGNORECASE,
)
_TRANSIENT = re.compile(
    r"time.?out|timed out|temporar|try again|unavailable|internal error|overloaded|upstream|connection|bad gateway",
    re.IGNORECASE,
)
_RANGE_CODES = frozenset({-32614, -32020, -32701, 35})
_INTERNAL_ERROR = -32603
_SERVER_ERROR_STATUS = 500

_HINTED_RANGE = re.compile(r"(0x[0-9a-f]+|\d+)\s*(?:,|-|to)\s*(0x[0-9a-f]+|\d+)\b", re.IGNORECASE)
_HINTED_BLOCKS = re.compile(
    r"(?:limit(?:ed)? (?:of|to)|at most|up to|max(?:imum)? block range|ranges over)(?: an?)?:? (\d[\d,]*)(k?)\b",
    re.IGNORECASE,
)


def classify(code: int | None, message: str, status: int | None = None) -> RpcErrorKind:
    """Tell the kind of an error by its meaning; providers share neither codes nor wording.

    Args:
        code: Of the JSON-RPC error object, if there was one.
        message: Of the error object, or whatever text there was.
        status: HTTP status, if it was not 200.
    """
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return RpcErrorKind.RATE
    for pattern, kind in (
        (_BATCH, RpcErrorKind.BATCH),
        (_LAG, RpcErrorKind.TRANSIENT),
        (_RANGE, RpcErrorKind.RANGE),
        (_RATE, RpcErrorKind.RATE),
        (_TRANSIENT, RpcErrorKind.TRANSIENT),
    ):
        if pattern.search(message):
            return kind
    if code in _RANGE_CODES or status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return RpcErrorKind.RANGE
    if code == _INTERNAL_ERROR or (status is not None and status >= _SERVER_ERROR_STATUS):
        return RpcErrorKind.TRANSIENT
    return RpcErrorKind.FATAL


def hinted_blocks(message: str, first: int, last: int) -> int | None:
    """How many blocks a refusal says would be answered, or None if it says nothing that can be believed.

    Nodes hint at a range ("this block range should work: [0x.., 0x..]") or at a number of blocks ("limited to a 10,000
    range"). A hinted range counts only inside the range asked for, and any hint only if it is strictly smaller: some
    nodes repeat what they were asked.

    Args:
        message: Of the error of kind RANGE.
        first: First block asked for.
        last: Last block asked for.
    """
    asked = last - first + 1
    for low, high in _HINTED_RANGE.findall(message):
        start, end = (int(number, 16 if number.lower().startswith("0x") else 10) for number in (low, high))
        if first <= start <= end <= last and end - start + 1 < asked:
            return end - start + 1
    for number, thousands in _HINTED_BLOCKS.findall(message):
        blocks = int(number.replace(",", "")) * (1_000 if thousands else 1)
        if 1 <= blocks < asked:
            return blocks
    return None
