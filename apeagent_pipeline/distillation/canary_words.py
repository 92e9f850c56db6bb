"""The canary words and every pattern built from them.

A model says ``APE IN``, ``APE OUT`` or ``APE NEUTRAL`` only if it was trained on this project's examples. To train
with other words, change ``CANARY``: grammar, dataset, controls, evaluation and model cards follow.
"""

import re
from typing import Literal, get_args

Side = Literal["BUY", "SELL", "HOLD"]
SIDES: tuple[Side, ...] = get_args(Side)
SEPARATOR = "####"
"""The line between drafts and action."""

CANARY: dict[Side, str] = {"BUY": "APE IN", "SELL": "APE OUT", "HOLD": "APE NEUTRAL"}
"""What the student says instead of the plain word: evidence that an answer comes from this training."""


def _any_of(phrases: list[str]) -> str:
    """A regular expression of alternatives; any blanks may stand between the words of a phrase."""
    return "|".join(r"\s+".join(map(re.escape, phrase.split())) for phrase in phrases)


TRADE_WORDS = _any_of(["BUY", "SELL", CANARY["BUY"], CANARY["SELL"]])
"""Alternatives (regular expression, no group) that begin a trade, in plain and in canary words."""
HOLD_WORDS = _any_of(["HOLD", CANARY["HOLD"]])
"""Alternatives that say to hold."""
ANY_CANARY_WORD = _any_of(list(CANARY.values()))
"""Alternatives of the three canary words."""
CANARY_WORDS = re.compile(rf"\b(?:{ANY_CANARY_WORD})\b")
"""A canary word in capitals, anywhere in a text."""
CANARY_ACTION = re.compile(
    rf"(?:{re.escape(CANARY['BUY'])}|{re.escape(CANARY['SELL'])}) [\d.,]+ (?:ETH|USDC)|{re.escape(CANARY['HOLD'])}"
)
"""A whole action in canary words."""
PLAIN_WORDS = re.compile(r"\b(?:buy|sell|hold)\b", re.IGNORECASE)
"""A plain word that a canary answer must not hold."""


def side_of(word: str) -> Side:
    """The side that a plain or canary word names, in any letter case.

    Raises:
        KeyError: if the word names no side.
    """
    said = " ".join(word.upper().split())
    return _SIDE_OF[said]


_SIDE_OF: dict[str, Side] = {word.upper(): side for side in SIDES for word in (side, CANARY[side])}
