"""The held-out market, and the simulation of one strategy on it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.amm.swap_math import FEE_UNIT
from apeagent_pipeline.distillation.chain_of_draft import DraftAnswer
from apeagent_pipeline.distillation.execution import Holding, execute, worth
from apeagent_pipeline.errors import ApeagentError
from apeagent_pipeline.evaluation.backtest.config import BacktestConfig

SECONDS_A_YEAR = 365.25 * 86_400
_COLUMNS = ("block_number", "log_index", "block_timestamp", "price", "liquidity", "sqrt_price_x96")


class BacktestError(ApeagentError, ValueError):
    """The held-out swaps do not suffice for the episodes asked for."""


@dataclass(frozen=True)
class Market:
    """The held-out swaps, and where in them the episodes lie.

    Attributes:
        swaps: Rows of ``swap_features``, in order.
        pool: Decimals and fee.
        window, every, decisions: As in the config.
        starts: ``[E]`` first row that each episode sees.
    """

    swaps: pl.DataFrame
    pool: PoolSpec
    window: int
    every: int
    decisions: int
    starts: np.ndarray
    prices: np.ndarray = field(repr=False)
    sqrt_prices: list[int] = field(repr=False)
    liquidity: list[int] = field(repr=False)

    def row(self, episode: int, decision: int) -> int:
        """The last swap that a decision sees."""
        return int(self.starts[episode]) + self.window - 1 + decision * self.every

    def price_paths(self) -> np.ndarray:
        """Prices ``[E, decisions * every + 1]`` from the first decision of each episode to its end."""
        first = self.starts[:, None] + self.window - 1
        return self.prices[first + np.arange(self.decisions * self.every + 1)]


@dataclass(frozen=True)
class Run:
    """The result of one strategy.

    Attributes:
        equity: ``[E, decisions * every + 1]`` worth in USDC after every swap, each episode divided by its start.
        eth_traded: ``[E, decisions]`` ETH bought (positive) or sold (negative).
        turnover: ``[E]`` traded worth over the starting worth.
        fees: ``[E]`` pool fees over the starting worth.
        costs: ``[E]`` worth lost in trading, fees and price impact together, over the starting worth.
        refused: Trades that the holdings did not pay for.
        unreadable: Answers that hold no action.
    """

    equity: np.ndarray
    eth_traded: np.ndarray
    turnover: np.ndarray
    fees: np.ndarray
    costs: np.ndarray
    refused: int
    unreadable: int

    @property
    def returns(self) -> np.ndarray:
        """``[E]`` return of each episode."""
        return self.equity[:, -1] - 1.0


Policy = Callable[[int, Sequence[Holding]], Sequence[DraftAnswer | None]]
"""Decision number and holdings -> one decision for each episode; None: the answer holds no action."""


def make_market(features: pl.DataFrame, pool: PoolSpec, config: BacktestConfig) -> Market:
    """Place the episodes evenly over the held-out swaps, without overlap of their trading time.

    Raises:
        BacktestError: columns are missing, or not one episode fits.
    """
    missing = [name for name in _COLUMNS if name not in features.columns]
    if missing:
        raise BacktestError(f"the held-out swaps lack the columns {missing}; pass rows of swap_features")
    span = config.decisions * config.every
    # One row more than an episode lasts: the last decision is executed after the swap that follows it.
    room = features.height - config.window - 1
    episodes = min(config.episodes, room // span)
    if episodes < 1:
        raise BacktestError(
            f"{features.height} held-out swaps; an episode of {config.decisions} decisions every {config.every} swaps "
            f"needs {config.window + span + 1}. Collect more days, or lower decisions or every."
        )
    return Market(
        swaps=features,
        pool=pool,
        window=config.window,
        every=config.every,
        decisions=config.decisions,
        starts=np.linspace(0, room - span, episodes).round().astype(int),
        prices=features["price"].to_numpy(),
        sqrt_prices=[int(text) for text in features["sqrt_price_x96"]],
        liquidity=[int(text) for text in features["liquidity"]],
    )


def simulate(market: Market, policy: Policy, start_usdc: float, eth_share: float | np.ndarray = 0.5) -> Run:
    """Let a policy trade all episodes.

    Args:
        market: What is replayed.
        policy: Decides.
        start_usdc: Worth of each portfolio at the start, in USDC.
        eth_share: Share of it that is ETH, of all episodes or ``[E]``.
    """
    pool = market.pool
    eth_unit, usdc_unit = 10**pool.token0.decimals, 10**pool.token1.decimals
    episodes = range(len(market.starts))
    paths = market.price_paths()
    in_eth = np.broadcast_to(start_usdc * np.asarray(eth_share), len(episodes))
    holdings = [
        Holding(int(in_eth[e] / paths[e, 0] * eth_unit), int((start_usdc - in_eth[e]) * usdc_unit)) for e in episodes
    ]
    start_worth = np.array([worth(holdings[e], paths[e, 0], pool) for e in episodes])
    equity = np.empty_like(paths)
    eth_traded = np.zeros((len(episodes), market.decisions))
    turnover, fees, costs = (np.zeros(len(episodes)) for _ in range(3))
    refused = unreadable = 0
    for decision in range(market.decisions):
        answers = policy(decision, holdings)
        after = list(holdings)
        for e, answer in enumerate(answers):
            unreadable += answer is None
            if answer is None or answer.amount is None:
                continue
            row = market.row(e, decision) + 1
            fill = execute(answer, market.sqrt_prices[row], market.liquidity[row], pool)
            if fill is None or min(holdings[e].eth + fill.eth, holdings[e].usdc + fill.usdc) < 0:
                refused += 1
                continue
            after[e] = Holding(holdings[e].eth + fill.eth, holdings[e].usdc + fill.usdc)
            price = market.prices[row]
            paid = -fill.usdc / usdc_unit if fill.usdc < 0 else -fill.eth / eth_unit * price
            eth_traded[e, decision] = fill.eth / eth_unit
            turnover[e] += abs(fill.usdc) / usdc_unit
            fees[e] += paid * pool.static_fee / FEE_UNIT
            costs[e] += worth(holdings[e], price, pool) - worth(after[e], price, pool)
        # The trade happens after the next swap, so the row of the decision itself still has the old holdings.
        first = decision * market.every
        for e in episodes:
            equity[e, first] = worth(holdings[e], paths[e, first], pool)
            later = paths[e, first + 1 : first + market.every + 1]
            equity[e, first + 1 : first + market.every + 1] = [worth(after[e], price, pool) for price in later]
        holdings = after
    return Run(
        equity=equity / start_worth[:, None],
        eth_traded=eth_traded,
        turnover=turnover / start_worth,
        fees=fees / start_worth,
        costs=costs / start_worth,
        refused=refused,
        unreadable=unreadable,
    )
