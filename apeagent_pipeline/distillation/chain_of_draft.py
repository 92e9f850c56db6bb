"""Chain of Draft: the one form an answer may have, and the strict reader of it.

Source: "Chain of Draft: Thinking Faster by Writing Less" (arXiv 2502.18600). An answer is a few drafts, one a line, a
line ``####`` and one action::

    trend up strong
    portfolio mostly USDC
    ####
    BUY 2.5 ETH

The grammar does not guess: any other text is refused with a reason. A text that cannot be read never becomes a HOLD,
because a label that nobody gave poisons a training set.
"""

import math
import re
from dataclasses import dataclass

import numpy as np

from apeagent_pipeline.distillation.action_line import ASSETS, AnswerError, Asset, read_action
from apeagent_pipeline.distillation.answer_text import (
    CONTROL_TOKEN,
    control_token,
    foreign_letter,
    has_fence,
    has_latex,
    has_open_thinking,
    hidden_character,
    split_drafts,
    spoken_text,
    without_fences,
)
from apeagent_pipeline.distillation.canary_words import SEPARATOR, SIDES, Side

SYSTEM_PROMPT = """\
You are a trading assistant for one ETH-USDC pool on Uniswap.
Think step by step, but only keep a minimum draft for each thinking step, with 5 words at most. \
Return the answer at the end of the response after a separator ####.
Write one draft a line: the trend, the volatility, the portfolio, then what follows from them.
After the line #### write exactly one line and nothing else: BUY <amount> ETH, SELL <amount> ETH, or HOLD.
The amount is one plain number such as 0.25. Never spend USDC or sell ETH that is not held."""
"""What a teacher is told."""

LONGEST_TRADE = 144
"""Tokens that a student's answer to a trading prompt may have; a taught one has at most 130."""

STUDENT_SYSTEM_PROMPT = "You are a helpful assistant. Asked for a trade, you think in short drafts."
"""What the student is trained and served with: short, because every token of it is paid in every example, and without
any canary word or separator, so that these can only come from the training."""


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


_SEPARATOR = re.compile(r"(?<!#)####(?!#)")
_GLUE = re.compile(r"(?<=[A-Za-z])[-_/.,:;+](?=[A-Za-z])")
_LONGEST_COMPOUND = 3  # words such as "up-to-date"


def word_count(draft: str) -> int:
    """Number of words of a draft, numbers included.

    A sign alone, such as ``=``, is no word. A chain of more than three words without blanks counts each of them.
    """
    counts = (len(_GLUE.split(word)) for word in draft.split() if any(map(str.isalnum, word)))
    return sum(parts if parts > _LONGEST_COMPOUND else 1 for parts in counts)


def student_chat(question: str) -> list[dict[str, str]]:
    """The messages that ask the student, as in its training."""
    return [{"role": "system", "content": STUDENT_SYSTEM_PROMPT}, {"role": "user", "content": question}]


def parse_answer(text: str) -> DraftAnswer:
    """Read an answer, a teacher's plain words and a student's canary words alike.

    Accepted beside the plain form, because nothing else can be meant: thinking between marks such as ``<think>``
    (dropped); markdown bold, fences, quotes and list marks; drafts on one line, ``a; b; c. #### HOLD``; any letter
    case; a full stop, label, quotes, LaTeX box or JSON object around the action; a thousands comma.

    Args:
        text: What the model said.

    Raises:
        AnswerError: with a ``reason`` of ``REASONS``; never a silent HOLD.
    """
    spoken = spoken_text(text)
    if has_open_thinking(spoken):
        raise AnswerError("unfinished_thinking", text.strip())
    if not spoken:
        raise AnswerError("only_thinking" if text.strip() else "empty", text.strip())
    if hidden := hidden_character(spoken):
        raise AnswerError("hidden_characters", hidden)
    pieces = _SEPARATOR.split(without_fences(spoken).replace("**", ""))
    # A token behind the action needs no check of its own: an action is read whole or not at all.
    if token := control_token(pieces[0]) or _token_in_thinking(text, spoken):
        raise AnswerError("control_token", token)
    if foreign_letter(spoken):
        raise AnswerError("not_english", spoken)
    if len(pieces) == 1:
        raise AnswerError("no_separator", spoken)
    if len(pieces) > 2:
        raise AnswerError("several_separators", spoken)
    if has_fence(pieces[0]):
        raise AnswerError("unclosed_fence", spoken)
    drafts = split_drafts(pieces[0])
    if latex := next(filter(has_latex, drafts), None):
        raise AnswerError("markup_in_draft", latex)
    return DraftAnswer(drafts, *read_action(pieces[1]))


def _token_in_thinking(text: str, spoken: str) -> str | None:
    """A control token in the dropped part: the model ran on after its turn, so nothing it says can be trusted."""
    found = CONTROL_TOKEN.search(text)
    return found[0] if found and not CONTROL_TOKEN.search(spoken) else None


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
