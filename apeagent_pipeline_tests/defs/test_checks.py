"""What the checks say of data that is not as it should be."""

from types import SimpleNamespace
from typing import Any, cast

import polars as pl
import pytest

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.chain.days import FIRST_DAY
from apeagent_pipeline.chain.source import EmbeddedSource
from apeagent_pipeline.defs.checks import no_swap_missing


class OneDay:
    """A store that holds one day."""

    def __init__(self, swaps: pl.DataFrame) -> None:
        self.swaps = swaps

    def days(self, asset: str) -> list[str]:
        return [str(FIRST_DAY)]

    def scan(self, asset: str, day: str) -> pl.LazyFrame:
        return self.swaps.lazy()


@pytest.mark.parametrize(
    ("dropped", "source", "hooks", "passes"),
    [
        (1_000_000, "rpc", False, True),  # nothing is missing
        (10, "rpc", False, False),
        (10, "embedded", False, False),
        (10, "archive", False, True),
        (10, "rpc", True, True),
    ],
)
def test_a_day_that_lacks_every_tenth_swap_is_noticed(dropped: int, source: str, hooks: bool, passes: bool) -> None:
    whole = EmbeddedSource(BASE_ETH_USDC, seed=42).read_day(FIRST_DAY)
    swaps = whole.filter(pl.int_range(pl.len()) % dropped != dropped - 1)
    pool = BASE_ETH_USDC.model_copy(update={"hooks": "0x" + "1" * 40} if hooks else {})
    store, origin = cast("Any", OneDay(swaps)), cast("Any", SimpleNamespace(name=source, pool=pool))
    wrong, figures = no_swap_missing(store, origin)
    assert (not wrong) is passes
    assert figures["judged_pairs"] > 500
    assert (figures["chain_rate"] > 0.95) is (swaps.height == whole.height)
