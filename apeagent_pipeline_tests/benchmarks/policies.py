"""The embedded policy beside the one before it, traded on real and embedded swaps with fee and price impact.

    python -m apeagent_pipeline_tests.benchmarks.policies [--home .apeagent]

Both are asked in the prompts of the backtest, every six swaps. The policy of before (teacher version 6) called a trend
flat below a third of the volatility and strong from it on, and knew two sizes. The embedded swaps are the days below
``--home``; the real ones are the shared sample. No model is asked; half a minute.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC, PoolSpec
from apeagent_pipeline.chain.archive import SwapArchive
from apeagent_pipeline.distillation.chain_of_draft import DraftAnswer
from apeagent_pipeline.distillation.execution import Holding
from apeagent_pipeline.distillation.teachers.rules import rules_answer, two_digits_of
from apeagent_pipeline.evaluation.backtest.config import BacktestConfig
from apeagent_pipeline.evaluation.backtest.market import Market, Run, make_market, simulate
from apeagent_pipeline.evaluation.backtest.replay import decision_states
from apeagent_pipeline.evaluation.backtest.strategies import hold, rebalance
from apeagent_pipeline.market.features import swap_features
from apeagent_pipeline_tests.conftest import REAL_SWAPS

CONFIG = BacktestConfig(decisions=24, episodes=200, template="flow")
_DRAWS = 2_000


def before(row: dict[str, object]) -> DraftAnswer:
    """The policy of before, on the numbers of a prompt."""
    change, volatility = float(str(row["change_bps"])), float(str(row["volatility_bps"]))
    eth, affordable, price = (float(str(row[name])) for name in ("eth", "affordable_eth", "price"))
    share, size = eth / max(eth + affordable, 1e-12), abs(change) / max(volatility, 1e-12)
    wanted = share if change > 0 else 1 - share
    if size < 1 / 3 or (size < 1 and volatility >= 75) or (eth + affordable) * price < 1 or wanted >= 0.98:
        return DraftAnswer((), "HOLD")
    is_half = size >= 1 and volatility < 75
    if not is_half and wanted >= 0.65:
        return DraftAnswer((), "HOLD")
    side, holding = ("BUY", affordable) if change > 0 else ("SELL", eth)
    return DraftAnswer((), side, two_digits_of((0.5 if is_half else 0.1) * holding), "ETH")  # type: ignore[arg-type]


def traded(market: Market, answer: Callable[[dict[str, object]], DraftAnswer]) -> Run:
    """The run of a policy that answers rows of prompts."""

    def policy(decision: int, holdings: Sequence[Holding]) -> list[DraftAnswer | None]:
        return [answer(row) for row in decision_states(market, decision, holdings, CONFIG).iter_rows(named=True)]

    return simulate(market, policy, CONFIG.start_usdc)


def measured(name: str, features: pl.DataFrame, pool: PoolSpec, table: Table) -> None:
    """Add the rows of one market."""
    market = make_market(features, pool, CONFIG)
    policies = {"policy of before": before, "embedded policy": rules_answer}
    runs = {label: traded(market, answer) for label, answer in policies.items()}
    runs["rebalance to half"] = simulate(market, rebalance(market), CONFIG.start_usdc)
    held = simulate(market, hold, CONFIG.start_usdc).returns
    rng = np.random.default_rng(0)
    for label, run in runs.items():
        against = (run.returns - held) * 1e4
        means = rng.choice(against, (_DRAWS, len(against))).mean(1)
        low, high = np.quantile(means, [0.025, 0.975])
        table.add_row(
            f"{name}: {label}",
            f"{(run.eth_traded != 0).mean():.0%}",
            f"{run.turnover.mean():.2f}",
            f"{run.costs.mean() * 1e4:.1f}",
            f"{against.mean():+.1f} ({low:+.1f} to {high:+.1f})",
        )


def main() -> None:
    """Trade, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path(".apeagent"))
    home = parser.parse_args().home
    table = Table("swaps: strategy", "trades", "turnover", "costs, bps", "against holding, bps (95 %)")
    if REAL_SWAPS.exists():
        real = swap_features(SwapArchive(REAL_SWAPS, BASE_ETH_USDC).swaps, BASE_ETH_USDC)
        measured("real", real, BASE_ETH_USDC, table)
    days = sorted((home / "storage" / "swap_features").glob("*.parquet"))
    if days:
        measured("embedded", pl.concat(pl.read_parquet(day) for day in days), BASE_ETH_USDC, table)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
