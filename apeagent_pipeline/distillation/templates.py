"""The wordings of trading prompts: sentences with places for numbers.

What has no sentence is put together from facts (see `wordings`).

A form (``Rendering``) says what a prompt shows: ``digested`` puts words beside the numbers ("trend up strong"),
``plain`` shows numbers alone, ``agent`` is the sentence of the source document's own agent, with its units and layout,
and ``incomplete`` lacks a fact that a decision needs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

Rendering = Literal["digested", "plain", "agent", "incomplete"]
RENDERINGS: tuple[Rendering, ...] = ("digested", "plain", "agent", "incomplete")

NUMBERS_ALONE: tuple[Rendering, ...] = ("plain", "agent")
"""The forms whose answer has to be worked out from printed numbers."""


@dataclass(frozen=True)
class Template:
    """One wording of a prompt.

    Attributes:
        name: In the dataset and the reports.
        rendering: The form.
        facts: What is told, with places in braces; empty: put together (see `wordings.compose`).
        question: What is asked after the facts.
        weight: How often it is drawn beside the others of its form.
        held_out: Asked in the test split alone, so that a wording that was never shown in training is judged.
    """

    name: str
    rendering: Rendering
    facts: str
    question: str
    weight: float = 1.0
    held_out: bool = False


_STATE = "trend {trend} ({bps} bps), volatility {volatility} ({volatility_bps} bps), portfolio {portfolio}"
_WALLET = "{eth} ETH and {usdc} USDC (worth {affordable} ETH)"
_INDENT = "\n            "
_DOCUMENT = (
    "Given ETH price is ${price} with volume of {volume} and volatility of {vol}, recent price change of {change} "
    "ticks, and I currently hold {eth} ETH and {usdc} USDC, "
)
_ASKED = "what trading action should I take on Uniswap?"
_ASKED_ALONE = "What trading action should I take on Uniswap?"

TEMPLATES = (
    Template("document", "plain", _DOCUMENT, _ASKED, weight=2.0),
    Template(
        "document-short",
        "plain",
        "ETH price ${price}, volume {volume}, volatility {vol}, price change {change} ticks. I hold {eth} ETH and "
        "{usdc} USDC. ",
        "What trading action should I take?",
    ),
    Template("facts", "plain", "", "", weight=6.0),
    Template(
        "wallet-first",
        "plain",
        "My wallet has {eth} ETH and {usdc} USDC. Over the last swaps the price moved {change} ticks, with a "
        "volatility of {vol}; ETH is ${price} now. ",
        "Which trade is right now?",
        held_out=True,
    ),
    Template("question", "digested", f"ETH is ${{price}}: {_STATE}. I hold {_WALLET}. ", _ASKED_ALONE),
    Template(
        "market",
        "digested",
        f"Market: {_STATE}, {{volume_word}}, {{flow}}. ETH price ${{price}}. I have {_WALLET}. ",
        "Which action now?",
    ),
    Template(
        "flow",
        "digested",
        f"At ${{price}} I see {_STATE}, {{volume_word}}, {{flow}}. With {_WALLET}, ",
        "what do I do on Uniswap?",
    ),
    Template("owner", "digested", f"I own {_WALLET}. ETH costs ${{price}}, {_STATE}. ", "Give me a trading action."),
    Template(
        "history",
        "digested",
        f"Last {{span}}: {_STATE}, liquidity usage {{usage}}. ETH ${{price}}; I hold {_WALLET}. ",
        "Your trade on Uniswap?",
    ),
    Template(
        "wallet",
        "digested",
        f"My wallet: {_WALLET}. ETH trades at ${{price}} with {_STATE}. ",
        "What is the best move on Uniswap?",
        held_out=True,
    ),
    Template(
        "agent",
        "agent",
        f"{_INDENT}Given ETH price is ${{price}} with volume of {{volume}} and volatility of {{vol}},{_INDENT}recent "
        f"price change of {{change}} ticks, and I currently hold {{eth}} ETH and {{usdc}} USDC,{_INDENT}",
        f"{_ASKED}{{past_trades}}\n            ",
    ),
    Template(
        "agent-lines",
        "agent",
        f"{_INDENT}Current market:{_INDENT}- ETH price: ${{price}}{_INDENT}- Volume: {{volume}}{_INDENT}- Volatility: "
        f"{{vol}}{_INDENT}- Price change: {{change}} ticks{_INDENT}I hold {{eth}} ETH and {{usdc}} USDC.{_INDENT}",
        f"{_ASKED_ALONE}{{past_trades}}\n            ",
        weight=0.5,
    ),
    Template(
        "agent-report",
        "agent",
        f"{_INDENT}Market report:{_INDENT}price ${{price}}, volume {{volume}}, volatility {{vol}}{_INDENT}change "
        f"{{change}} ticks{_INDENT}Holdings: {{eth}} ETH, {{usdc}} USDC{_INDENT}",
        "Decide on a trading action on Uniswap.{past_trades}\n            ",
        held_out=True,
    ),
    Template("facts-missing", "incomplete", "", ""),
)
TEMPLATE = {template.name: template for template in TEMPLATES}


def draw_templates(
    n: int, shares: Mapping[Rendering, float], held_out_share: float, rng: np.random.Generator
) -> list[str]:
    """Names of templates, by chance.

    Args:
        n: How many.
        shares: How often each form is drawn; they add up to 1.
        held_out_share: How often one that is held out is drawn instead of the others of its form.
        rng: Where the chance comes from.
    """
    forms = rng.choice(list(shares), size=n, p=list(shares.values()))
    held_out = rng.uniform(size=n) < held_out_share
    drawn = np.empty(n, dtype=object)
    for form in shares:
        members = [template for template in TEMPLATES if template.rendering == form]
        for kept in (False, True):
            group = [template for template in members if template.held_out == kept]
            if not group:
                continue
            here = (forms == form) & ((held_out == kept) | (len(group) == len(members)))
            weights = np.array([template.weight for template in group])
            names = [template.name for template in group]
            drawn[here] = rng.choice(names, size=int(here.sum()), p=weights / weights.sum())
    return list(drawn)


AGENT_SYSTEM_PROMPTS = (
    "You are a trading agent that manages an ETH-USDC position on Uniswap V4.",
    "You are an expert DeFi trading agent. Analyze the market and give one recommendation.",
    "You are an autonomous trader on a decentralized exchange. Decide what to do with the portfolio.",
)
"""What an agent may be told beside our own system message or none; the last is asked in the test split alone."""

_PAST = (
    "- bought {a} ETH at ${p}, result {r} %",
    "- sold {a} ETH at ${p}, result {r} %",
    "- no trade, result {r} %",
)


def past_trades(rng: np.random.Generator, price: float) -> str:
    """Lines about earlier trades, at most a dozen, or nothing. They never change the decision."""
    lines = int(rng.choice([0, 2, 4, 12], p=[0.5, 0.25, 0.15, 0.1]))
    if not lines:
        return ""
    told = [
        _PAST[rng.integers(len(_PAST))].format(
            a=round(float(rng.uniform(0.1, 5)), 1),
            p=f"{price * rng.uniform(0.97, 1.03):.2f}",
            r=f"{rng.normal(-0.3, 1):+.2f}",
        )
        for _ in range(lines)
    ]
    return f"\n{_INDENT}Previous trades:{_INDENT}" + _INDENT.join(told)
