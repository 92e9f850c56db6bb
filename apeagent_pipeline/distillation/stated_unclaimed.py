"""Holdings and the price in words that nobody foresaw, where the answer's drafts copy them.

People find ever new words: "2.5 ETH in the barn", "the oracle agrees with the pool on 2,507". `stated_facts` does not
know them. The student lists in its drafts what it took for the price and the asker's holdings. Where both readings
agree, the number counts: the drafts copy the least amount of a token that the question names, and no word around it
names another owner, an order or another day. No list of such words is complete, so this also relies on the student not
to list holdings that are another's; ``benchmarks.people_prompts`` counts how often it trades for them.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from apeagent_pipeline.distillation.stated_names import words
from apeagent_pipeline.distillation.stated_owner import is_of_somebody, names_a_person, names_an_owner
from apeagent_pipeline.distillation.stated_records import LOWEST_PRICE
from apeagent_pipeline.distillation.stated_words import NOT_THE_PRICE, TAKES_AWAY
from apeagent_pipeline.distillation.written_numbers import NUMBER, readings

_FLAGS = re.IGNORECASE | re.ASCII
_ETH = r"w?eth(?:er(?:eum)?)?\b"
_USDC = r"(?:usdc?\b|dollars?\b|stables?\b|stablecoins?\b|bucks\b|cash\b)"
_LABEL = r"(?P<label>(?:\s(?:units?|balance|bal|held|amount|qty|free|side))?\s?[:=(])?\s?$"
_BEFORE = {"eth": re.compile(_ETH + _LABEL, _FLAGS), "usdc": re.compile(_USDC + _LABEL, _FLAGS)}
_BEHIND = {
    "eth": re.compile(rf" ?(?:of )?{_ETH}(?! ?[/-] ?usdc)", _FLAGS),
    "usdc": re.compile(rf" ?(?:of |in )?{_USDC}", _FLAGS),
}
_EACH = re.compile(rf" ?{_USDC} ?(?:/|per|an|a|each|for (?:one|an|1)) ?(?:one )?(?:{_ETH}|coin\b)", _FLAGS)
_OF_A_MOVE = re.compile(r"\s?(?:[%\u2030]|(?:bps?|ticks?|t|pips?|points?|pct|basis|percent|per\scent)\b)", _FLAGS)
_VOLUME = re.compile(r"\b(?:vol(?:ume)?|volatility|sigma)\b[^\d.;\n]{0,12}$", _FLAGS)
_NUMBER = re.compile(rf"(?<![\w.,])(?P<sign>[-+\u2212]?){NUMBER}(?!\d|[.,]\d)", _FLAGS)
_WORD = re.compile(r"[a-z]+", re.IGNORECASE)
_CLAUSE = re.compile(r"[,;]\s")
_LIST_BEFORE = re.compile(
    rf"(?:(?:{NUMBER} ?(?:{_ETH}|{_USDC})|(?:{_ETH}|{_USDC}) ?[:=]? ?{NUMBER})[ ,;&+/]{{0,3}}(?:and )?)+$", _FLAGS
)
"""Amounts right before another: what is said of the first is said of all."""
_END_OF_SENTENCE = re.compile(r"[.!?](?=\s|$)|\n")
_REFERS_BACK = re.compile(r"\s?(?:it|this|that|these|those|they|there|he|she|his|her|their|balance)\b", _FLAGS)
_NOT_HELD = NOT_THE_PRICE | TAKES_AWAY | words(
    "owe owes owed debt loan borrow borrowed lend lent stake staked collateral pool pools tvl reserves whale whales "
    "swap swapped traded send sent give gave need want wants wish wished hope dream imagine suppose profit loss pnl "
    "salary plan planned planning tip fee inflow outflow hacked frozen donated burned burnt prize reward transfer "
    "no not never hardly barely longer d ll will might may should shall soon once when last year month before "
    "formerly previously former old earlier ex took taken told knows saw sees watch watches follow follows read heard "
    "said says without except happy quiero vorrei quero"
)  # fmt: skip
_COPY = re.compile(
    r"^(?:(?P<price>\d[\d,]*(?:\.\d+)?), )?(?P<usdc>\d[\d,]*(?:\.\d+)?) USDC, (?P<eth>\d+(?:\.\d+)?) ETH$",
    re.MULTILINE | re.ASCII,
)
_CUT_OFF = 1.1
"""A draft keeps at least two digits of a number."""

_Unit = Literal["eth", "usdc"]


@dataclass(frozen=True)
class Copied:
    """What a question names and the drafts of its answer copy; None for what they do not copy."""

    eth: float | None = None
    usdc: float | None = None
    price: float | None = None


def copied(text: str, drafts: str) -> Copied:
    """What the drafts copy, in the line that lists price and holdings.

    Args:
        text: The question as `stated_facts` prepares it. Nothing is read where it names the owner of what it states.
        drafts: The drafts of the answer, one a line.
    """
    line = _COPY.search(drafts)
    if line is None or names_an_owner(text):
        return Copied()
    told = {name: float(number.replace(",", "")) for name, number in line.groupdict().items() if number}
    named: dict[str, list[float]] = {"eth": [], "usdc": [], "price": []}
    for kind, value in _numbers(text):
        named[kind].append(value)
    written = told.get("price", 0.0)
    prices = [value for value in (*named["price"], *named["usdc"]) if value > 0 and _is_copy(written, value)]
    dollars = [value for value in named["usdc"] if value not in prices]
    return Copied(_least(named["eth"], told["eth"]), _least(dollars, told["usdc"]), max(prices, default=None))


def _numbers(text: str) -> Iterator[tuple[str, float]]:
    """Every number that may be a holding or the price: amounts in their least reading, prices in their greatest.

    An amount that is another's counts as 0.
    """
    for number in _NUMBER.finditer(text):
        begin, end = number.span()
        values = readings(number[0].lstrip("-+\u2212"))
        if not values or _OF_A_MOVE.match(text, end):
            continue
        before = text[max(begin - 30, 0) : begin]
        unit, is_label = _unit(text, before, end)
        if number["sign"]:
            if unit:
                yield unit, 0.0
        elif unit is None or _EACH.match(text, end) or (unit == "eth" and is_label and max(values) >= LOWEST_PRICE):
            if max(values) >= LOWEST_PRICE and not _VOLUME.search(before):
                yield "price", max(values)
        else:
            yield unit, 0.0 if _is_not_held(text, begin, end) else min(values) if unit == "eth" else values[0]


def _unit(text: str, before: str, end: int) -> tuple[_Unit | None, bool]:
    """The token whose name stands behind a number or before it, and whether it is the one before."""
    labels: dict[_Unit, re.Match[str]] = {}
    behind: _Unit | None = None
    units: tuple[_Unit, ...] = ("eth", "usdc")
    for unit in units:
        if found := _BEFORE[unit].search(before):
            labels[unit] = found
        if _BEHIND[unit].match(text, end):
            behind = unit
    signed = next((unit for unit, found in labels.items() if found["label"]), None)
    found_first = signed or behind or next(iter(labels), None)
    return found_first, signed is not None or (behind is None and bool(labels))


def _is_not_held(text: str, begin: int, end: int) -> bool:
    """Whether the words around an amount name another owner, an order or another day."""
    *earlier, sentence = _END_OF_SENTENCE.split(text[max(begin - 200, 0) : begin])
    behind = _END_OF_SENTENCE.split(text[end : end + 60])[0]
    clauses = f"{_CLAUSE.split(_LIST_BEFORE.sub('', sentence))[-1]} {_CLAUSE.split(behind)[0]}"
    around = [sentence, behind, *(earlier[-1:] if _REFERS_BACK.match(sentence) else [])]
    is_denied = bool({word.lower() for word in _WORD.findall(clauses)} & _NOT_HELD)
    return is_denied or is_of_somebody(text, end) or any(map(names_a_person, around))


def _least(values: Sequence[float], written: float) -> float | None:
    """The least of the values, if that is what is written."""
    least = min(values, default=-1.0)
    return least if _is_copy(written, least) else None


def _is_copy(written: float, value: float) -> bool:
    return 0 <= written <= value * (1 + 1e-9) and value <= written * _CUT_OFF
