"""The meaning of a node's error: ask for less, ask later, ask again, or give up.

Providers share neither codes nor wording, so the text decides first, then the code, then the HTTP status.
"""

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
        retry_after: Seconds that the server asked to wait, or None.
        is_hopeless: Whether no request to this endpoint can succeed: a wrong key, no credit left.
        is_silent: Whether no answer came at all.
        is_lost: Whether no answer came, or only a part of one.
    """

    def __init__(
        self,
        message: str,
        kind: RpcErrorKind,
        retry_after: float | None = None,
        *,
        is_hopeless: bool = False,
        is_silent: bool = False,
        is_lost: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after = retry_after
        self.is_hopeless = is_hopeless
        self.is_silent = is_silent
        self.is_lost = is_lost or is_silent


def _pattern(*alternatives: str) -> re.Pattern[str]:
    return re.compile("|".join(alternatives), re.IGNORECASE)


_HOPELESS = _pattern(
    r"(?:month|billing|quota|plan)\w*.{0,20}(?:capacity|quota|credits?|requests?).{0,20}(?:exceed|reach|used|exhaust)",
    r"out of (?:credits?|requests)|payment required|insufficient (?:credits?|funds|balance)",
    r"subscription (?:is |has )?(?:expired|inactive)",
    r"(?:invalid|missing|unknown|bad|expired|revoked|disabled) (?:api|access|project|app)?[ -]?(?:key|token|id)\b",
    r"unauthori[sz]ed|must be authenticated|authentication (?:is )?required",
    r"(?:project|app|account) (?:not found|disabled|suspended)",
)
_PRUNED = _pattern(
    r"prun(?:ed|ing)|histor(?:y|ical)\b.{0,40}(?:unavailable|not available|not supported)",
    r"archive (?:node|data|request)",
    r"receipts? not available|(?:before|older than|below) (?:the )?(?:earliest|oldest|first available)",
)
_BATCH = _pattern(r"\bbatch(?:es|ing)?\b")
_LAG = _pattern(
    r"beyond (?:the )?current head|after last accepted block",
    r"(?:header|block)s? (?:[^.]{0,80} )?(?:not found|(?:can ?not|could not|can't) be found)",
    r"unknown block|missing trie node|no backend|unhealthy|not (?:yet )?(?:synced|indexed)",
    r"(?:can't|cannot|can not|could not|unable to) (?:route|complete|handle|process|serve)",
)
_RATE = _pattern(
    r"rate.?limit|too many requests|requests? (?:per|/) ?s|request (?:rate|limit)|compute units|throughput",
    r"\brps\b|\bcu/?ps\b|credits? (?:are )?limited|capacity|per second|slow down|throttl",
    r"concurren(?:t|cy)|/ ?s(?:ec)?\b",
)
_RANGE = _pattern(
    r"block.?range|max(?:imum)? (?:block range|results)|ranges? over|limit the query|query timeout|query returned more",
    r"\brange\b.*(?:limit|exceed|wide|large|big|high|long|than|support|max)|(?:limited to|exceeds?).*\brange\b",
    r"(?:response|result|answer|body|payload|content|message|query|data)s?\b.{0,30}"
    r"(?:too|larger|bigger|greater|smaller|longer|more) ?(?:big|large|long|many|than)",
    r"response size|more than \d+ results|blocks? distance|logs matched|block (?:span|interval|window)",
    r"(?:exceed|over|more|maximum|max|limit)\w*\b.{0,30}\b(?:blocks|logs|results)\b",
    r"too many (?:\w+ )?(?:blocks|logs|events|results)",
)
_TRANSIENT = _pattern(
    r"time.?out|timed out|deadline exceeded|temporar|try again|retry|unavailable|internal (?:server )?error|overloaded",
    r"upstream|connection|bad gateway|context cancell?ed|crashed",
    r"failed to (?:get|fetch|load|query)|busy|reset by peer|\beof\b",
)
_RANGE_CODES = frozenset({-32614, -32020, -32701, -32008, 35})
_RATE_CODES = frozenset({429, -32016, -32029, -32097})
_FATAL_CODES = frozenset({-32601, -32602, 4444})
_INTERNAL_ERROR = -32603
_SERVER_ERROR_STATUS = 500
_CLIENT_ERROR_STATUS = 300
_PASSING_STATUS = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_EARLY})
_HOPELESS_STATUS = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.PAYMENT_REQUIRED, HTTPStatus.FORBIDDEN})

_HINTED_RANGE = re.compile(r"(0x[0-9a-f]+|\d+)\s*(?:,|-|to)\s*(0x[0-9a-f]+|\d+)\b", re.IGNORECASE)
_HINTED_BLOCKS = re.compile(
    r"(?:limit(?:ed)? (?:of|to|is)|limit:|at most|up to|over|distance:?|set to|>"
    r"|max(?:imum)?(?! results)\b[^\d.;\[]{0,40}"
    r"|(?:smaller|less|fewer|greater|larger|more) than(?: size)?)"
    r"(?: an?)?:? *(\d[\d,]*)(k?)\b(?! *(?:results|logs|bytes|events|requests|[kmg]i?b\b))",
    re.IGNORECASE,
)
_LIMITS_OF_SIZE = re.compile(r"logs matched|response size|bytes|\d[kmg]i?b\b|results", re.IGNORECASE)
_LIMIT_OF_PLAN = re.compile(r"up to an? \d+ block range", re.IGNORECASE)
_ADVICE = re.compile(r"should work|try with|retry with", re.IGNORECASE)
_SPEAKS_OF_BLOCKS = re.compile(r"block|range", re.IGNORECASE)


def classify(code: int | None, message: str, status: int | None = None) -> RpcErrorKind:
    """The kind of an error.

    Args:
        code: Of the JSON-RPC error object, if there was one.
        message: Of the error object, or whatever text there was.
        status: HTTP status, if it was not 200.
    """
    if is_hopeless(code, message, status):
        return RpcErrorKind.FATAL
    for pattern, kind in (
        (_BATCH, RpcErrorKind.BATCH),
        (_LAG, RpcErrorKind.TRANSIENT),
        (_PRUNED, RpcErrorKind.FATAL),
        (_RANGE, RpcErrorKind.RANGE),
        (_RATE, RpcErrorKind.RATE),
        (_TRANSIENT, RpcErrorKind.TRANSIENT),
    ):
        if pattern.search(message) and not (kind is RpcErrorKind.RANGE and status == HTTPStatus.TOO_MANY_REQUESTS):
            return kind
    return _kind_of_numbers(code, status)


def _kind_of_numbers(code: int | None, status: int | None) -> RpcErrorKind:
    """The kind of an error whose text says nothing."""
    if code in _RATE_CODES or status == HTTPStatus.TOO_MANY_REQUESTS:
        return RpcErrorKind.RATE
    if code in _RANGE_CODES or status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return RpcErrorKind.RANGE
    if code == _INTERNAL_ERROR or status in _PASSING_STATUS or (status or 0) >= _SERVER_ERROR_STATUS:
        return RpcErrorKind.TRANSIENT
    if code in _FATAL_CODES or (status or 0) >= _CLIENT_ERROR_STATUS:
        return RpcErrorKind.FATAL
    return RpcErrorKind.UNKNOWN


def is_hopeless(code: int | None, message: str, status: int | None = None) -> bool:
    """Whether no request can succeed with this URL: the key is wrong, or no credit is left."""
    if _HOPELESS.search(message):
        return True
    # Some providers answer 403 to a request that is too large or too fast.
    explained = any(pattern.search(message) for pattern in (_BATCH, _RANGE, _RATE, _LAG))
    return status in _HOPELESS_STATUS and not explained


def is_range_limit(message: str) -> bool:
    """Whether a refusal names a limit on the blocks of every request, and not a size that fits these logs."""
    return bool(_LIMIT_OF_PLAN.search(message)) or not (_LIMITS_OF_SIZE.search(message) or _ADVICE.search(message))


def hinted_blocks(message: str, first: int, last: int) -> int | None:
    """How many blocks a refusal says would be answered, or None if it says nothing that can be believed.

    Nodes hint at a range ("this block range should work: [0x.., 0x..]") or at a number of blocks ("limited to a 10,000
    range"). A hinted range counts only inside the range asked for, and any hint only if it is strictly smaller: some
    nodes repeat what they were asked. Of several numbers the smallest counts.

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
    if _LIMITS_OF_SIZE.search(message) and not _SPEAKS_OF_BLOCKS.search(message):
        return None
    hints = (
        int(number.replace(",", "")) * (1_000 if thousands else 1)
        for number, thousands in _HINTED_BLOCKS.findall(message)
    )
    return min((blocks for blocks in hints if 1 <= blocks < asked), default=None)
