"""The distance of two distributions is the one that scipy computes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from apeagent_pipeline.market.distribution_distance import ks_distance

SAMPLES = st.lists(st.integers(-3, 3), min_size=1, max_size=30)


@given(SAMPLES, SAMPLES)
def test_the_distance_is_scipys_whatever_repeats_and_however_long_the_samples_are(a: list[int], b: list[int]) -> None:
    assert ks_distance(np.array(a), np.array(b)) == pytest.approx(ks_2samp(a, b, method="asymp").statistic)


@given(st.lists(SAMPLES, min_size=2, max_size=5))
def test_a_days_distance_from_all_days_tells_the_one_from_the_others(days: list[list[int]]) -> None:
    everything = np.concatenate(days)
    for number, day in enumerate(days):
        others = np.concatenate([*days[:number], *days[number + 1 :]])
        scaled = ks_distance(np.array(day), everything) * len(everything) / len(others)
        assert scaled == pytest.approx(ks_distance(np.array(day), others))
