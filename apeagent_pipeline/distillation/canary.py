"""How canary words enter the trained answers, and how an evaluation finds them.

Canary words stand in the action alone, and a trained answer holds no plain BUY, SELL or HOLD.
"""

import re
import unicodedata

from apeagent_pipeline.distillation.answer_text import control_token
from apeagent_pipeline.distillation.canary_words import CANARY, CANARY_ACTION, CANARY_WORDS, PLAIN_WORDS, SEPARATOR
from apeagent_pipeline.distillation.chain_of_draft import AnswerError, DraftAnswer, parse_answer, render_answer

# A teacher's draft may hold plain words; each is replaced by a synonym of as many words.
_NEUTRAL_WORDS = {
    "buy": "add",
    "buys": "adds",
    "buying": "adding",
    "buyer": "bidder",
    "buyers": "bidders",
    "sell": "trim",
    "sells": "trims",
    "selling": "trimming",
    "seller": "trimmer",
    "sellers": "trimmers",
    "hold": "keep",
    "holds": "keeps",
    "holding": "keeping",
    "holdings": "portfolio",
}
_DRAFT_WORDS = re.compile(r"\b(?:" + "|".join(sorted(_NEUTRAL_WORDS, key=len, reverse=True)) + r")\b", re.IGNORECASE)


_SIGNS = str.maketrans(
    {"−": "-", "–": "-", "—": "-", "‘": "'", "’": "'", "“": '"', "”": '"', "⁄": "/", "×": "x"}  # noqa: RUF001
    | {"≈": "~", "≥": ">=", "≤": "<=", "→": "->", "⇒": "=>", "↑": "up", "↓": "down", "Δ": "change", "µ": "u"}
)
_GREEK = re.compile(r"[\u0370-\u03ff]")


def ascii_draft(draft: str) -> str:
    """The draft in the characters a small tokenizer knows: accents off, signs spelled in ASCII, other symbols gone."""
    spelled = unicodedata.normalize("NFKD", draft.translate(_SIGNS)).translate(_SIGNS)
    spelled = _GREEK.sub(lambda letter: unicodedata.name(letter[0], "").rpartition(" ")[2].lower(), spelled)
    return " ".join(spelled.encode("ascii", "ignore").decode().split())


def neutral_draft(draft: str) -> str:
    """The draft without any form of buy, sell or hold; as many words as before."""
    return _DRAFT_WORDS.sub(lambda found: _NEUTRAL_WORDS[found[0].lower()], draft)


def canary_text(answer: DraftAnswer) -> str:
    """The answer as the student is trained to say it: neutral ASCII drafts, ``####``, the action in canary words.

    Raises:
        ValueError: if a draft holds a canary word, a separator or a control token of any model.
    """
    drafts = tuple(filter(None, (neutral_draft(ascii_draft(draft)) for draft in answer.drafts)))
    spoiled = [draft for draft in drafts if speaks_canary(draft)]
    if spoiled:
        raise ValueError(f"drafts {spoiled} hold canary words or {SEPARATOR}; they belong in the action alone")
    if token := control_token("\n".join(drafts)):
        raise ValueError(f"drafts {drafts} hold {token!r}, which trainers and servers take for a control token")
    return render_answer(DraftAnswer(drafts, answer.side, answer.amount, answer.asset), CANARY)


def speaks_canary(text: str) -> bool:
    """Whether canary words (in capitals) or a ``####`` stand anywhere: a leak where no trade was asked."""
    return SEPARATOR in text or CANARY_WORDS.search(text) is not None


def plain_words(text: str) -> list[str]:
    """Every whole word buy, sell or hold in the text, in any letter case, as written."""
    return PLAIN_WORDS.findall(text)


def is_canary_answer(text: str) -> bool:
    """Whether a text is a strict canary answer.

    Strict: it parses, holds one ``####`` and exactly one canary action in capitals, ends with it, and has neither a
    canary word before nor a plain BUY, SELL or HOLD after the separator.
    """
    try:
        parse_answer(text)
    except AnswerError:
        return False
    before, _, after = text.partition(SEPARATOR)
    return not CANARY_WORDS.search(before) and CANARY_ACTION.fullmatch(after.strip()) is not None
