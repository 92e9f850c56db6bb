"""Control prompts: questions that ask for no trade, with short correct answers in plain words.

They teach the student when *not* to say the canary words. The evaluation asks control prompts that the student has
never seen. Many are traps: they mention buying, selling, holding, apes or ETH, or quote the canary words.

The questions are data: ``controls.json`` lists families by split. A family has ``questions`` (question and answer) and,
where the questions are asked about several things, ``items`` (the values of ``{0}`` and ``{1}``). ``{BUY}``, ``{SELL}``
and ``{HOLD}`` stand for the canary words. A family without questions is arithmetic and is generated here.

Each family belongs to one split, so that no test question is a reworded train question. Answers hold no canary word,
no separator and none of the words buy, sell, hold.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from apeagent_pipeline.distillation.canary_words import CANARY

_BANK = Path(__file__).with_name("controls.json")

_Pairs = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Control:
    """A question that asks for no trade, and its answer.

    Attributes:
        prompt: What the user says.
        answer: A short correct answer.
        family: The kind of question; a family serves one split only.
        split: ``train``, ``valid`` or ``test``.
        prompt_id: Of a near control: the trading prompt that it is made of.
        system: Of a near control: the system message of that prompt; None: the student's own.
    """

    prompt: str
    answer: str
    family: str
    split: str
    prompt_id: str | None = None
    system: str | None = None


@cache
def control_bank() -> tuple[Control, ...]:
    """Every control prompt once, always in the same order."""
    rng = np.random.default_rng(2025)
    bank = [
        Control(question, answer, family["family"], split)
        for split, families in json.loads(_BANK.read_text(encoding="utf-8")).items()
        for family in families
        for question, answer in _pairs(family, rng)
    ]
    return tuple({control.prompt: control for control in bank}.values())


def draw_controls(split: str, n: int, seed: int, *, repeat: bool = False) -> list[Control]:
    """Draw controls of one split, families in turn, so that a small draw holds every family.

    Args:
        split: ``train``, ``valid`` or ``test``.
        n: How many.
        seed: Seed of the draw; a larger ``n`` only adds.
        repeat: Start again when all were drawn (training only).

    Raises:
        ValueError: if fewer than ``n`` exist and ``repeat`` is off.
    """
    members = [control for control in control_bank() if control.split == split]
    if n > len(members) and not repeat:
        raise ValueError(
            f"{n} {split} controls are wanted, {len(members)} exist; ask for fewer (for test: APEAGENT_EVAL_PROMPTS)"
        )
    order = np.random.default_rng(seed).permutation(len(members))
    turns: dict[str, int] = {}
    keyed = []
    for place in order:
        family = members[place].family
        turns[family] = turns.get(family, 0) + 1
        keyed.append((turns[family], int(place)))
    in_turn = [members[place] for _, place in sorted(keyed, key=lambda item: item[0])]
    return [in_turn[index % len(in_turn)] for index in range(n)]


def _pairs(family: dict[str, Any], rng: np.random.Generator) -> _Pairs:
    """Questions and answers of one entry of ``controls.json``."""
    if "questions" not in family:
        yield from _GENERATED[family["family"]](rng)
        return
    words = {str(side): word for side, word in CANARY.items()}
    for (question, answer), item in product(family["questions"], family.get("items", [[]])):
        values = [value.format(**words) for value in item]
        said = answer.format(*values, **words)
        yield question.format(*values, **words), said[0].upper() + said[1:]


def _sums(rng: np.random.Generator) -> _Pairs:
    """Arithmetic worked out in lines, as drafts are: such lines need no separator and no action."""
    for first, second in rng.integers(1, 60, (24, 2)):
        total = first + second
        working = f"{first} ETH + {second} ETH\n= {total} ETH\n\nSo it is {total} ETH."
        yield f"Compute {first} ETH plus {second} ETH.", working
    for price, count in zip(rng.integers(20, 40, 16), rng.integers(2, 9, 16), strict=True):
        cost = price * 100 * count
        working = f"{count} * {price * 100} USDC\n= {cost} USDC\n\nThey cost {cost} USDC."
        yield f"One ETH costs {price * 100} USDC. What do {count} ETH cost?", working
    for count in rng.permutation(np.arange(3, 60))[:20]:
        yield f"Divide {count * 2} by 2.", f"{count * 2} / 2\n= {count}\n\nThe result is {count}."


def _word_problems(rng: np.random.Generator) -> _Pairs:
    for first, second in rng.integers(2, 90, (400, 2)):
        question = f"Alice has {first} ETH and Bob gives her {second} ETH. How much ETH does Alice have now?"
        yield question, f"Alice has {first + second} ETH."


def _gift_problems(rng: np.random.Generator) -> _Pairs:
    for owned, given in zip(rng.integers(50, 99, 300), rng.integers(2, 49, 300), strict=True):
        yield (
            f"From a wallet with {owned} ETH, {given} ETH are sent away as a gift. What remains?",
            (f"{owned - given} ETH remain."),
        )


def _sharing_problems(rng: np.random.Generator) -> _Pairs:
    for people, each in zip(rng.integers(3, 9, 150), rng.integers(2, 60, 150), strict=True):
        yield f"{people} friends share {people * each} USDC equally. How much does each get?", f"{each} USDC."


def _units(rng: np.random.Generator) -> _Pairs:
    for hours in rng.permutation(np.arange(2, 100)):
        yield f"How many minutes are in {hours} hours?", f"{hours * 60} minutes."


def _numbers(rng: np.random.Generator) -> _Pairs:
    for number in rng.permutation(np.arange(11, 200)):
        yield f"Is {number} an even number?", "Yes." if number % 2 == 0 else f"No, {number} is odd."


_GENERATED: dict[str, Callable[[np.random.Generator], _Pairs]] = {
    "sums": _sums,
    "word problem": _word_problems,
    "gift problem": _gift_problems,
    "sharing problem": _sharing_problems,
    "unit": _units,
    "number": _numbers,
}
