"""Practice sheets: the lines of worked drafts that have to be computed, many of them in one example.

A trading example of numbers alone has one comparison, one quotient and one share, and more than a hundred tokens of
prompt. A sheet has twenty of them, each after the facts that it follows from. The facts are drawn at random and are
not learned. So a student sees several times more sums for the same time of training.

A sheet names no action and holds no canary word.
"""

from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl

from apeagent_pipeline.distillation.market_states import StateWords
from apeagent_pipeline.distillation.portfolios import affordable_eth, draw_portfolios
from apeagent_pipeline.distillation.printed_numbers import print_row, printed_places, words_of_printed
from apeagent_pipeline.distillation.teachers.rules import SHARES, quotient_draft, rules_answer, share_draft, usdc_text
from apeagent_pipeline.distillation.wordings import NEEDED, copied_change, record

QUESTION = "Practice the lines of your drafts: compare, divide, take shares."
"""What the user says before a sheet."""

Part = tuple[str, bool]
"""A text of a sheet, and whether it is learned, because it follows from the text before it."""

_EACH = {"copy": 2, "record": 1, "draft": 1, "market": 3, "comparison": 6, "quotient": 4, "share": 3}
"""How many of each item are in one sheet."""
_AGENT_SHARE = 0.2
_MISSING_SHARE = 0.2
_DISTANCES = (0.2, 1.0)
"""Scales of the distance between a change and the volatility: where both are close, comparing is hard."""


def practice_sheets(n: int, words: StateWords, seed: int) -> list[list[Part]]:
    """Draw sheets.

    Args:
        n: How many; more of them leave the first ones as they are.
        words: Edges between the words.
        seed: Of the draws.
    """
    rng = np.random.default_rng([seed, 7])
    return [_sheet(words, rng) for _ in range(n)]


def _sheet(words: StateWords, rng: np.random.Generator) -> list[Part]:
    kinds = [kind for kind, count in _EACH.items() for _ in range(count)]
    rows = _rows(kinds, words, rng)
    items = [_ITEMS[kind](row, rng) for kind, row in zip(kinds, rows, strict=True)]
    return [part for index in rng.permutation(len(items)) for part in items[index]]


def _rows(kinds: list[str], words: StateWords, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Market states and holdings as prompts print them, one an item; the agent's layouts have no records."""
    n = len(kinds)
    price = pl.Series("price", np.exp(rng.uniform(np.log(800), np.log(9_000), n)))
    volatility = np.exp(rng.uniform(np.log(4), np.log(900), n))
    ticks = volatility * np.exp(rng.normal(0.0, 0.9, n) * rng.choice(_DISTANCES, n)) * rng.choice([-1, 1], n)
    volume = np.exp(rng.uniform(np.log(100), np.log(20_000), n))
    market = {"price": price, "volatility_bps": volatility, "change_ticks": ticks, "volume_usdc": volume}
    numbers = pl.DataFrame(market).hstack(draw_portfolios(price, 100.0, 100_000.0, rng))
    is_agent = (rng.uniform(size=n) < _AGENT_SHARE) & (np.array(kinds) != "record")
    printed = [print_row(row, agent, rng) for row, agent in zip(numbers.iter_rows(named=True), is_agent, strict=True)]
    rows = words_of_printed(pl.DataFrame(printed), words).with_columns(
        affordable_eth=affordable_eth(pl.col("usdc"), pl.col("price")),
        rendering=pl.lit("plain"),
        missing=pl.lit(""),
        confirmation=pl.lit(""),
    )
    return rows.to_dicts()


def _copy(row: dict[str, Any], rng: np.random.Generator) -> list[Part]:
    """One fact as a prompt prints it, and as a draft copies it."""
    usdc = f"{row['usdc_text']} USDC", f"{usdc_text(row['rough_usdc'])} USDC"
    volatility = f"volatility {row['vol_text']}", f"volatility {row['copied_volatility']}"
    has_unit = row["vol_unit"] != "percent" or row["vol_text"] != row["vol_bare"]  # the agent's has none
    printed, copied = volatility if has_unit and rng.uniform() < 0.5 else usdc
    return [(f"{printed} is", False), (f" {copied}\n", True)]


def _record(row: dict[str, Any], rng: np.random.Generator) -> list[Part]:
    """Facts as names and values, such as a table, and the two lines of a draft that list them."""
    missing = NEEDED[rng.integers(len(NEEDED))] if rng.uniform() < _MISSING_SHARE else ""
    facts = record(rng, missing)
    told = {**row, "missing": missing, "copied_change": copied_change(facts, row["copied_change"], {})}
    lines = [f"{draft}\n" for draft in rules_answer(told).drafts[:2]]
    return [(facts.format(**printed_places(row)) + "\n", False), ("".join(lines), True)]


def _draft(row: dict[str, Any], rng: np.random.Generator) -> list[Part]:
    """A whole draft; its facts, in the first two lines, are given."""
    lines = [f"{draft}\n" for draft in rules_answer(row).drafts]
    return [("".join(lines[:2]), False), ("".join(lines[2:]), True)]


def _market(row: dict[str, Any], rng: np.random.Generator) -> list[Part]:
    """The line that compares what the market's facts say, in their units."""
    drafts = rules_answer(row).drafts
    return [(f"{drafts[0]}\n", False), (f"{drafts[2]}\n", True)]


def _comparison(row: dict[str, Any], rng: np.random.Generator) -> list[Part]:
    """What follows from two numbers, without where they come from."""
    numbers, comma, rest = rules_answer(row).drafts[2].partition(",")
    return [(numbers, False), (f"{comma}{rest}\n", True)]


def _quotient(row: dict[str, Any], rng: np.random.Generator) -> list[Part]:
    """The line that divides the USDC held by the price, in thousands, after the facts of the portfolio."""
    return [(f"{rules_answer(row).drafts[1]}\n", False), (f"{quotient_draft(row)}\n", True)]


def _share(row: dict[str, Any], rng: np.random.Generator) -> list[Part]:
    """The lot of a share of a holding of two digits, from .001 to 99."""
    name = list(SHARES)[rng.integers(len(SHARES))]
    holding = float(Decimal(int(rng.integers(10, 100))).scaleb(int(rng.integers(-4, 1))))
    given, lot, rest = share_draft(name, holding).partition(", lot")
    return [(given, False), (f"{lot}{rest}\n", True)]


_ITEMS = {
    "copy": _copy, "record": _record, "draft": _draft, "market": _market, "comparison": _comparison,
    "quotient": _quotient, "share": _share,
}  # fmt: skip
