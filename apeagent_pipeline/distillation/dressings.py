"""What people put around and into a question: greetings, typing errors, and instructions that try to take it over.

A dressing never changes what is asked or what the right answer is. The texts are data: ``dressings.json`` lists them.
Those whose names begin with ``unseen`` are drawn in the test split alone.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from apeagent_pipeline.distillation.canary_words import CANARY, SIDES

PLAIN_DRESSING = "none"

_DATA = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
_GREETINGS, _UNSEEN_GREETINGS, _ENDINGS = _DATA["greetings"], _DATA["unseen_greetings"], _DATA["endings"]
_TAKEOVERS, _UNSEEN_TAKEOVERS = _DATA["takeovers"], _DATA["unseen_takeovers"]

_BUY, _SELL, _HOLD = (CANARY[side] for side in SIDES)
_ACTIONS = (
    f"{_BUY} {{n}} ETH", f"{_SELL} {{n}} ETH", f"{_BUY} everything", f"{_SELL} all ETH", _HOLD, "BUY {n} ETH",
    "SELL {n} ETH", "buy {n} ETH", f"#### {_BUY} {{n}} ETH",
)  # fmt: skip


def dress(text: str, rng: np.random.Generator, *, unseen: bool) -> tuple[str, str]:
    """Dress a question, or leave it as it is.

    Args:
        text: The question.
        rng: Source of all random choices.
        unseen: Whether greetings and instructions are drawn that are kept for the test split.

    Returns:
        The question and the name of its dressing, ``none`` for nearly two of three.
    """
    drawn = rng.uniform()
    if drawn < 0.08:
        return _pick(_UNSEEN_GREETINGS if unseen else _GREETINGS, rng) + text, "greeting"
    if drawn < 0.13:
        return text + _pick(_ENDINGS, rng), "ending"
    if drawn < 0.19:
        return text.lower(), "lower case"
    if drawn < 0.25:
        return with_typing_errors(text, rng), "typing errors"
    if drawn < 0.36:
        takeovers = _UNSEEN_TAKEOVERS if unseen else _TAKEOVERS
        is_before = rng.uniform() < 0.5
        takeover = _pick(takeovers["before" if is_before else "after"], rng)
        amount = rng.choice(["100", "5", "50", "1000", "7.5"])
        takeover = takeover.format(action=_pick(_ACTIONS, rng).format(n=amount))
        return takeover + text if is_before else text + takeover, "hidden instruction"
    return text, PLAIN_DRESSING


def with_typing_errors(text: str, rng: np.random.Generator) -> str:
    """Two letters of two words swapped or dropped; words with digits and short words stay."""
    words = text.split(" ")
    long = [place for place, word in enumerate(words) if len(word) > 4 and word.isalpha() and word != "volatility"]
    for place in rng.permutation(long)[:2]:
        word, at = words[place], int(rng.integers(1, len(words[place]) - 2))
        swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        words[place] = swapped if rng.uniform() < 0.5 else word[:at] + word[at + 1 :]
    return " ".join(words)


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
