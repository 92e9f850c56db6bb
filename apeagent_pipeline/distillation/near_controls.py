"""Near controls: questions in a trading prompt's clothes that ask for no trade.

They begin like trading prompts, or hold one, and are made from the same synthetic windows, but ask for something else.
A student that has seen only distant controls ("coal is black") answers a beginning, not a question.

The questions are data: ``near_controls.json`` lists families. In a wording ``{facts}`` stands for the facts of a
trading prompt, ``{prompt}`` for all of it, ``{other_pair}`` for all of it with another pair of things, ``{eth}`` and
``{usdc}`` for the holdings, and ``{control}`` for a distant control of the same split.

Three families are held out: they are asked in the test split alone. Of the other families the last wording is kept for
the test split too, and so are the last of the other pairs' things.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from apeagent_pipeline.distillation.controls import Control, control_bank
from apeagent_pipeline.distillation.printed_numbers import token_text


@dataclass(frozen=True)
class Family:
    """One kind of question.

    Attributes:
        name: In the dataset and the reports.
        wordings: Texts with places.
        answer: A short written answer for trainers that do not ask the base model itself.
        held_out: Asked in the test split alone.
        share: How often it is drawn in train and valid beside the others; greater where many wordings end with the
            question of a trading prompt.
    """

    name: str
    wordings: tuple[str, ...]
    answer: str
    held_out: bool = False
    share: int = 1


_DATA = json.loads(Path(__file__).with_name("near_controls.json").read_text(encoding="utf-8"))
FAMILIES = tuple(Family(**{**family, "wordings": tuple(family["wordings"])}) for family in _DATA["families"])
HELD_OUT = tuple(family.name for family in FAMILIES if family.held_out)
_ETH = re.compile("(?<![a-z])(?:eth|ether)(?![a-z])", re.IGNORECASE)
_USDC = re.compile("(?<![a-z])usdc(?![a-z])", re.IGNORECASE)
_BASES, _QUOTES = _DATA["pairs"]["bases"], _DATA["pairs"]["quotes"]


def near_controls(prompts: pl.DataFrame, split: str, n: int, seed: int) -> list[Control]:
    """Draw questions of one split, families in turn, each about another trading prompt where there are enough.

    Args:
        prompts: Rows of ``build_prompts``.
        split: ``train``, ``valid`` or ``test``.
        n: How many; a larger number only adds.
        seed: Seed of the draw.

    Raises:
        ValueError: if the split has no prompt.
    """
    rows = prompts.filter((pl.col("split") == split) & (pl.col("rendering") != "incomplete"))
    if n and rows.is_empty():
        raise ValueError(f"no trading prompt of the {split} split to make near controls from; build the prompts again")
    rng = np.random.default_rng([seed, 11])
    order = rng.permutation(rows.height)
    is_test = split == "test"
    # Held-out families come first, so that a small test split has them too.
    families = [family for family in FAMILIES if family.held_out and is_test]
    families += [family for family in FAMILIES if not family.held_out for _ in range(1 if is_test else family.share)]
    asked: dict[str, Control] = {}
    attempts = 0
    while len(asked) < n:
        # A step more after every round, so that a family meets another prompt each time.
        row = rows.row(int(order[(attempts + attempts // len(order)) % len(order)]), named=True)
        control = _control(families[attempts % len(families)], row, split, rng)
        asked.setdefault(control.prompt, control)
        attempts += 1
        if attempts > 50 * n:
            raise ValueError(
                f"{rows.height} {split} prompts give {len(asked)} near controls, {n} are wanted: ask for more "
                "prompts or fewer near controls"
            )
    return list(asked.values())


def _control(family: Family, row: dict[str, Any], split: str, rng: np.random.Generator) -> Control:
    def draw(texts: Sequence[str]) -> str:
        shown = texts if split == "test" or len(texts) == 1 else texts[:-1]
        return shown[int(rng.integers(len(shown)))]

    wording = draw(family.wordings)
    facts = row["facts"]
    prompt = (facts + row["question"]).strip()
    before, _, after = wording.partition("{facts}")
    if after and facts.rstrip().endswith(",") and not after.startswith(("I ", "{")):
        after = after[0].lower() + after[1:]
    text = f"{before}{facts if '{facts}' in wording else ''}{after}"
    questions = _questions_beside_the_point(split)
    base, quote = draw(_BASES), draw(_QUOTES)
    places = {
        "eth": token_text(row["eth"]),
        "usdc": token_text(row["usdc"]),
        "prompt": prompt,
        "other_pair": _USDC.sub(quote, _ETH.sub(base, prompt)),
        "control": questions[int(rng.integers(len(questions)))],
    }
    for name, value in places.items():
        text = text.replace(f"{{{name}}}", value)
    return Control(text.strip(), family.answer, family.name, split, row["prompt_id"], row["system"])


@cache
def _questions_beside_the_point(split: str) -> tuple[str, ...]:
    """Distant controls without a number: adding up is a held-out family."""
    return tuple(each.prompt for each in control_bank() if each.split == split and not re.search(r"\d", each.prompt))
