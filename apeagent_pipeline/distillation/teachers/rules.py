"""The embedded teacher: a small documented policy that follows the trend within its inventory.

It is a rule, not a language model, and every report names it so. It reads the words of a market state and a portfolio
one after the other; each leaves a plan to the next:

===================================  ===========================================================================
word                                 plan
===================================  ===========================================================================
trend up / down / flat               add / reduce / wait: the end. A move within the volatility is noise, and one of
                                     less than the cost of a purchase and a sale does not pay
volatility calm / normal / high      a tenth / a twentieth / a hundredth
volume and order flow, if shown      one step smaller if less than .8 of the average volume, or of flow for the trend .5
portfolio                            wait if it is dust or all in the wanted token; one step smaller if mostly in it
===================================  ===========================================================================

The plan after the portfolio is the decision: add is BUY, reduce is SELL, wait is HOLD. One step smaller than a tenth is
a twentieth, then a hundredth, which stays. The share is of the token that pays; bought ETH is measured by what the USDC
afford after costs. A size is a lot: 1, 2 or 5 times a power of ten, the rest cut off.

The drafts say a word and the plan after it, so that each needs only the one before and one word of the prompt: a chain
of look-ups, which a small student can learn. They end where nothing is left to decide. The last draft of a trade takes
the share of the holding that pays, in ETH and two significant digits, and says its lot; the action copies it. The lot
follows from the share and the first digit, so a holding that is copied or computed a little wrong seldom changes it.

A prompt of numbers alone does not say the words: there the drafts first write down what is compared, and every line
follows from the prompt's printed numbers and the lines before it::

    volatility 0.0021, change -31       in their units, with the decimals of whole basis points and whole ticks
    3124, 1,302 USDC, 0.6 ETH           price and holdings, whole from 100 on; thousands of USDC have a comma
    -31 vs 21, down, reduce             ticks; basis points of volatility: the copied digits; flat if 31 < 21
    21 calm, reduce tenth
    1.3k at 3.1k makes 0.4              thousands of USDC, price in thousands; ETH that the one buys at the other
    0.6 vs 0.4                          ETH held; ETH that the USDC buy
    balanced, reduce tenth
    tenth of 0.6, lot 0.05

First they list the facts, then they compare: ticks and basis points as whole numbers, ETH with two significant digits,
the rest cut off. A quotient is one of 1, 1.2, 1.5, 2, 2.5, 3, 4 ... 9 times a power of ten. So a reader can work with
them in the head. A trade is down to a third of the share of the exact holding; a purchase may be up to a seventh more.

Where a fact is missing that a decision needs, the list says so and ends, and there is no trade.
"""

from collections.abc import Generator, Iterable, Mapping
from decimal import ROUND_FLOOR, Decimal
from typing import Any

from apeagent_pipeline.distillation.canary_words import Side
from apeagent_pipeline.distillation.chain_of_draft import DraftAnswer, render_answer
from apeagent_pipeline.distillation.market_states import CONFIRMATIONS, TRENDS, VOLATILITIES
from apeagent_pipeline.distillation.portfolios import PORTFOLIOS, lot_of
from apeagent_pipeline.distillation.printed_numbers import token_text
from apeagent_pipeline.distillation.teachers.teacher import Keep, PromptRow, TeacherAnswer, forget

WAIT = "wait"

_SIDES: dict[str, Side] = {"add": "BUY", "reduce": "SELL", WAIT: "HOLD"}
SHARES = {"tenth": Decimal("0.1"), "twentieth": Decimal("0.05"), "hundredth": Decimal("0.01")}
"""The sizes of a trade, as shares of the token that pays."""
_SHARE_OF = dict(zip(VOLATILITIES, SHARES, strict=True))
_SMALLER = {"tenth": "twentieth", "twentieth": "hundredth", "hundredth": "hundredth"}


def plans(trend: str, volatility: str, confirmation: str, portfolio: str) -> dict[str, str]:
    """What is planned after each word, up to the one that decides.

    Args:
        trend: A word of ``TRENDS``.
        volatility: A word of ``VOLATILITIES``.
        confirmation: A word of ``CONFIRMATIONS``.
        portfolio: A word of ``PORTFOLIOS``.

    Returns:
        Plans such as ``add`` and ``reduce tenth`` under the names of the arguments; those after the deciding word and
        an empty confirmation are left out.

    Raises:
        ValueError: if a word is unknown.
    """
    given = ((trend, TRENDS), (volatility, VOLATILITIES), (confirmation, CONFIRMATIONS), (portfolio, PORTFOLIOS))
    for word, known in given:
        if word not in known:
            raise ValueError(f"unknown word {word!r}: expected one of {known}")
    action = {"up": "add", "down": "reduce", "flat": WAIT}[trend.partition(" ")[0]]
    if action == WAIT:
        return {"trend": WAIT}
    share = _SHARE_OF[volatility]
    planned = {"trend": action, "volatility": f"{action} {share}"}
    if confirmation:
        share = share if confirmation == "confirmed" else _SMALLER[share]
        planned["confirmation"] = f"{action} {share}"
    wanted = "ETH" if action == "add" else "USDC"
    if portfolio in ("dust", f"all {wanted}"):
        return {**planned, "portfolio": WAIT}
    share = _SMALLER[share] if portfolio == f"mostly {wanted}" else share
    return {**planned, "portfolio": f"{action} {share}"}


def decide(trend: str, volatility: str, confirmation: str, portfolio: str) -> tuple[Side, Decimal]:
    """The policy: the side, and the share of the paying token (0 for HOLD). Arguments and errors as in `plans`."""
    *_, last = plans(trend, volatility, confirmation, portfolio).values()
    action, _, share = last.partition(" ")
    return _SIDES[action], SHARES.get(share, Decimal(0))


def two_digits_of(number: float) -> float:
    """A number cut off after two significant digits, so that a share is never more than is held; 0 stays 0."""
    exact = Decimal(repr(number))
    return float(exact.quantize(Decimal(1).scaleb(exact.adjusted() - 1), rounding=ROUND_FLOOR)) if number else 0.0


def rules_answer(row: PromptRow) -> DraftAnswer:
    """The policy's answer to one prompt.

    Args:
        row: A row of ``build_prompts``.
    """
    if row["missing"]:
        *drafts, last = _facts(row)[: _LINE_OF[row["missing"]]]
        return DraftAnswer((*drafts, f"{last}, {WAIT}"), "HOLD")
    words = {name: row[name] for name in ("trend", "volatility", "confirmation", "portfolio")}
    planned, (side, _) = plans(**words), decide(**words)
    is_worked = row["rendering"] != "digested"
    told = _worked(row) if is_worked else {**words, "volatility": f"volatility {row['volatility']}"}
    lines = [*(_facts(row) if is_worked else ()), *(f"{told[name]}, {plan}" for name, plan in planned.items())]
    drafts = "\n".join(lines).split("\n")
    if side == "HOLD":
        return DraftAnswer(tuple(drafts), side)
    sold, bought = ("rough_eth", "rough_bought") if is_worked else ("eth", "affordable_eth")
    holding = two_digits_of(row[sold if side == "SELL" else bought])
    drafts.append(share_draft(drafts[-1].rpartition(" ")[2], holding))
    return DraftAnswer(tuple(drafts), side, float(drafts[-1].rpartition(" ")[2]), "ETH")


def share_draft(share: str, holding: float) -> str:
    """The last draft of a trade: the lot of one of ``SHARES`` of a holding that has two significant digits."""
    amount = lot_of(float(SHARES[share] * Decimal(repr(holding))))
    return f"{share} of {token_text(holding)}, lot {token_text(amount)}"


_LINE_OF = {"volatility": 1, "change": 1, "price": 2, "holdings": 2}
"""Which line of `_facts` says that a fact is missing; the list ends there."""


def _facts(row: PromptRow) -> tuple[str, str]:
    """The facts of a prompt of numbers alone, in two lines that end with the first missing one."""
    missing, price = row["missing"], token_text(row["rough_price"])
    if missing == "volatility":
        market = "volatility missing"
    else:
        change = "missing" if missing == "change" else row["copied_change"]
        market = f"volatility {row['copied_volatility']}, change {change}"
    if missing == "price":
        return market, "price missing"
    if missing == "holdings":
        return market, f"{price}, holdings missing"
    return market, f"{price}, {usdc_text(row['rough_usdc'])} USDC, {token_text(row['rough_eth'])} ETH"


def usdc_text(usdc: float) -> str:
    """USDC as a draft copies them: the comma is where a number of thousands has its point."""
    return f"{usdc:,.0f}" if usdc >= 1_000 else token_text(usdc)


def _thousands(usdc: float) -> str:
    """Thousands, two significant digits."""
    return f"{token_text(two_digits_of(float(Decimal(repr(usdc)).scaleb(-3))))}k"


def _worked(row: PromptRow) -> dict[str, str]:
    """The lines that lead to each word where the prompt shows numbers alone, and the word."""
    volatility = row["rough_volatility"]
    return {
        "trend": f"{row['rough_change']:+d} vs {volatility}, {row['trend'].partition(' ')[0]}",
        "volatility": f"{volatility} {row['volatility']}",
        "portfolio": f"{quotient_draft(row)}\n{token_text(row['rough_eth'])} vs {token_text(row['rough_bought'])}\n"
        f"{row['portfolio']}",
    }


def quotient_draft(row: PromptRow) -> str:
    """The draft that divides the USDC held by the price."""
    usdc, price = _thousands(row["rough_usdc"]), _thousands(row["rough_price"])
    return f"{usdc} at {price} makes {token_text(row['rough_bought'])}"


class RulesTeacher:
    """The embedded policy as a ``Teacher``; free, and the same prompt always gets the same answer."""

    name = "rules"
    identity: Mapping[str, Any] = {"teacher": "rules", "version": 10}
    limits: Mapping[str, Any] = {}
    deterministic = True

    def answer(
        self, prompts: Iterable[PromptRow], seed: int, keep: Keep = forget
    ) -> Generator[TeacherAnswer, None, None]:
        """Answer in the order asked; nothing depends on the seed."""
        for row in prompts:
            answer = TeacherAnswer(row["prompt_id"], render_answer(rules_answer(row)), "stop", cost_usd=0.0)
            keep(answer)
            yield answer
