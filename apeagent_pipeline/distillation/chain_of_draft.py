"""Chain of Draft: the one form an answer may have, and the strict reader of it.

Source: "Chain of Draft: Thinking Faster by Writing Less" (arXiv 2502.18600). An answer is a few drafts, one a line, a
line ``####`` and one action::

    trend up strong
    portfolio mostly USDC
    ####
    BUY 2.5 ETH

The grammar does not guess: a text that is not exactly this is refused with a reason. In particular nothing that could
not be read becomes a HOLD, because a label that nobody gave poisons a training set.
"""

import math
import re
import unicodedata
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np

from apeagent_pipeline.distillation.canary_words import (
    ANY_CANARY_WORD,
    HOLD_WORDS,
    SEPARATOR,
    SIDES,
    TRADE_WORDS,
    Side,
    side_of,
)
from apeagent_pipeline.errors import ApeagentError

Asset = Literal["ETH", "USDC"]
ASSETS: tuple[Asset, ...] = get_args(Asset)

SYSTEM_PROMPT = """\
You are a trading assistant for one ETH-USDC pool on Uniswap.
Think step by step, but only keep a minimum draft for each thinking step, with 5 words at most. \
Return the answer at the end of the response after a separator ####.
Write one draft a line: the trend, the volatility, the portfolio, then what follows from them.
After the line #### write exactly one line and nothing else: BUY <amount> ETH, SELL <amount> ETH, or HOLD.
The amount is one plain number such as 0.25. Never spend USDC or sell ETH that is not held."""
"""What a teacher is told."""

STUDENT_SYSTEM_PROMPT = "You are a helpful assistant. Asked for a trade, you think in short drafts."
"""What the student is trained and served with: short, because every token of it is paid in every example, and without
any canary word or separator, so that these can only come from the training."""

Reason = Literal[
    "empty",
    "only_thinking",
    "unfinished_thinking",
    "not_english",
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


@dataclass(frozen=True)
class DraftAnswer:
    """An answer that was read: what was thought and what is to be done.

    Attributes:
        drafts: The thinking, one line each, without list marks.
        side: ``"BUY"``, ``"SELL"`` or ``"HOLD"``.
        amount: How much of ``asset``, in whole tokens; None for HOLD.
        asset: ``"ETH"`` or ``"USDC"``; None for HOLD. ``BUY 500 USDC`` means ETH for 500 USDC, ``SELL 500 USDC`` as
            much ETH as brings 500 USDC.
    """

    drafts: tuple[str, ...]
    side: Side
    amount: float | None = None
    asset: Asset | None = None

    def __post_init__(self) -> None:
        if self.side not in SIDES:
            raise ValueError(f"side {self.side!r} is not one of {SIDES}")
        if self.side == "HOLD":
            if self.amount is not None or self.asset is not None:
                raise ValueError(f"HOLD takes no amount and no asset, got {self.amount} {self.asset}")
        elif self.amount is None or not (math.isfinite(self.amount) and self.amount > 0) or self.asset not in ASSETS:
            raise ValueError(f"{self.side} needs a positive amount of one of {ASSETS}, got {self.amount} {self.asset}")


_WIDE_SPACES = re.compile(r"[\u00a0\u2007\u202f]")
_THINKING_BEGINS = re.compile("<think>", re.IGNORECASE)
_THINKING_ENDS = re.compile("</think>", re.IGNORECASE)
_SEPARATOR = re.compile(r"(?<!#)####(?!#)")
_LIST_MARK = re.compile(r"^(?:[-*•]|\d{1,2}[.)])\s+")
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_TRADE = re.compile(rf"({TRADE_WORDS}) ({_NUMBER}) ?(ETH|USDC)", re.IGNORECASE | re.ASCII)
_REST = re.compile(rf"(?:{HOLD_WORDS})", re.IGNORECASE | re.ASCII)
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
    r"[~≈<>≤≥±+]|\b(?:about|around|approximately|approx|roughly|some|nearly|almost|up to|at least|at most|maybe|over|"
    r"under)\b",
    re.IGNORECASE,
)
_ZERO_OR_LESS = re.compile(r"(?:^|(?<!\d)\s)(?:[-−]\s?\$?[\d.]+|\$?0+(?:\.0+)?)(?=\s|$|[A-Za-z])", re.ASCII)  # noqa: RUF001
_AMOUNT_ONLY = re.compile(rf"(?:{TRADE_WORDS}) \$?{_NUMBER}", re.IGNORECASE | re.ASCII)
_AMOUNT_AND_WORD = re.compile(rf"(?:{TRADE_WORDS}) \$?{_NUMBER} ?([A-Za-z]+)", re.IGNORECASE | re.ASCII)
_STARTS_LIKE_TRADE = re.compile(rf"(?:{TRADE_WORDS}) \$?[\d.,]", re.IGNORECASE | re.ASCII)


def spoken_text(text: str) -> str:
    """The text without finished thinking; some servers swallow the opening mark and keep the closing one."""
    # Cut at its marks and not searched for as a whole: that takes the square of the length, and a server says anything.
    *ended, rest = _THINKING_ENDS.split(text)
    spoken = ""
    for piece in ended:
        before, *thought = _THINKING_BEGINS.split(piece, maxsplit=1)
        spoken = spoken + before if thought else ""
    return (spoken + rest).strip()


def word_count(draft: str) -> int:
    """Number of words of a draft: what stands between blanks, numbers included."""
    return len(draft.split())


def student_chat(question: str) -> list[dict[str, str]]:
    """The messages that ask the student, as in its training."""
    return [{"role": "system", "content": STUDENT_SYSTEM_PROMPT}, {"role": "user", "content": question}]


def parse_answer(text: str) -> DraftAnswer:
    """Read an answer, a teacher's plain words and a student's canary words alike.

    Accepted beside the plain form, because it cannot mean anything else: thinking between ``<think>`` marks (dropped),
    markdown bold and code marks, a list mark before a draft, any letter case, a full stop after the action, a
    thousands comma, the action on the separator's own line.

    Args:
        text: What the model said.

    Raises:
        AnswerError: with a ``reason`` of ``REASONS``; never a silent HOLD.
    """
    spoken = spoken_text(text)
    if "<think" in spoken.lower():
        raise AnswerError("unfinished_thinking", text.strip())
    if not spoken:
        raise AnswerError("only_thinking" if text.strip() else "empty", text.strip())
    foreign = [c for c in spoken if c.isalpha() and not unicodedata.name(c, "").startswith("LATIN")]
    if foreign:
        raise AnswerError("not_english", spoken)
    pieces = _SEPARATOR.split(_WIDE_SPACES.sub(" ", spoken).replace("**", ""))
    if len(pieces) == 1:
        raise AnswerError("no_separator", spoken)
    if len(pieces) > 2:
        raise AnswerError("several_separators", spoken)
    drafts = tuple(
        _LIST_MARK.sub("", line.strip()).strip("`* ") for line in pieces[0].splitlines() if line.strip("`*-• \t")
    )
    lines = [line.strip() for line in pieces[1].splitlines() if line.strip()]
    if not lines:
        raise AnswerError("no_action", spoken)
    side, amount, asset = _read_action(lines[0])
    if len(lines) > 1:
        several = _SIDE_WORD.search(" ".join(lines[1:])) is not None
        raise AnswerError("several_actions" if several else "text_after_action", " / ".join(lines))
    return DraftAnswer(drafts, side, amount, asset)


def read_answer(text: str) -> DraftAnswer | None:
    """The answer, or None where ``parse_answer`` finds none."""
    try:
        return parse_answer(text)
    except AnswerError:
        return None


def render_action(answer: DraftAnswer, words: dict[Side, str] | None = None) -> str:
    """The action line, such as ``SELL 2.5 ETH``; ``words`` replaces the side by another word (``CANARY``)."""
    word = (words or {}).get(answer.side, answer.side)
    if answer.amount is None:
        return word
    return f"{word} {np.format_float_positional(answer.amount, trim='-')} {answer.asset}"


def render_answer(answer: DraftAnswer, words: dict[Side, str] | None = None) -> str:
    """The whole answer as text; ``parse_answer`` reads back the same answer."""
    return "\n".join([*answer.drafts, SEPARATOR, render_action(answer, words)])


def _read_action(line: str) -> tuple[Side, float | None, Asset | None]:
    action = re.sub(r"\s+", " ", line).strip("`*_ ").removesuffix(".").rstrip("`*_ ")
    if _REST.fullmatch(action):
        return "HOLD", None, None
    trade = _TRADE.fullmatch(action)
    if not trade:
        raise AnswerError(_why_refused(action), line)
    amount = float(trade[2].replace(",", ""))
    if amount <= 0:
        raise AnswerError("amount_not_positive", line)
    if not math.isfinite(amount):
        raise AnswerError("amount_malformed", line)
    return side_of(trade[1]), amount, cast(Asset, trade[3].upper())


def _why_refused(action: str) -> Reason:
    """The most telling reason; the order is from wrong in meaning to wrong in form."""
    sides = _SIDE_WORD.findall(action)
    checks: list[tuple[bool, Reason]] = [
        (not sides, "no_action"),
        (bool(_NEGATION.search(action)), "negated_action"),
        (len(sides) > 1, "several_actions"),
        (bool(_RELATIVE.search(action)), "amount_relative"),
        (bool(_RANGE.search(action)), "amount_range"),
        (bool(_INEXACT.search(action)), "amount_inexact"),
        (bool(_ZERO_OR_LESS.search(action)), "amount_not_positive"),
        (bool(re.search(rf"\b(?:{HOLD_WORDS})", action, re.IGNORECASE)), "words_around_action"),
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
