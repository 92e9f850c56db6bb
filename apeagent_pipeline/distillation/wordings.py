"""Facts and questions in many wordings, put together in any order: as sentences, pairs, JSON and tables.

Every wording has places for printed numbers, in braces; `prompts` fills them.
"""

from collections.abc import Callable

import numpy as np

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
        "a move of {sign} {distance} ticks",
        "{sign} {distance} bps on the day",
        "it {went} some {distance} ticks",
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
    "eth": (
        "I have {eth} ETH",
        "{eth} ETH in my wallet",
        "I own {eth} ETH",
        "my ETH: {eth}",
        "I am holding {eth} ether",
        "{eth} eth on hand",
    ),
    "usdc": (
        "I have {usdc} USDC",
        "{usdc} USDC in cash",
        "my USDC: {usdc}",
        "{usdc} USDC are free",
        "with {usdc} usdc to spend",
        "a further {usdc} USDC",
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
    "It rains here and I have time to trade. ",
    "A friend says that you know this pool. ",
    "Not sure what to make of this: ",
    "I read the news all morning. ",
    "From my notes: ",
    "Status:\n",
    "My screen says: ",
    "First time I ask this. ",
    "I have been in crypto since 2019. ",
    "We discussed this over lunch. ",
    "The kids are asleep, so now: ",
    "For the protocol: ",
    "Copied from my wallet app:\n",
    "Let us see. ",
    "Back from the holidays. ",
    "Still up and watching charts, ",
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
    "Thoughts?",
    "Worth a trade?",
    "Should I get in?",
    "Should I take some profit?",
    "Would you reduce here?",
    "Do something or sit still?",
    "signal?",
    "advice?",
    "What would a careful trader do?",
    "Is this a buy, a sell or neither?",
    "Should I rebalance?",
    "move?",
    "Do I add, trim or wait?",
)
UNSEEN_QUESTIONS = (
    "Would you touch this position at all?",
    "Do I pull the trigger, and in which direction?",
    "Kindly let me know which order to place.",
    "so, ape or not?",
)
"""Asked in the test split alone."""

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


def compose(
    rng: np.random.Generator, missing: str = "", *, unseen: bool = False, varied: bool = True
) -> tuple[str, str]:
    """Facts in a drawn order, wording and layout, and a question.

    Args:
        rng: Source of all random choices.
        missing: A fact of `NEEDED` that is left out.
        unseen: Whether half of the questions are those kept for the test split.
        varied: Whether all wordings, layouts and openings are drawn, not a few.

    Returns:
        Facts and question, with the places of a template.
    """
    optional = [] if rng.uniform() < 0.5 else ["volume"]
    names = list(rng.permutation([name for name in (*NEEDED, *optional) if name != missing]))
    layouts, questions = (_LAYOUTS, QUESTIONS) if varied else (_LAYOUTS[:_FEW_LAYOUTS], QUESTIONS[:_FEW_QUESTIONS])
    if unseen and varied and rng.uniform() < 0.5:
        questions = UNSEEN_QUESTIONS

    def draw(options: tuple[str, ...]) -> str:
        return options[rng.integers(len(options))]

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
    return opening + facts, draw(questions)


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
    return change if name is None else f"{words[name].split()[-1]} {change.lstrip('+-')}"
