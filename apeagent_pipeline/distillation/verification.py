"""Whether an answer may be learned from.

Its form must be right, the holdings must pay for the trade, and its drafts must agree with the prompt and the action.
An answer is accepted as it stands or refused with a reason; nothing is repaired.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from apeagent_pipeline.distillation.answer_text import control_token
from apeagent_pipeline.distillation.canary import ascii_draft, speaks_canary
from apeagent_pipeline.distillation.chain_of_draft import DraftAnswer, word_count
from apeagent_pipeline.distillation.draft_claims import Shown, contradiction
from apeagent_pipeline.distillation.draft_plans import contradicts_action, repeats, says_nothing
from apeagent_pipeline.distillation.portfolios import COST_SHARE, DUST_USDC

_LONGEST_WORD = 30
_SMALLEST_TRADE_USDC = DUST_USDC / 100


class VerificationConfig(BaseModel):
    """What is demanded of an answer."""

    model_config = ConfigDict(frozen=True)

    draft_words: int = Field(5, description="Largest number of words in a draft", ge=1)
    draft_words_tolerance: int = Field(0, description="Words beyond draft_words that are still accepted", ge=0)
    min_drafts: int = Field(1, description="Smallest number of drafts in an answer", ge=0)
    max_drafts: int = Field(8, description="Largest number of drafts in an answer", ge=1)


def verify(answer: DraftAnswer, row: Mapping[str, Any], config: VerificationConfig) -> str | None:
    """Why a parsed answer must not be learned from, or None.

    Args:
        answer: What the teacher said.
        row: The prompt's row: price, eth, usdc, trend, volatility, portfolio, and where known rendering, change_bps,
            change_ticks, volatility_bps, affordable_eth and the other numbers that the prompt may show.
        config: What is demanded.
    """
    shown = Shown.of(row)
    return (
        _wrong_form(answer.drafts, config)
        or ("missing_information" if row.get("missing") and answer.side != "HOLD" else None)
        or _wrong_trade(answer, shown)
        or _empty_talk(answer.drafts)
        or contradiction(answer.drafts, row)
        or contradicts_action(answer, shown)
    )


def _wrong_form(drafts: tuple[str, ...], config: VerificationConfig) -> str | None:
    if not config.min_drafts <= len(drafts) <= config.max_drafts:
        return "too_few_drafts" if len(drafts) < config.min_drafts else "too_many_drafts"
    words = config.draft_words + config.draft_words_tolerance
    if any(len(draft) > words * _LONGEST_WORD or word_count(draft) > words for draft in drafts):
        return "draft_too_long"
    if any(speaks_canary(draft) for draft in drafts):
        return "canary_in_drafts"
    # An answer is read line by line, but a token may be spelled across the lines of the text that is trained.
    return "control_token" if control_token("\n".join(map(ascii_draft, drafts))) else None


def _empty_talk(drafts: tuple[str, ...]) -> str | None:
    if says_nothing(drafts):
        return "drafts_say_nothing"
    return "drafts_repeat" if repeats(drafts) else None


def _wrong_trade(answer: DraftAnswer, shown: Shown) -> str | None:
    if answer.amount is None:
        return None
    # A plain prompt does not mention costs: an honest reader divides the USDC by the price.
    costs = COST_SHARE if shown.words else 0.0
    if not is_feasible(answer, shown.eth, shown.usdc, shown.price, costs):
        return "more_than_held"
    if answer.asset == "USDC":
        return "amount_in_usdc"  # "SELL 500 USDC" may mean to spend USDC or to receive it
    return "below_dust" if answer.amount * shown.price < _SMALLEST_TRADE_USDC else None


def is_feasible(answer: DraftAnswer, eth: float, usdc: float, price: float, cost_share: float = COST_SHARE) -> bool:
    """Whether the holdings pay for the trade with costs, a share of the price. HOLD is always feasible."""
    if answer.amount is None:
        return True
    in_eth = answer.amount if answer.asset == "ETH" else answer.amount / price
    if answer.side == "SELL":
        return in_eth <= eth * (1 + 1e-9)
    cost = answer.amount if answer.asset == "USDC" else answer.amount * price * (1 + cost_share)
    return cost <= usdc * (1 + 1e-9)
