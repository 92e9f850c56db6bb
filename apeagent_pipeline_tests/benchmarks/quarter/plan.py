"""What happens when in a simulated quarter: bad day, killed processes, upgrades, a move, a changed market."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any
from unittest import mock

import polars as pl

from apeagent_pipeline.chain import market_simulation
from apeagent_pipeline.chain.days import FIRST_DAY
from apeagent_pipeline.chain.source import EmbeddedSource
from apeagent_pipeline.defs.assets import market as market_assets
from apeagent_pipeline.defs.build import Graph, build_graph
from apeagent_pipeline.defs.watcher import Watcher
from apeagent_pipeline.distillation.dataset import DatasetConfig
from apeagent_pipeline.settings import Settings
from apeagent_pipeline_tests.defs.killer import Moment
from apeagent_pipeline_tests.tiny_graph import TINY

SIZES_TIMES = 5.0
"""The planted change: every trade is so many times larger."""
QUARTER = replace(
    TINY,
    synthetic_quality=TINY.synthetic_quality.model_copy(update={"deals": 1}),
    lora_adapter=TINY.lora_adapter.model_copy(update={"valid_every": 4, "valid_examples": 2}),
)
"""The tiny options, with one assignment of blocks to folds and one validation: neither is looked at here."""


@dataclass(frozen=True)
class Crash:
    """The first run from a day on that builds an asset is killed in the middle of it."""

    day: date
    asset: str
    moment: Moment


@dataclass(frozen=True)
class Plan:
    """When what happens.

    Attributes:
        days: Length of the quarter.
        first: Days of the first training, before the first night.
    """

    days: int
    first: int

    @property
    def change(self) -> date:
        """The first day of the changed market: day 60 of 90."""
        return FIRST_DAY + timedelta(days=round(self.days * 2 / 3))

    def in_calm_weeks(self, share: float) -> date:
        """The day after a share of the nights before the change."""
        nights = (self.change - FIRST_DAY).days - self.first
        return FIRST_DAY + timedelta(days=self.first + int(nights * share))

    @property
    def bad_day(self) -> date:
        """Its swaps are read without two of three."""
        return self.in_calm_weeks(0.2)

    @property
    def upgrades(self) -> tuple[date, date]:
        """Before these nights a new release is installed."""
        return self.in_calm_weeks(0.35), self.in_calm_weeks(0.65)

    @property
    def move(self) -> date:
        """Before this night the home is moved."""
        return self.in_calm_weeks(0.5)

    @property
    def crashes(self) -> list[Crash]:
        """One while a day is read, one in the training of the GAN, one in the fine-tuning of the student."""
        return [
            Crash(self.in_calm_weeks(0.1), "raw_swaps", "writing"),
            Crash(self.in_calm_weeks(0.3), "trained_gan", "working"),
            Crash(self.in_calm_weeks(0.7), "lora_adapter", "working"),
        ]

    def release(self, today: date) -> int:
        """How many upgrades are installed on a day."""
        return sum(day <= today for day in self.upgrades)


def release_graph(settings: Settings, release: int, watcher: Watcher | None = None) -> Graph:
    """The whole graph at tiny scale, as a release declares it.

    The first upgrade changes the code of ``swap_features`` (the content stays), the second the options of
    ``distillation_dataset``: both change a code version.
    """
    usual: Callable[..., dict[str, Any]] = market_assets.declare

    def declare(*args: Any, **options: Any) -> dict[str, Any]:
        newer = {"code": "next"} if release >= 1 and options.get("daily") else {}
        return usual(*args, **{**options, **newer})

    profile = QUARTER if release < 2 else replace(QUARTER, distillation_dataset=DatasetConfig(n_train=26, n_valid=6))
    with mock.patch.object(market_assets, "declare", declare):
        return build_graph(settings, watcher, profile)


@contextmanager
def planted(plan: Plan, mended: Collection[date]) -> Iterator[None]:
    """The changed market from its day on; and the bad day with every third swap only, until it is mended."""
    usual_plan, usual_day = market_simulation._plan, EmbeddedSource.read_day

    def changed_plan(seed: int, day: date, *edges: float) -> market_simulation._Plan:
        made = usual_plan(seed, day, *edges)
        return replace(made, size_usdc=made.size_usdc * SIZES_TIMES) if day >= plan.change else made

    def read_day(self: EmbeddedSource, day: date, *rest: Any) -> pl.DataFrame:
        swaps = usual_day(self, day, *rest)
        return swaps.gather_every(3) if day == plan.bad_day and day not in mended else swaps

    with (
        mock.patch.object(market_simulation, "_plan", changed_plan),
        mock.patch.object(EmbeddedSource, "read_day", read_day),
    ):
        yield
