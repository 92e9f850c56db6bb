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
of look-ups, which a small student can learn. A plain prompt does not say the words: there the first draft begins with
the numbers that the trend lies in, change in whole ticks over volatility in basis points ("-5/24 flat, wait"), so that
the word needs only to compare them. The last draft of a trade ends with the holding that pays, in ETH, so that its size
needs only the number before it.
"""

from collections.abc import Generator, Iterable, Mapping
from decimal import ROUND_FLOOR, Decimal
from typing import Any

from apeagent_pipeline.distillation.canary_words import Side
from apeagent_pipeline.distillation.chain_of_draft import DraftAnswer, render_answer
from apeagent_pipeline.distillation.market_states import TRENDS, VOLATILITIES
from apeagent_pipeline.distillation.portfolios import PORTFOLIOS
from apeagent_pipeline.distillation.prompts import token_text
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


def size_of(share: Decimal, holding: float) -> float:
    """The share of a holding, rounded down to three significant digits, so never more than is held."""
    exact = Decimal(repr(holding)) * share
    return float(exact.quantize(Decimal(1).scaleb(exact.adjusted() - 2), rounding=ROUND_FLOOR))


def rules_answer(row: PromptRow) -> DraftAnswer:
    """The policy's answer to one prompt.

    Args:
        row: A row of ``build_prompts``: trend, volatility, portfolio, eth, affordable_eth, rendering; of a plain one
            change_ticks and volatility_bps too.
    """
    words = row["trend"], row["volatility"], row["portfolio"]
    named = [words[0], f"volatility {words[1]}", words[2]]
    if row["rendering"] == "plain":
        named[0] = f"{int(row['change_ticks']):+d}/{row['volatility_bps']:.0f} {words[0]}"
    *drafts, last = (f"{word}, {plan}" for word, plan in zip(named, plans(*words), strict=True))
    side, share = decide(*words)
    if side == "HOLD":
        return DraftAnswer((*drafts, last), side)
    holding = row["affordable_eth"] if side == "BUY" else row["eth"]
    return DraftAnswer((*drafts, f"{last} {token_text(holding)}"), side, size_of(share, holding), "ETH")


class RulesTeacher:
    """The embedded policy as a ``Teacher``; free, and the same prompt always gets the same answer."""

    name = "rules"
    identity: Mapping[str, Any] = {"teacher": "rules", "version": 4}
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
