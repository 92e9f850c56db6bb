"""The second stage beside the first: a difference is called one only if it is more than chance."""

import numpy as np
import pytest

from apeagent_pipeline.evaluation.stages import changed, mean_interval


def test_only_what_lies_outside_the_interval_has_changed() -> None:
    first = {"agreement": 0.95, "control_leak_rate": 0.01, "adapter_minus_hold": -0.0007}
    second = {"agreement": 0.80, "control_leak_rate": 0.02, "adapter_minus_hold": -0.0001}
    intervals = {
        "agreement": (0.71, 0.87),
        "control_leak_rate": (0.002, 0.07),
        "adapter_minus_hold": (-0.0004, 0.0002),
    }
    assert changed(first, second, intervals) == ["agreement", "adapter_minus_hold"]


def test_the_interval_of_a_gain_holds_its_mean_and_is_a_point_where_nothing_varies() -> None:
    gains = np.random.default_rng(0).normal(0.1, 0.2, 100)
    low, high = mean_interval(gains, 1)
    assert low < gains.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * 0.02, rel=0.25)
    assert mean_interval(np.zeros(5), 1) == (0, 0)
