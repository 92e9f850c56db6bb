"""The wordings of trading prompts: sentences with places for numbers, and facts that are put together in any order.

A form (``Rendering``) says what a prompt shows: ``digested`` puts words beside the numbers ("trend up strong"),
``plain`` shows numbers alone, ``agent`` is the sentence of the source document's own agent, with its units and layout,
and ``incomplete`` lacks a fact that a decision needs.
"""

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
        facts: What is told, with places in braces; empty: put together from `FACTS` (see `compose`).
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
    Template("market", "digested", f"Market: {_STATE}. ETH price ${{price}}. I have {_WALLET}. ", "Which action now?"),
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

NEEDED = ("price", "volatility", "change", "holdings")
"""The facts that a decision needs, in the order in which a draft names a missing one."""

FACTS: dict[str, tuple[str, ...]] = {
    "price": (
        "ETH price is ${price}",
        "ETH ${price}",
        "ETH costs {price} USDC",
        "ETH trades at ${price}",
        "ETH price: {price}",
        "ETH/USDC {price}",
        "one ETH is {price} USDC",
        "the pool quotes {price} USDC for one ether",
        "current price {price} USDC per ETH",
        "eth @ ${price}",
        "ETH is at {price} now",
        "price of ETH = {price}",
    ),
    "volatility": (
        "volatility {vol}",
        "volatility is {vol}",
        "volatility of {vol}",
        "the volatility was {vol}",
        "volatility: {vol}",
        "vol {vol}",
        "vol is {vol}",
        "realised volatility comes to {vol}",
        "it swings with a volatility of {vol}",
        "volatility = {vol}",
    ),
    "change": (
        "price change {change} ticks",
        "recent change: {change} ticks",
        "the price moved {change} ticks",
        "change of {change} ticks",
        "tick change: {change}",
        "last move {change} bps",
        "change = {change} ticks",
        "it went {direction} {distance} ticks",
        "the price is {direction} {distance} ticks",
        "it {went} {distance} ticks lately",
        "ETH {went} by {distance} basis points",
        "{direction} {distance} ticks since I last looked",
    ),
    "holdings": (
        "I hold {eth} ETH and {usdc} USDC",
        "I have {eth} ETH, {usdc} USDC",
        "my wallet: {eth} ETH + {usdc} USDC",
        "I hold {usdc} USDC and {eth} ETH",
        "holdings: {eth} ETH, {usdc} USDC",
        "my balance is {eth} ETH / {usdc} USDC",
        "in the wallet there are {usdc} USDC and {eth} ETH",
        "got {eth} ETH and {usdc} USDC",
        "our account has {eth} ETH plus {usdc} USDC",
        "I own {eth} ETH plus {usdc} USDC",
        "my position: {eth} ETH and {usdc} USDC",
        "my funds are {eth} ETH and {usdc} USDC",
    ),
    "volume": (
        "volume {volume}",
        "volume of {volume}",
        "traded volume {volume}",
        "volume: {volume}",
        "traded volume: {volume}",
    ),
}
"""The facts of a prompt that is put together, each in several wordings."""

OPENINGS = (
    "Here is my situation: ",
    "Market data:\n",
    "I need a decision about my ETH. ",
    "I trade on Uniswap. ",
    "Please look at this: ",
    "My numbers today: ",
    "You are my trading bot. ",
    "I watch the ETH-USDC pool. ",
)

ASKED_FIRST = 0.15
"""Share of the prompts of `FACTS` whose question stands before them."""

QUESTIONS = (
    "What trading action should I take on Uniswap?",
    "What should I do?",
    "Should I trade, and how much?",
    "What is your trade?",
    "Which action now?",
    "What would you do on Uniswap now?",
    "Buy, sell or hold?",
    "Tell me what to trade.",
    "Is it a good time to trade?",
    "What now?",
    "Do I buy or do I sell?",
    "Should I buy ETH?",
    "Should I sell some of my ETH?",
    "Should I swap anything?",
    "Your decision?",
    "What do you recommend?",
    "Please advise on a trade.",
    "Could you tell me whether I should trade?",
    "Do I get in, get out or wait?",
    "Give me one trade for this, or none.",
    "How would you trade this?",
    "Trade or wait?",
    "Any trade here?",
    "Decide for me.",
    "Shall I move something into ETH or into USDC?",
    "Is now the moment to buy?",
    "Would you enter, exit or stay out?",
    "What is the right move with these funds?",
    "Action?",
    "I would like your advice: buy more, sell some or leave it?",
    "How much ETH should I buy or sell, if any?",
    "Please tell me the best action for the next minutes.",
)
UNSEEN_QUESTIONS = (
    "Would you touch this position at all?",
    "Do I pull the trigger, and in which direction?",
    "Kindly let me know which order to place.",
    "so, ape or not?",
)
"""Asked in the test split alone."""

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


_FEW_FACTS, _FEW_QUESTIONS, _FEW_LAYOUTS = 4, 9, 6
"""So many of the first wordings are drawn where few are wanted."""


def compose(
    rng: np.random.Generator, missing: str = "", *, unseen: bool = False, varied: bool = True
) -> tuple[str, str]:
    """Facts in a drawn order, wording and layout, and a question.

    Args:
        rng: Where the chance comes from.
        missing: A fact of `NEEDED` that is left out.
        unseen: Whether half of the questions are those kept for the test split.
        varied: Whether all wordings, layouts and openings are drawn, not a few.

    Returns:
        Facts and question, with the places of a template.
    """
    optional = [] if rng.uniform() < 0.5 else ["volume"]
    names = rng.permutation([name for name in (*NEEDED, *optional) if name != missing])
    layouts, questions = (_LAYOUTS, QUESTIONS) if varied else (_LAYOUTS[:_FEW_LAYOUTS], QUESTIONS[:_FEW_QUESTIONS])
    between, before_question = layouts[rng.integers(len(layouts))]
    wordings = [FACTS[name] if varied else FACTS[name][:_FEW_FACTS] for name in names]
    said = [each[rng.integers(len(each))] for each in wordings]
    if "." in between:
        said = [fact[0].upper() + fact[1:] for fact in said]
    opening = OPENINGS[rng.integers(len(OPENINGS))] if varied and rng.uniform() < 0.25 else ""
    if unseen and varied and rng.uniform() < 0.5:
        questions = UNSEEN_QUESTIONS
    return opening + between.join(said) + before_question, questions[rng.integers(len(questions))]


def change_in_words(change: str, rng: np.random.Generator) -> dict[str, str]:
    """The places for a printed price change in words: a direction or a verb, and the distance."""
    ups, downs = ("rose", "climbed", "gained", "went up"), ("fell", "dropped", "lost", "went down")
    is_down = change.startswith("-")
    return {
        "direction": "down" if is_down else "up",
        "went": (downs if is_down else ups)[rng.integers(len(ups))],
        "distance": change.lstrip("+-"),
    }


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
