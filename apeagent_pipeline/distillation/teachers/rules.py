"""The embedded teacher: a small documented policy that follows the trend within its inventory.

It is a rule, not a language model, and every report names it so. Its decision depends on nothing but the three words
of a digested prompt:

====================  ==========================================================  ================================
words                 decision                                                    why
====================  ==========================================================  ================================
portfolio dust        HOLD                                                        not worth a transaction
trend flat            HOLD                                                        nothing to follow
trend weak,           HOLD                                                        a small move in a wild market
volatility high                                                                   is noise
trend up              BUY, unless all ETH (weak: nor if mostly ETH already)       follow, within inventory
trend down            SELL, unless all USDC (weak: nor if mostly USDC already)    follow, within inventory
====================  ==========================================================  ================================

The size is half of the token that pays if the trend is strong, a tenth if it is weak or the volatility high, rounded
down to three significant digits. Bought ETH is measured by what the USDC afford after costs.
"""

import hashlib
import random
from collections.abc import Generator, Iterable, Mapping
from decimal import ROUND_FLOOR, Decimal
from typing import Any

from apeagent_pipeline.distillation.chain_of_draft import DraftAnswer, Side, render_answer
from apeagent_pipeline.distillation.market_states import TRENDS, VOLATILITIES
from apeagent_pipeline.distillation.portfolios import PORTFOLIOS
from apeagent_pipeline.distillation.teachers.teacher import Keep, PromptRow, TeacherAnswer, forget

HALF, TENTH = Decimal("0.5"), Decimal("0.1")

# Every wording keeps the words of the prompt in it, and says what follows from that word alone: the exceptions of the
# policy then stand in the drafts before the plan, where a small student can see them.
_TREND_DRAFTS = ("trend {trend}", "price trend {trend}", "market {trend}")
_VOLATILITY_DRAFTS = {
    "calm": ("volatility calm", "calm volatility"),
    "normal": ("volatility normal", "normal volatility"),
    "high": ("volatility high, noise", "high volatility, noise"),
}
_PORTFOLIO_DRAFTS = {
    "all ETH": ("portfolio all ETH, no USDC", "all ETH, no USDC left"),
    "mostly ETH": ("portfolio mostly ETH, little USDC", "mostly ETH, little USDC left"),
    "balanced": ("portfolio balanced, room both ways", "balanced, room both ways"),
    "mostly USDC": ("portfolio mostly USDC, little ETH", "mostly USDC, little ETH left"),
    "all USDC": ("portfolio all USDC, no ETH", "all USDC, no ETH left"),
    "dust": ("portfolio dust, too small", "dust, too small"),
}
# The first word of a plan is the decision. Were it now "too wild", now "enough ETH", then a student that writes the
# likeliest next word would seldom begin a plan to wait: each of many beginnings is less likely than the one of a trade.
_PLAN_DRAFTS = {
    "dust": ("wait, too small", "wait, dust not worth fees"),
    "flat": ("wait, nothing to follow", "wait, no direction"),
    "noise": ("wait, move is noise", "wait, too wild"),
    "full": ("wait, already in ETH", "wait, enough ETH"),
    "out": ("wait, already in USDC", "wait, enough USDC"),
    "add half": ("add with half USDC", "add, use half"),
    "add tenth": ("add with tenth USDC", "add, use tenth"),
    "trim half": ("reduce ETH by half", "reduce by half"),
    "trim tenth": ("reduce ETH by tenth", "reduce by tenth"),
}


def decide(trend: str, volatility: str, portfolio: str) -> tuple[Side, Decimal, str]:
    """The policy.

    Args:
        trend: A word of ``TRENDS``.
        volatility: A word of ``VOLATILITIES``.
        portfolio: A word of ``PORTFOLIOS``.

    Returns:
        The side, the share of the paying token (0 for HOLD), and the key of the reason in the drafts.

    Raises:
        ValueError: if a word is unknown.
    """
    for word, known in ((trend, TRENDS), (volatility, VOLATILITIES), (portfolio, PORTFOLIOS)):
        if word not in known:
            raise ValueError(f"{word!r} is none of {known}")
    strong = trend.endswith("strong")
    nothing = Decimal(0)
    for stands_still, why in (
        (portfolio == "dust", "dust"),
        (trend == "flat", "flat"),
        (not strong and volatility == "high", "noise"),
    ):
        if stands_still:
            return "HOLD", nothing, why
    share, size = (HALF, "half") if strong and volatility != "high" else (TENTH, "tenth")
    if trend.startswith("up"):
        if portfolio == "all ETH" or (portfolio == "mostly ETH" and not strong):
            return "HOLD", nothing, "full"
        return "BUY", share, f"add {size}"
    if portfolio == "all USDC" or (portfolio == "mostly USDC" and not strong):
        return "HOLD", nothing, "out"
    return "SELL", share, f"trim {size}"


def size_of(share: Decimal, holding: float) -> float:
    """The share of a holding, rounded down to three significant digits, so never more than is held."""
    exact = Decimal(repr(holding)) * share
    return float(exact.quantize(Decimal(1).scaleb(exact.adjusted() - 2), rounding=ROUND_FLOOR))


def rules_answer(row: PromptRow, seed: int = 0) -> DraftAnswer:
    """The policy's answer to one prompt, its wording drawn from the seed and the prompt's id.

    Args:
        row: A row of ``build_prompts``: prompt_id, trend, volatility, portfolio, eth, affordable_eth.
        seed: Seed of the wording.
    """
    side, share, why = decide(row["trend"], row["volatility"], row["portfolio"])
    chance = random.Random(hashlib.sha256(f"rules:{seed}:{row['prompt_id']}".encode()).digest())  # noqa: S311 (wording only)
    drafts = tuple(
        chance.choice(wordings).format(**row)
        for wordings in (
            _TREND_DRAFTS,
            _VOLATILITY_DRAFTS[row["volatility"]],
            _PORTFOLIO_DRAFTS[row["portfolio"]],
            _PLAN_DRAFTS[why],
        )
    )
    if side == "HOLD":
        return DraftAnswer(drafts, side)
    return DraftAnswer(drafts, side, size_of(share, row["affordable_eth"] if side == "BUY" else row["eth"]), "ETH")


class RulesTeacher:
    """The embedded policy as a ``Teacher``; free, and the same prompt always gets the same answer."""

    name = "rules"
    identity: Mapping[str, Any] = {"teacher": "rules", "version": 1}
    limits: Mapping[str, Any] = {}
    deterministic = True

    def answer(
        self, prompts: Iterable[PromptRow], seed: int, keep: Keep = forget
    ) -> Generator[TeacherAnswer, None, None]:
        """Answer in the order asked; the seed changes the wording, never the decision."""
        for row in prompts:
            answer = TeacherAnswer(row["prompt_id"], render_answer(rules_answer(row, seed)), "stop", cost_usd=0.0)
            keep(answer)
            yield answer
