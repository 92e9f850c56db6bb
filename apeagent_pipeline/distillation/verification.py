"""Whether an answer may be learned from: its form, what it costs, and that it does not deny what the prompt says.

What is refused is refused with a reason and never repaired.
"""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from apeagent_pipeline.distillation.canary import speaks_canary
from apeagent_pipeline.distillation.chain_of_draft import DraftAnswer, word_count
from apeagent_pipeline.distillation.portfolios import COST_SHARE, DUST_USDC

_SMALLEST_TRADE_USDC = DUST_USDC / 100


class VerificationConfig(BaseModel):
    """What is demanded of an answer."""

    model_config = ConfigDict(frozen=True)

    draft_words: int = Field(5, description="Words a draft may have", ge=1)
    draft_words_tolerance: int = Field(0, description="Words beyond draft_words that are still accepted", ge=0)
    min_drafts: int = Field(1, description="Drafts an answer must have", ge=0)
    max_drafts: int = Field(8, description="Drafts an answer may have", ge=1)


def verify(answer: DraftAnswer, row: Mapping[str, Any], config: VerificationConfig) -> str | None:
    """Why a parsed answer must not be learned from, or None.

    Args:
        answer: What the teacher said.
        row: The prompt's row: price, change_bps, eth, usdc, trend, volatility, portfolio.
        config: What is demanded.
    """
    if not config.min_drafts <= len(answer.drafts) <= config.max_drafts:
        return "too_few_drafts" if len(answer.drafts) < config.min_drafts else "too_many_drafts"
    if max(map(word_count, answer.drafts), default=0) > config.draft_words + config.draft_words_tolerance:
        return "draft_too_long"
    if any(speaks_canary(draft) for draft in answer.drafts):
        return "canary_in_drafts"
    if not is_feasible(answer, row["eth"], row["usdc"], row["price"]):
        return "more_than_held"
    if answer.amount is not None:
        worth = answer.amount * (row["price"] if answer.asset == "ETH" else 1.0)
        if worth < _SMALLEST_TRADE_USDC:
            return "below_dust"
    return contradiction(answer.drafts, row)


def is_feasible(answer: DraftAnswer, eth: float, usdc: float, price: float) -> bool:
    """Whether the holdings pay for the trade, costs included. HOLD always is."""
    if answer.amount is None:
        return True
    in_eth = answer.amount if answer.asset == "ETH" else answer.amount / price
    if answer.side == "SELL":
        return in_eth <= eth * (1 + 1e-9)
    cost = answer.amount if answer.asset == "USDC" else answer.amount * price * (1 + COST_SHARE)
    return cost <= usdc * (1 + 1e-9)


_NOT = re.compile(r"\b(?:not|no|never|without|neither)\b|n['\u2019]t\b", re.IGNORECASE)
_OTHER_TOPIC = re.compile(r"volum|volatil|swings|liquid|flow|imbalance|usage", re.IGNORECASE)
_UP = re.compile(r"\b(?:up|uptrend|upward|rising|rises|bullish|climbing|gaining)\b", re.IGNORECASE)
_DOWN = re.compile(r"\b(?:down|downtrend|downward|falling|falls|bearish|dropping|declining)\b", re.IGNORECASE)
_SIGNED = re.compile(r"([+\-\u2212])\s?\d[\d.,]*\s*(?:bps|ticks)", re.IGNORECASE)
_FLAT = re.compile(r"\b(?:flat|sideways)\b|\bno (?:clear )?(?:trend|direction)\b", re.IGNORECASE)
_VOLATILITY = re.compile(r"volatil|swings", re.IGNORECASE)
_CALM = re.compile(r"\b(?:calm|low|quiet|small|little)\b", re.IGNORECASE)
_WILD = re.compile(r"\b(?:high|wild|large|extreme|huge)\b", re.IGNORECASE)
_MUCH = r"(?:all|mostly|mainly|only|fully)"
_RICH_IN_ETH = re.compile(rf"\b{_MUCH} ETH\b|\bETH[- ]heavy\b|\bno USDC\b", re.IGNORECASE)
_RICH_IN_USDC = re.compile(rf"\b{_MUCH} USDC\b|\bUSDC[- ]heavy\b|\bno ETH\b", re.IGNORECASE)
_BALANCED = re.compile(r"\bbalanced\b", re.IGNORECASE)
_PLAN = re.compile(r"\b(?:buy|sell|use|add|trim|reduce|swap|keep|spend|hold)\b", re.IGNORECASE)


def contradiction(drafts: tuple[str, ...], row: Mapping[str, Any]) -> str | None:
    """Which of the prompt's facts a draft plainly denies: ``contradicts_trend``, ``_volatility``, ``_portfolio``.

    Only what is said outright counts: the opposite direction or sign, a flat market where the trend is strong, calm
    for high, rich in the token that is scarce. Drafts with a negation are left alone.
    """
    checks = (
        ("contradicts_trend", _denies_trend),
        ("contradicts_volatility", _denies_volatility),
        ("contradicts_portfolio", _denies_portfolio),
    )
    for reason, denies in checks:
        if any(denies(draft, row) for draft in drafts):
            return reason
    return None


def _denies_trend(draft: str, row: Mapping[str, Any]) -> bool:
    if _OTHER_TOPIC.search(draft):
        return False
    sign = _SIGNED.search(draft)
    if sign and abs(row["change_bps"]) >= 1 and (sign[1] == "+") != (row["change_bps"] > 0):
        return True
    trend = row["trend"]
    if _FLAT.search(draft):
        return trend.endswith("strong")
    up, down = bool(_UP.search(draft)), bool(_DOWN.search(draft))
    if up == down or _NOT.search(draft):
        return False
    return trend.startswith("down" if up else "up")


def _denies_volatility(draft: str, row: Mapping[str, Any]) -> bool:
    if not _VOLATILITY.search(draft) or _NOT.search(draft):
        return False
    calm, wild = bool(_CALM.search(draft)), bool(_WILD.search(draft))
    return calm != wild and row["volatility"] == ("high" if calm else "calm")


def _denies_portfolio(draft: str, row: Mapping[str, Any]) -> bool:
    word = row["portfolio"]
    if word == "dust" or _PLAN.search(draft):
        return False
    return bool(
        (_RICH_IN_ETH.search(draft) and word.endswith("USDC"))
        or (_RICH_IN_USDC.search(draft) and word.endswith("ETH"))
        or (_BALANCED.search(draft) and word.startswith("all") and not _NOT.search(draft))
    )
