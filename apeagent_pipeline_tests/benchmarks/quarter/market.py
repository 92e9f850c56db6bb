"""The market of a quarter alone: when is a change told, and how often is a calm day taken for one?

Run it with ``python -m apeagent_pipeline_tests.benchmarks.quarter.market [--days 90] [--seeds 42 43]``. It computes
what `service_report` says of the market every night, and what its check warns about, with the days of training that a
weekly retraining has. No model is trained, so ninety days take a minute or two of processor time; form and decisions of
an adapter are no part of it. It exits with 1 unless the change of the quarter is told within two days with at most two
false alerts.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from typing import Any
from unittest import mock

import polars as pl

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.chain import market_simulation
from apeagent_pipeline.chain.days import FIRST_DAY
from apeagent_pipeline.chain.source import EmbeddedSource
from apeagent_pipeline.evaluation.service.answers import SERVICE_SCHEMA
from apeagent_pipeline.evaluation.service.drift import drift_of
from apeagent_pipeline.evaluation.service.verdict import DayReport, warnings
from apeagent_pipeline.market.features import swap_features
from apeagent_pipeline.market.windows import WindowsConfig
from apeagent_pipeline_tests.benchmarks.quarter.plan import SIZES_TIMES, Plan

FACTORS = (2.0, 3.0, SIZES_TIMES)
"""The planted changes: every trade is so many times larger."""
LATEST, MOST_FALSE = 2, 2
_NIGHTS_AFTER = 7
"""Nights after the change that are lived through with each factor."""
_SUNDAY = 6
_NO_ANSWERS = pl.DataFrame(schema=SERVICE_SCHEMA)


@contextmanager
def larger_trades(times: float) -> Iterator[None]:
    """The embedded market with every trade ``times`` larger."""
    usual = market_simulation._plan

    def plan(seed: int, day: date, *edges: float) -> Any:
        made = usual(seed, day, *edges)
        return replace(made, size_usdc=made.size_usdc * times)

    with mock.patch.object(market_simulation, "_plan", plan):
        yield


@dataclass
class Market:
    """The stored days of an embedded chain, and the days that the adapter in service was trained on."""

    seed: int
    swaps: dict[date, pl.DataFrame] = field(default_factory=dict)
    features: dict[date, pl.DataFrame] = field(default_factory=dict)
    trained_on: list[date] = field(default_factory=list)
    alerts: list[tuple[date, str]] = field(default_factory=list)

    def read(self, day: date, times: float) -> None:
        """Read a day."""
        with larger_trades(times):
            self.swaps[day] = EmbeddedSource(BASE_ETH_USDC, seed=self.seed).read_day(day)
        self.features[day] = swap_features(self.swaps[day], BASE_ETH_USDC, self.swaps.get(day - timedelta(days=1)))

    def retrain(self) -> None:
        """Train on the newest days."""
        self.trained_on = sorted(self.features)[-WindowsConfig().days :]

    def night(self, day: date, times: float) -> None:
        """Read a day, judge it, and do what the alert asks for; on Sunday retrain."""
        self.read(day, times)
        drift = drift_of(self.features[day], [self.features[each] for each in self.trained_on])
        told = warnings([DayReport(str(day), _NO_ANSWERS, drift)], {})
        self.alerts += [(day, each) for each in told]
        if told or (day + timedelta(days=1)).weekday() == _SUNDAY:
            self.retrain()

    def copy(self) -> "Market":
        """The same up to now, to be lived on otherwise."""
        return Market(self.seed, {**self.swaps}, {**self.features}, [*self.trained_on], [*self.alerts])


def live(seed: int, plan: Plan) -> tuple[Market, dict[float, Market]]:
    """The days before the change, and the nights after it for each factor; the largest until the end."""
    calm = Market(seed)
    for number in range(plan.first):
        calm.read(FIRST_DAY + timedelta(days=number), 1.0)
    calm.retrain()
    change = (plan.change - FIRST_DAY).days
    for number in range(plan.first, change):
        calm.night(FIRST_DAY + timedelta(days=number), 1.0)
    changed = {times: calm.copy() for times in FACTORS}
    for times, market in changed.items():
        last = plan.days if times == SIZES_TIMES else min(plan.days, change + _NIGHTS_AFTER)
        for number in range(change, last):
            market.night(FIRST_DAY + timedelta(days=number), times)
    return calm, changed


def main() -> int:
    """Live through the quarters and show what was told."""
    parser = argparse.ArgumentParser(description="The market of a simulated quarter, without models.")
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--first", type=int, default=14, help="days of the first training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    given = parser.parse_args()
    plan, met = Plan(given.days, given.first), True
    for seed in given.seeds:
        begun = time.process_time()
        calm, changed = live(seed, plan)
        nights = (plan.change - FIRST_DAY).days - plan.first
        print(json.dumps([f"seed {seed}, false alerts in the calm nights", f"{len(calm.alerts)} of {nights}"]))
        for times, market in changed.items():
            after = [day for day, _ in market.alerts if day >= plan.change]
            told = (after[0] - plan.change).days + 1 if after else None
            print(
                json.dumps(
                    [f"seed {seed}, trades {times:g} times larger, told on day; alerts in all", f"{told}; {len(after)}"]
                )
            )
            if times == SIZES_TIMES:
                met &= told is not None and told <= LATEST and len(calm.alerts) <= MOST_FALSE
        for day, text in changed[SIZES_TIMES].alerts:
            print(f"{day}: {text}")
        print(f"seed {seed}: {time.process_time() - begun:.0f} s of computing", flush=True)
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
