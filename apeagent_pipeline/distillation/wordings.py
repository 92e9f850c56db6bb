"""Trading prompts in many wordings: facts and questions put together in any order, and whole messages.

Facts stand in sentences, pairs, JSON and tables. The wordings are data: ``wordings.json`` lists them. Every one has
places for printed numbers, in braces; `prompts` fills them.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

NEEDED = ("price", "volatility", "change", "holdings")
"""The facts that a decision needs, in the order in which a draft names a missing one."""

_DATA = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))

FACTS: dict[str, tuple[str, ...]] = {fact: tuple(texts) for fact, texts in _DATA["facts"].items()}
"""The facts of a prompt that is put together, each in several wordings."""

OPENINGS: tuple[str, ...] = tuple(_DATA["openings"])
"""What may stand before the facts."""

QUESTIONS: tuple[str, ...] = tuple(_DATA["questions"])
UNSEEN_QUESTIONS: tuple[str, ...] = tuple(_DATA["unseen_questions"])
"""Asked in the test split alone."""


class Wording(NamedTuple):
    """A prompt in words, with the places of a template."""

    facts: str
    question: str
    is_asked_first: bool = False
    """Whether the question stands before the facts."""


def _messages(missing: str) -> tuple[Wording, ...]:
    messages = (each for each in _DATA["messages"] if each.get("missing", "") == missing)
    return tuple(Wording(each["facts"], each["question"]) for each in messages)


MESSAGES: dict[str, tuple[Wording, ...]] = {missing: _messages(missing) for missing in ("", *NEEDED)}
"""Whole messages as people write them, by the fact of `NEEDED` that they lack. The last tenth of each is drawn in the
test split alone."""

_MESSAGE_SHARE = 0.35
"""Share of the prompts that are whole messages, not put together."""
_ASKED_FIRST = 0.15
"""Share of the prompts that are put together whose question stands before the facts."""

_Draw = Callable[[tuple[str, ...]], str]
_Pairs = list[tuple[str, str]]

_LAYOUTS = (
    (", ", ". "),
    (". ", ". "),
    ("; ", ". "),
    ("\n", "\n"),
    ("\n  - ", "\n"),
    (",\n    ", ".\n    "),
    (" | ", "\n"),
    (" / ", ". "),
    (" and ", ". "),
    ("\n* ", "\n\n"),
)
"""What stands between two facts, and between them and the question."""

_FEW_FACTS, _FEW_QUESTIONS, _FEW_LAYOUTS = 4, 9, 6
"""So many of the first wordings are drawn where few are wanted."""

_KEYS: dict[str, tuple[str, ...]] = {
    "price": ("price", "px", "eth_price", "spot", "ETH/USDC", "p"),
    "volatility": ("vol", "volatility", "realised_vol", "sigma"),
    "change": ("change", "move", "price_change", "delta", "chg"),
    "eth": ("eth", "my_eth", "ETH", "eth_balance", "ETH held"),
    "usdc": ("usdc", "my_usdc", "USDC", "usdc_balance", "USDC held"),
    "volume": ("volume", "volume_usdc"),
}
"""Names of facts where a program or a list tells them."""

_JSON_LAYOUTS = {"line": ("", ", ", ""), "lines": ("\n  ", ",\n  ", "\n")}
"""What stands before the first pair, between two and behind the last."""

_RECORDED = 0.2
"""Share of the prompts whose facts stand as names and values, not in sentences."""
_APART = 0.25
"""Share of the prompts in sentences that tell ETH and USDC apart."""


def compose(rng: np.random.Generator, missing: str = "", *, unseen: bool = False, varied: bool = True) -> Wording:
    """A whole message, or facts in a drawn order, wording and layout, and a question.

    Args:
        rng: Source of all random choices.
        missing: A fact of `NEEDED` that is left out.
        unseen: Whether messages kept for the test split are drawn, and half of the questions are those kept for it.
        varied: Whether all wordings, layouts, openings and messages are drawn, not a few wordings.
    """
    if varied and rng.uniform() < _MESSAGE_SHARE:
        messages = MESSAGES[missing]
        shown = len(messages) - len(messages) // 10
        messages = messages[shown:] if unseen else messages[:shown]
        return messages[rng.integers(len(messages))]
    names = _drawn_names(rng, missing)
    layouts, questions = (_LAYOUTS, QUESTIONS) if varied else (_LAYOUTS[:_FEW_LAYOUTS], QUESTIONS[:_FEW_QUESTIONS])
    if unseen and varied and rng.uniform() < 0.5:
        questions = UNSEEN_QUESTIONS

    draw = _drawing(rng)
    if varied and rng.uniform() < _RECORDED:
        facts = _record(_apart(names, rng), rng, draw) + "\n"
    else:
        names = _apart(names, rng) if varied and rng.uniform() < _APART else names
        between, before_question = layouts[rng.integers(len(layouts))]
        said = [draw(FACTS[name] if varied else FACTS[name][:_FEW_FACTS]) for name in names]
        if "." in between:
            said = [fact[0].upper() + fact[1:] for fact in said]
        facts = between.join(said) + before_question
    opening = draw(OPENINGS) if varied and rng.uniform() < 0.25 else ""
    question = draw(questions)
    is_heading = question.endswith(":")  # of the answer, as in a form
    return Wording(opening + facts, question, varied and not is_heading and rng.uniform() < _ASKED_FIRST)


def record(rng: np.random.Generator, missing: str = "") -> str:
    """Facts as names and values, in a drawn order and form, with a template's places; arguments as in `compose`."""
    return _record(_apart(_drawn_names(rng, missing), rng), rng, _drawing(rng))


def _drawing(rng: np.random.Generator) -> _Draw:
    return lambda options: options[rng.integers(len(options))]


def _drawn_names(rng: np.random.Generator, missing: str) -> list[str]:
    """The facts that are told, in a drawn order: those that a decision needs, and perhaps the volume."""
    optional = [] if rng.uniform() < 0.5 else ["volume"]
    return list(rng.permutation([name for name in (*NEEDED, *optional) if name != missing]))


def _apart(names: list[str], rng: np.random.Generator) -> list[str]:
    """The facts with ETH and USDC told by themselves, in either order."""
    tokens = list(rng.permutation(["eth", "usdc"]))
    return [each for name in names for each in (tokens if name == "holdings" else [name])]


def _record(names: list[str], rng: np.random.Generator, draw: _Draw) -> str:
    """Facts as names and values, in a drawn form; units stand behind the value or in the name."""
    form = _FORMS[rng.integers(len(_FORMS))]
    has_bare_numbers = form is not _pairs or rng.uniform() < 0.4
    unit = draw(("ticks", "bps"))
    told: _Pairs = []
    for name in names:
        key = draw(_KEYS[name])
        if name == "volatility":
            told.append((f"{key}_{{vol_unit}}", "{vol_bare}") if has_bare_numbers else (key, "{vol}"))
        elif name == "change":
            told.append((f"{key}_{unit}", "{change_bare}") if has_bare_numbers else (key, f"{{change}} {unit}"))
        else:
            told.append((key, f"{{{name}_bare}}" if has_bare_numbers else f"{{{name}}}"))
    return form(told, draw)


def _pairs(told: _Pairs, draw: _Draw) -> str:
    equals, between = draw(("=", ":", ": ", " ", " = ")), draw((" ", "; ", ", ", "\n", " | "))
    return (between if between.strip() or equals.strip() else ", ").join(f"{key}{equals}{value}" for key, value in told)


def _json(told: _Pairs, draw: _Draw) -> str:
    begin, between, end = _JSON_LAYOUTS[draw(tuple(_JSON_LAYOUTS))]
    return "{{" + begin + between.join(f'"{key}": {value}' for key, value in told) + end + "}}"


def _table(told: _Pairs, draw: _Draw) -> str:
    rows: list[tuple[str, ...]] = [("fact", "value"), ("---", "---"), *told]
    if draw(("across", "down")) == "across":
        keys, values = zip(*told, strict=True)
        rows = [keys, ("---",) * len(told), values]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _csv(told: _Pairs, draw: _Draw) -> str:
    between = draw((", ", ";", "\t"))
    return "\n".join(between.join(row) for row in zip(*told, strict=True))


_FORMS: tuple[Callable[[_Pairs, _Draw], str], ...] = (_pairs, _pairs, _pairs, _json, _table, _csv)


_UPS = ("rose", "climbed", "gained", "went up", "jumped", "moved up", "is up")
_DOWNS = ("fell", "dropped", "lost", "went down", "slid", "moved down", "is down")


def change_in_words(change: str, rng: np.random.Generator) -> dict[str, str]:
    """What fills the placeholders of a price change in words: direction, sign, verb and distance."""
    is_down = change.startswith("-")
    return {
        "direction": "down" if is_down else "up",
        "sign": "minus" if is_down else "plus",
        "went": (_DOWNS if is_down else _UPS)[rng.integers(len(_UPS))],
        "distance": change.lstrip("+-"),
    }


def copied_change(facts: str, change: str, words: dict[str, str]) -> str:
    """The price change as a draft copies it: with its sign, or after the last word for its direction.

    Args:
        facts: The text with its places.
        change: The printed change in whole ticks.
        words: Of `change_in_words`.
    """
    name = next((name for name in ("direction", "went", "sign") if f"{{{name}}}" in facts), None)
    if "{change_bare}" in facts:
        change = change.lstrip("+")
    return change if name is None else f"{words[name].split()[-1]} {change.lstrip('+-')}"
