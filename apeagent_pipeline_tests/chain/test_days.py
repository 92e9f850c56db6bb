"""Which blocks belong to which day."""

from bisect import bisect_left
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apeagent_pipeline.chain.days import day_bounds, day_of, days_between, first_block_at_or_after

chains = st.lists(st.integers(0, 40), min_size=1, max_size=200).map(
    lambda gaps: [1_000 + sum(gaps[: i + 1]) for i in range(len(gaps))]
)


@given(chains, st.integers(900, 9_000), st.sampled_from([1.0, 2.0, 12.0]))
def test_the_first_block_of_a_day_is_found_whatever_the_block_times(
    times: list[int], moment: int, block_seconds: float
) -> None:
    head = len(times) - 1
    if times[head] < moment:
        with pytest.raises(ValueError, match="does not exist yet"):
            first_block_at_or_after(moment, head, times.__getitem__, block_seconds)
    else:
        assert first_block_at_or_after(moment, head, times.__getitem__, block_seconds) == bisect_left(times, moment)


def test_a_steady_block_time_costs_three_headers() -> None:
    asked = []

    def timestamp_of(number: int) -> int:
        asked.append(number)
        return 2 * number + 1_686_789_347

    start, _ = day_bounds(date(2025, 2, 4))
    found = first_block_at_or_after(start, 40_000_000, timestamp_of)
    assert timestamp_of(found) >= start > timestamp_of(found - 1)
    assert len(asked) <= 3 + 2


def test_a_long_outage_of_the_chain_is_found_by_bisection_not_by_walking() -> None:
    calls = 0

    def timestamp_of(number: int) -> int:
        nonlocal calls
        calls += 1
        return 2 * number + (3_000_000 if number >= 5_000_000 else 0)

    assert first_block_at_or_after(11_000_000, 20_000_000, timestamp_of) == 5_000_000
    assert calls < 80


def test_a_day_starts_where_the_day_before_ends() -> None:
    days = days_between(date(2024, 12, 30), date(2025, 3, 2))
    assert len(days) == 63
    for day in days:
        start, end = day_bounds(day)
        assert end == day_bounds(day + timedelta(days=1))[0]
        assert day_of(start) == day_of(end - 1) == day
