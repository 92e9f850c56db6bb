"""The action of an answer: what stands after the separator, and why it is refused.

The reader removes what models write around an action (list marks, quotes, LaTeX boxes, a label, a JSON object) and then
demands the whole action. It never repairs an amount.
"""

import json
import math
import re
from typing import Any, Literal, NamedTuple, NoReturn, cast, get_args

from apeagent_pipeline.distillation.answer_text import SIGNS
from apeagent_pipeline.distillation.canary_words import (
    ANY_CANARY_WORD,
    HOLD_WORDS,
    SEPARATOR,
    TRADE_WORDS,
    Side,
    side_of,
)
from apeagent_pipeline.errors import ApeagentError

Asset = Literal["ETH", "USDC"]
ASSETS: tuple[Asset, ...] = get_args(Asset)

Reason = Literal[
    "empty",
    "only_thinking",
    "unfinished_thinking",
    "hidden_characters",
    "control_token",
    "not_english",
    "markup_in_draft",
    "unclosed_fence",
    "no_separator",
    "several_separators",
    "no_action",
    "text_after_action",
    "negated_action",
    "several_actions",
    "amount_relative",
    "amount_range",
    "amount_inexact",
    "amount_missing",
    "amount_not_positive",
    "amount_malformed",
    "asset_missing",
    "asset_unknown",
    "words_around_action",
]
REASONS: tuple[Reason, ...] = get_args(Reason)


class AnswerError(ApeagentError, ValueError):
    """A text is not an answer of the grammar.

    Attributes:
        reason: One of ``REASONS``; reports count refusals by it.
        detail: The part of the text that could not be read, shortened.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason = reason
        self.detail = detail if len(detail) <= 80 else detail[:77] + "..."
        super().__init__(
            f"{reason}: {self.detail!r}; expected drafts, a line {SEPARATOR}, then BUY or SELL with an amount of ETH "
            f"or USDC, or HOLD"
        )


class Action(NamedTuple):
    """What is to be done: ``amount`` and ``asset`` are None for HOLD."""

    side: Side
    amount: float | None = None
    asset: Asset | None = None


_NUMBER = r"(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)"
_TRADE_TEXT = rf"({TRADE_WORDS}) ({_NUMBER}) ?(ETH|USDC)"
_FLAGS = re.IGNORECASE | re.ASCII
_TRADE = re.compile(_TRADE_TEXT, _FLAGS)
_TRADE_AND_MORE = re.compile(rf"{_TRADE_TEXT}(?![A-Za-z0-9])", _FLAGS)
_HOLD = re.compile(rf"(?:{HOLD_WORDS})", _FLAGS)
_ONE_COMMA = re.compile(r"\d+,\d{3}")
_SIDE_WORD = re.compile(
    rf"\b(?:buy(?:ing|s)?|bought|sell(?:ing|s)?|sold|hold(?:ing|s)?|{ANY_CANARY_WORD})\b", re.IGNORECASE
)
_NEGATION = re.compile(
    r"\b(?:not|never|no|avoid|without|refrain|neither|nor|stop|cannot)\b|n['\u2019]t\b", re.IGNORECASE
)
_RELATIVE = re.compile(
    r"%|\b(?:percent|half|quarter|third|all|everything|most|rest|remaining|fraction|max|maximum)\b", re.IGNORECASE
)
_RANGE = re.compile(r"\d\s*(?:-|–|—|to|or|and|/|\.\.+)\s*\$?\d|\bbetween\b", re.IGNORECASE)  # noqa: RUF001
_INEXACT = re.compile(
    r"[~≈≤≥±]|[<>]\s*\d|\d\+|\b(?:about|around|approximately|approx|roughly|some|nearly|almost|up to|at least|at most|"
    r"maybe|over|under)\b",
    re.IGNORECASE,
)
_ZERO_OR_LESS = re.compile(r"(?:^|(?<!\d)\s)(?:[-−]\s?\$?[\d.]+|\$?0+(?:\.0+)?)(?=\s|$|[A-Za-z])", re.ASCII)  # noqa: RUF001
_AMOUNT_ONLY = re.compile(rf"(?:{TRADE_WORDS}) \$?{_NUMBER}", _FLAGS)
_AMOUNT_AND_WORD = re.compile(rf"(?:{TRADE_WORDS}) \$?{_NUMBER} ?([A-Za-z]+)", _FLAGS)
_STARTS_LIKE_TRADE = re.compile(rf"(?:{TRADE_WORDS}) [$+<]?[\d.,]", _FLAGS)

_MARK = re.compile(rf"^(?:[{SIGNS}]\ufe0f?|[-*•·–—]|→|⇒|[-=]>|>(?!\s*\d)|\(?\d{{1,2}}[.)])\s+|^(?:→|⇒)")  # noqa: RUF001
_LABEL = re.compile(
    r"^(?:the |my )?(?:(?:final|recommended|trading|trade|suggested|next) )?"
    r"(?:action|answer|decision|trade|recommendation|output|result)\s*:\s*",
    re.IGNORECASE,
)
_WRAPPERS = (
    ("**", "**"), ("*", "*"), ("__", "__"), ("_", "_"), ("```", "```"), ("`", "`"), ('"', '"'), ("'", "'"), ("“", "”"),
    ("‘", "’"), ("«", "»"), ("[", "]"), ("(", ")"), ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"),  # noqa: RUF001
)  # fmt: skip
_EMPHASIS = re.compile(r"[*`]+(?=\w)|(?<=\w)[*`]+")
_BOX = re.compile(r"\\(?:boxed|fbox|text|textbf|textrm|mathrm|mathbf)\s*\{([^{}]*)\}")
_LATEX_BLANK = re.compile(r"\\[ ,;!]|\\quad|~(?=\w)(?<=[A-Za-z]~)")
_RULE = re.compile(r"[-*_=]{3,}")
_KEYS = {
    "action": "side", "side": "side", "decision": "side", "trade": "side",
    "amount": "amount", "quantity": "amount", "size": "amount",
    "asset": "asset", "token": "asset", "symbol": "asset", "currency": "asset",
}  # fmt: skip


def read_action(text: str) -> Action:
    """Read what stands after the separator.

    Raises:
        AnswerError: with a reason of ``REASONS``.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip() and not _RULE.fullmatch(line.strip())]
    if not lines:
        raise AnswerError("no_action", text)
    if lines[0].startswith("{") and lines[-1].endswith("}"):
        return _read_object("\n".join(lines))
    action = _read_line(lines[0])
    if len(lines) > 1:
        several = any(_SIDE_WORD.match(_bare(line)) for line in lines[1:])
        raise AnswerError("several_actions" if several else "text_after_action", " / ".join(lines))
    return action


def _read_line(line: str) -> Action:
    action = _bare(line)
    if _HOLD.fullmatch(action):
        return Action("HOLD")
    trade = _TRADE.fullmatch(action)
    if not trade:
        raise AnswerError(_why_refused(action), line)
    return _trade(trade[1], trade[2], trade[3], line)


def _trade(word: str, number: str, asset: str, line: str) -> Action:
    # One comma and no point may be a decimal comma: nobody can tell 1,250 ETH from 1.25 ETH. Dollars have cents.
    if asset.upper() == "ETH" and _ONE_COMMA.fullmatch(number):
        raise AnswerError("amount_malformed", line)
    amount = float(number.replace(",", ""))
    if amount <= 0:
        raise AnswerError("amount_not_positive", line)
    if not math.isfinite(amount):
        raise AnswerError("amount_malformed", line)
    return Action(side_of(word), amount, cast(Asset, asset.upper()))


def _bare(line: str) -> str:
    """The line without what models write around an action: marks, label, quotes, boxes, one full stop."""
    bare = re.sub(r"\s+", " ", line).strip()
    while True:
        before = bare
        bare = _MARK.sub("", bare).strip()
        bare = _LABEL.sub("", _EMPHASIS.sub("", bare).replace("__", "")).strip()
        bare = re.sub(r"(?<=[\w*_`\"')\]}$”’»])[.!。;]$", "", bare).strip()  # noqa: RUF001
        if "\\" in bare:
            bare = re.sub(r"\s+", " ", _LATEX_BLANK.sub(" ", _BOX.sub(r"\1", bare))).strip()
        for begin, end in _WRAPPERS:
            if len(bare) >= len(begin + end) and bare.startswith(begin) and bare.endswith(end):
                bare = bare[len(begin) : -len(end)].strip()
        if bare == before:
            return bare


def _read_object(text: str) -> Action:
    """Read ``{"action": "BUY", "amount": 0.4, "asset": "ETH"}``, an object with these keys and no others."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key twice")
        return dict(pairs)

    def no_number(name: str) -> NoReturn:
        raise ValueError(name)

    try:
        found = json.loads(text, object_pairs_hook=unique, parse_float=str, parse_int=str, parse_constant=no_number)
        named = unique([(_KEYS[key.lower()], value) for key, value in found.items()])
    except (ValueError, KeyError, AttributeError, RecursionError):
        raise AnswerError("words_around_action", text) from None
    side, amount, asset = (named.get(key) for key in ("side", "amount", "asset"))
    if not isinstance(side, str) or not isinstance(amount, str | None) or not isinstance(asset, str | None):
        raise AnswerError("words_around_action", text)
    if _HOLD.fullmatch(side.strip()) and (amount is None or re.fullmatch(r"0(?:\.0+)?", amount)):
        return Action("HOLD")
    return _read_line(" ".join(part.strip() for part in (side, amount, asset) if part))


def _why_refused(action: str) -> Reason:
    """The most telling reason; the order is from wrong in meaning to wrong in form."""
    sides = list(_SIDE_WORD.finditer(action))
    negation = _NEGATION.search(action)
    checks: list[tuple[bool, Reason]] = [
        (not sides, "no_action"),
        (bool(negation and sides and negation.start() < sides[-1].start()), "negated_action"),
        (len(sides) > 1, "several_actions"),
        (bool(_TRADE_AND_MORE.match(action)), "text_after_action"),
        (bool(re.search(rf"\b(?:{HOLD_WORDS})", action, re.IGNORECASE)), "words_around_action"),
        (bool(_RELATIVE.search(action)), "amount_relative"),
        (bool(_RANGE.search(action)), "amount_range"),
        (bool(_INEXACT.search(action)), "amount_inexact"),
        (bool(_ZERO_OR_LESS.search(action)), "amount_not_positive"),
        (not re.search(r"\d", action), "amount_missing"),
        (bool(_AMOUNT_ONLY.fullmatch(action)), "asset_missing"),
    ]
    for wrong, reason in checks:
        if wrong:
            return reason
    unknown = _AMOUNT_AND_WORD.fullmatch(action)
    if unknown:
        return "amount_malformed" if unknown[1].upper() in ASSETS else "asset_unknown"
    return "amount_malformed" if _STARTS_LIKE_TRADE.match(action) else "words_around_action"
