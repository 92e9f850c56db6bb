"""The embedded teacher: a small documented policy that follows the trend within its inventory.

It is a rule, not a language model, and every report names it so. Its decision depends on nothing but the three words
of a market state and a portfolio, one after the other; each changes the plan that the words before it left:

===================================  ===========================================================================
word                                 plan
===================================  ===========================================================================
trend up / down / flat               add / reduce / wait
volatility, and how strong the       wait if the volatility is high and the trend weak: such a move is noise; else
trend is                             half if the trend is strong and the volatility not high, else a tenth
portfolio                            wait if it is dust, if nothing is left that could pay, or if a tenth more
                                     would go into the token that it is mostly in already
===================================  ===========================================================================

The plan after the portfolio is the decision: add is BUY, reduce is SELL, wait is HOLD. Half or a tenth is of the token
that pays, rounded down to three significant digits; bought ETH is measured by what the USDC afford after costs.

The drafts say a word and the plan after it, so that each needs only the one before and one word of the prompt: a chain
of look-ups, which a small student can learn. The last draft of a trade ends with the holding that pays, in ETH, so that
its size needs only the number before it.

A prompt of numbers alone does not say the words: there the drafts first write down what is compared, and every line
follows from the prompt's printed numbers and the lines before it::

    -31, 90 vs 21               whole ticks; 30 of them over ``flat_below``; whole basis points of volatility
    down strong, reduce         flat if 90 < 21, strong if 31 >= ``strong_from`` * 21
    volatility 21 calm, reduce half
    1.3k at 3.1k makes 0.42     thousands of USDC; price in thousands; ETH that the one buys at the other
    0.6 vs 0.42                 ETH held; ETH that the USDC buy
    balanced, reduce half 0.6

These numbers have two significant digits, the others cut off, and the one that is multiplied has one: what a reader
can work with in the head. So a trade of half or a tenth is of the rough holding, and up to a seventh away from that of
the exact one.

A prompt that lacks a fact that a decision needs gets one draft, which says what is missing, and no trade.
"""

from collections.abc import Generator, Iterable, Mapping
from decimal import ROUND_FLOOR, Decimal
from typing import Any

from apeagent_pipeline.distillation.canary_words import Side
from apeagent_pipeline.distillation.chain_of_draft import DraftAnswer, render_answer
from apeagent_pipeline.distillation.market_states import TRENDS, VOLATILITIES
from apeagent_pipeline.distillation.portfolios import PORTFOLIOS
from apeagent_pipeline.distillation.printed_numbers import token_text
from apeagent_pipeline.distillation.teachers.teacher import Keep, PromptRow, TeacherAnswer, forget

HALF, TENTH = Decimal("0.5"), Decimal("0.1")
WAIT = "wait"

_SIDES: dict[str, Side] = {"add": "BUY", "reduce": "SELL", WAIT: "HOLD"}
_SHARES = {"half": HALF, "tenth": TENTH}


def plans(trend: str, volatility: str, portfolio: str) -> tuple[str, str, str]:
    """What is planned after each of the three words, such as ``("add", "add tenth", "wait")``.

    Args:
        trend: A word of ``TRENDS``.
        volatility: A word of ``VOLATILITIES``.
        portfolio: A word of ``PORTFOLIOS``.

    Raises:
        ValueError: if a word is unknown.
    """
    for word, known in ((trend, TRENDS), (volatility, VOLATILITIES), (portfolio, PORTFOLIOS)):
        if word not in known:
            raise ValueError(f"{word!r} is none of {known}")
    direction, _, strength = trend.partition(" ")
    first = {"up": "add", "down": "reduce", "flat": WAIT}[direction]
    if first == WAIT or (volatility == "high" and strength == "weak"):
        second = WAIT
    else:
        second = f"{first} half" if strength == "strong" and volatility != "high" else f"{first} tenth"
    wanted = "ETH" if first == "add" else "USDC"
    enough = [f"all {wanted}"] + ([f"mostly {wanted}"] if second.endswith("tenth") else [])
    return first, second, WAIT if portfolio in ("dust", *enough) else second


def decide(trend: str, volatility: str, portfolio: str) -> tuple[Side, Decimal]:
    """The policy: the side, and the share of the paying token (0 for HOLD). Arguments and errors as in `plans`."""
    action, _, share = plans(trend, volatility, portfolio)[-1].partition(" ")
    return _SIDES[action], _SHARES.get(share, Decimal(0))


def size_of(share: Decimal, holding: float, digits: int = 3) -> float:
    """The share of a holding, rounded down to so many significant digits, so never more than is held."""
    exact = Decimal(repr(holding)) * share
    return float(exact.quantize(Decimal(1).scaleb(exact.adjusted() - digits + 1), rounding=ROUND_FLOOR))


def rules_answer(row: PromptRow) -> DraftAnswer:
    """The policy's answer to one prompt.

    Args:
        row: A row of ``build_prompts``.
    """
    if row["missing"]:
        return DraftAnswer((f"{row['missing']} missing, {WAIT}",), "HOLD")
    is_worked = row["rendering"] != "digested"
    trend, level, portfolio = words = row["trend"], row["volatility"], row["portfolio"]
    first, second, last = plans(*words)
    drafts = [f"{trend}, {first}", f"volatility {level}, {second}"]
    held, bought = (row["rough_eth"], row["rough_bought"]) if is_worked else (row["eth"], row["affordable_eth"])
    if is_worked:
        drafts = [
            f"{row['rough_change']:+d}, {row['scaled_change']} vs {row['rough_volatility']}",
            drafts[0],
            f"volatility {row['rough_volatility']} {level}, {second}",
            f"{_thousands(row['rough_usdc'])} at {_thousands(row['rough_price'])} makes {token_text(bought)}",
            f"{token_text(held)} vs {token_text(bought)}",
        ]
    side, share = decide(*words)
    if side == "HOLD":
        return DraftAnswer((*drafts, f"{portfolio}, {last}"), side)
    holding = held if side == "SELL" else bought
    return DraftAnswer((*drafts, f"{portfolio}, {last} {token_text(holding)}"), side, size_of(share, holding), "ETH")


def _thousands(usdc: float) -> str:
    return f"{token_text(round(usdc / 1000, 9))}k"


class RulesTeacher:
    """The embedded policy as a ``Teacher``; free, and the same prompt always gets the same answer."""

    name = "rules"
    identity: Mapping[str, Any] = {"teacher": "rules", "version": 6}
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
