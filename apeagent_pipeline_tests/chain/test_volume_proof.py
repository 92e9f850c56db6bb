"""The fees that the real PoolManager stored are those of all swaps, and of no smaller set of them."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest

from apeagent_pipeline.chain.day_reading import PoolEvents
from apeagent_pipeline.chain.days import first_block_of
from apeagent_pipeline.chain.devnet import start_devnet
from apeagent_pipeline.chain.events import SWAP_KEY, SWAP_TOPIC, decode_swap_logs
from apeagent_pipeline.chain.liquidity import LIQUIDITY_TOPIC, decode_liquidity_logs, empty_liquidity
from apeagent_pipeline.chain.neighbourhood import Neighbourhood
from apeagent_pipeline.chain.pool_state import EXTSLOAD, encode_words, pool_slot, read_state, read_words
from apeagent_pipeline.chain.replay import Replay, replay


class Day(NamedTuple):
    """A day of real contracts: its events, the positions before it, and what the pool stored around it."""

    swaps: pl.DataFrame
    changes: pl.DataFrame
    ticks: dict[int, int]
    around: Neighbourhood
    spacing: int

    def without(self, row: int | None) -> Replay:
        swaps = self.swaps if row is None else pl.concat([self.swaps[:row], self.swaps[row + 1 :]])
        return replay(swaps, self.changes, self.spacing, self.around.state_before, self.ticks)


@pytest.fixture(scope="module")
def day(devnet_cache: Path) -> Iterator[Day]:
    with start_devnet(devnet_cache) as devnet:
        pool = devnet.pool

        def stored(*offsets: int) -> str:
            data = EXTSLOAD + encode_words([pool_slot(pool.pool_id, offset) for offset in offsets])[2:]
            return str(devnet.rpc("eth_call", {"to": pool.pool_manager, "data": data}, "latest"))

        def logs(topic: str, first: int, last: int) -> list[Any]:
            query = {"address": pool.pool_manager, "topics": [topic, pool.pool_id]}
            return list(devnet.rpc("eth_getLogs", query | {"fromBlock": hex(first), "toBlock": hex(last)}))

        before = read_state(stored(0, 3)), read_words(stored(1, 2), 2)
        (traded,) = devnet.trade(days=1, swaps=400)
        after = read_state(stored(0, 3)), read_words(stored(1, 2), 2)
        first = first_block_of(traded)
        swaps = decode_swap_logs(logs(SWAP_TOPIC, first, first + 43_199), pool).sort(SWAP_KEY)
        changes = decode_liquidity_logs(logs(LIQUIDITY_TOPIC, first, first + 43_199), pool).sort(SWAP_KEY)
        lower, upper, liquidity = devnet.opening_position
    assert before[0] and before[1] and after[0] and after[1]
    assert not changes.is_empty()
    fees = after[1][0] - before[1][0], after[1][1] - before[1][1]
    around = Neighbourhood(PoolEvents.none(), PoolEvents.none(), before[0][0], after[0][0], fees)
    yield Day(swaps, changes, {lower: liquidity, upper: -liquidity}, around, pool.tick_spacing)


def test_all_swaps_together_make_the_stored_fees_price_and_liquidity(day: Day) -> None:
    found = day.without(None)
    assert found.exact == found.pairs == day.swaps.height == 400
    assert not found.gaps
    assert found.state == day.around.state_after
    assert day.around.volume_fits(found) is True


def test_any_swap_that_is_missing_is_noticed(day: Day) -> None:
    rows = random.Random(7).sample(range(day.swaps.height), 100)
    noticed = [row for row in rows if day.around.volume_fits(day.without(row)) is not True]
    assert noticed == rows


def test_a_swap_without_any_effect_on_the_price_is_noticed_by_the_fees_alone(day: Day) -> None:
    found = day.without(None)
    assert found.fee_growth is not None
    one_unit = (1 << 128) // int(day.swaps["liquidity"].cast(pl.Int128).max())  # type: ignore[arg-type]
    for less in ((one_unit, 0), (0, one_unit)):
        told = found.fee_growth[0] - less[0], found.fee_growth[1] - less[1]
        assert day.around.volume_fits(found._replace(fee_growth=told)) is False


def test_liquidity_changes_that_are_left_out_are_noticed(day: Day) -> None:
    found = replay(day.swaps, empty_liquidity(), day.spacing, day.around.state_before, day.ticks)
    assert found.gaps or found.state != day.around.state_after
