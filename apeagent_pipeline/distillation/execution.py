"""What an answer's trade does to a portfolio: the pool's own arithmetic, with fee and price impact.

A swap is computed inside one liquidity range; what it would find beyond the range's end is not known from swaps.
"""

from dataclasses import dataclass
from decimal import Decimal

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.amm.swap_math import SwapMathError, swap_step
from apeagent_pipeline.distillation.chain_of_draft import DraftAnswer


@dataclass(frozen=True)
class Holding:
    """What a portfolio holds, in raw units (wei and the smallest unit of USDC)."""

    eth: int
    usdc: int


def raw_amount(amount: float, decimals: int) -> int:
    """An amount in a token's smallest unit, cut off: of the digits that are written, not of the binary fraction."""
    return int(Decimal(repr(amount)).scaleb(decimals))


def execute(answer: DraftAnswer, sqrt_price_x96: int, liquidity: int, pool: PoolSpec) -> Holding | None:
    """What a trade adds to the holdings (negative: takes away), fee and price impact included.

    Returns:
        None if the pool cannot fill the trade, or the amount is less than the token's smallest unit.
    """
    if answer.amount is None:
        return Holding(0, 0)
    raw = raw_amount(answer.amount, pool.token0.decimals if answer.asset == "ETH" else pool.token1.decimals)
    if raw == 0:
        return None
    # V4's sign: what is wanted is positive (exact output), what is given negative (exact input).
    is_wanted = (answer.side == "BUY") == (answer.asset == "ETH")
    try:
        step = swap_step(sqrt_price_x96, liquidity, raw if is_wanted else -raw, answer.side == "SELL", pool.static_fee)
    except SwapMathError:
        return None
    filled = step.amount0 if answer.asset == "ETH" else step.amount1
    return Holding(step.amount0, step.amount1) if abs(filled) == raw else None


def worth(holding: Holding, price: float, pool: PoolSpec) -> float:
    """What a holding is worth in USDC at a price in USDC an ETH, without the cost of changing it."""
    return holding.eth / 10**pool.token0.decimals * price + holding.usdc / 10**pool.token1.decimals
