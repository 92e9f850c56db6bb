"""Verifiable rewards of an answer, computed from its text and from the swaps after it."""

from collections.abc import Mapping
from typing import Any

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.distillation.canary import is_canary_answer
from apeagent_pipeline.distillation.chain_of_draft import DraftAnswer, parse_answer, read_answer, word_count
from apeagent_pipeline.distillation.execution import Holding, execute, raw_amount, worth
from apeagent_pipeline.distillation.verification import VerificationConfig, is_feasible


def format_reward(text: str, config: VerificationConfig) -> float:
    """1 for a strict canary answer (one action, nothing after it) whose drafts are as a teacher's must be, else 0."""
    if not is_canary_answer(text):
        return 0.0
    drafts = parse_answer(text).drafts
    longest = config.draft_words + config.draft_words_tolerance
    disciplined = config.min_drafts <= len(drafts) <= config.max_drafts
    return float(disciplined and all(word_count(draft) <= longest for draft in drafts))


def feasibility_reward(text: str, state: Mapping[str, Any]) -> float:
    """1 if the holdings pay for the action, costs included; 0 if they do not, or there is no action.

    Args:
        text: The answer.
        state: ``eth``, ``usdc`` and ``price`` of the prompt.
    """
    answer = read_answer(text)
    return float(answer is not None and is_feasible(answer, state["eth"], state["usdc"], state["price"]))


def outcome_reward(text: str, state: Mapping[str, Any], pool: PoolSpec, scale_bps: float) -> float:
    """How much better than holding the action did, between -1 and 1; 0 if nothing is traded.

    Args:
        text: The answer.
        state: See ``outcome_bps``.
        pool: Decimals and fee.
        scale_bps: Gain or loss that counts as 1 or -1. Larger ones are clipped, so that a single jump of the price does
            not outweigh many answers.
    """
    answer = read_answer(text)
    gained = 0.0 if answer is None else outcome_bps(answer, state, pool)
    return max(-1.0, min(1.0, gained / scale_bps))


def outcome_bps(answer: DraftAnswer, state: Mapping[str, Any], pool: PoolSpec) -> float:
    """What an action gains over holding until the later price, in basis points of the portfolio's worth.

    As in the backtest, the trade is executed after the next swap, with fee and price impact. A trade that the pool
    cannot fill or that exceeds the holdings is not executed.

    Args:
        answer: The action.
        state: ``eth``, ``usdc`` held, ``next_sqrt_price_x96`` and ``next_liquidity`` after the next swap (exact, as
            text), ``later_price`` in USDC an ETH.
        pool: Decimals and fee.
    """
    before = Holding(raw_amount(state["eth"], pool.token0.decimals), raw_amount(state["usdc"], pool.token1.decimals))
    fill = execute(answer, int(state["next_sqrt_price_x96"]), int(state["next_liquidity"]), pool)
    if fill is None or min(before.eth + fill.eth, before.usdc + fill.usdc) < 0:
        return 0.0
    held = worth(before, state["later_price"], pool)
    return (worth(fill, state["later_price"], pool) / held) * 1e4 if held else 0.0
