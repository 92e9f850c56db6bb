"""Strategies without a model that decisions are compared with."""

from collections.abc import Sequence

import numpy as np

from apeagent_pipeline.distillation.chain_of_draft import DraftAnswer
from apeagent_pipeline.distillation.execution import Holding
from apeagent_pipeline.distillation.verification import is_feasible
from apeagent_pipeline.evaluation.backtest.market import Market, Policy, Run


def hold(decision: int, holdings: Sequence[Holding]) -> list[DraftAnswer | None]:
    """Never trade."""
    return [DraftAnswer((), "HOLD")] * len(holdings)


def rebalance(market: Market) -> Policy:
    """Back to half ETH, half USDC at every decision, by the price of the last swap seen."""
    eth_unit, usdc_unit = 10**market.pool.token0.decimals, 10**market.pool.token1.decimals

    def policy(decision: int, holdings: Sequence[Holding]) -> list[DraftAnswer | None]:
        answers: list[DraftAnswer | None] = []
        for e, holding in enumerate(holdings):
            price = float(market.prices[market.row(e, decision)])
            too_much = round((holding.eth / eth_unit - holding.usdc / usdc_unit / price) / 2, 6)
            if too_much == 0:
                answers.append(DraftAnswer((), "HOLD"))
            else:
                answers.append(DraftAnswer((), "SELL" if too_much > 0 else "BUY", abs(too_much), "ETH"))
        return answers

    return policy


def random_like(run: Run, market: Market, rng: np.random.Generator) -> Policy:
    """A trader who trades when the run did, as much ETH, on a random side; on the other if the holdings cannot pay."""
    eth_unit, usdc_unit = 10**market.pool.token0.decimals, 10**market.pool.token1.decimals

    def policy(decision: int, holdings: Sequence[Holding]) -> list[DraftAnswer | None]:
        coins = rng.uniform(size=len(holdings)) < 0.5
        answers: list[DraftAnswer | None] = []
        for e, (holding, coin) in enumerate(zip(holdings, coins, strict=True)):
            amount = abs(float(run.eth_traded[e, decision]))
            if amount == 0:
                answers.append(DraftAnswer((), "HOLD"))
                continue
            both = [DraftAnswer((), "BUY", amount, "ETH"), DraftAnswer((), "SELL", amount, "ETH")]
            wanted, other = both if coin else both[::-1]
            price = float(market.prices[market.row(e, decision) + 1])
            is_held = is_feasible(wanted, holding.eth / eth_unit, holding.usdc / usdc_unit, price)
            answers.append(wanted if is_held else other)
        return answers

    return policy
