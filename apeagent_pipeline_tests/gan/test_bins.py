import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from apeagent_pipeline.gan.bins import RowBins

columns = arrays(np.float64, st.integers(20, 200), elements=st.sampled_from([0.0, 1.5, -2.0, 300.0, 320.0, 7.25, 1e-9]))


@given(columns, st.integers(1, 30), st.integers(0, 5))
def test_a_train_value_comes_back_exactly(column, count, seed):
    bins = RowBins.fit(column[:, None], [count])
    rng = np.random.default_rng(seed)
    encoded = bins.encode(column[:, None])
    positions = bins.positions(column[:, None], encoded, rng)
    assert (positions >= 0).all()
    assert (positions <= 1).all()
    # A position drawn among the copies of a value stands for that value.
    assert np.array_equal(bins.decode(encoded, np.minimum(positions, 1 - 1e-12))[:, 0], column)


def test_frequent_values_get_a_bin_of_their_own():
    rng = np.random.default_rng(0)
    column = np.where(rng.random(1_000) < 0.4, 0.0, rng.normal(size=1_000))
    bins = RowBins.fit(column[:, None], [20])
    zero = bins.encode(np.array([[0.0]]))
    others = bins.encode(column[column != 0][:, None])
    assert (others != zero).all()
    assert (bins.decode(np.repeat(zero, 50, axis=0), rng.random((50, 1))) == 0).all()


def test_uniform_positions_in_drawn_bins_repeat_the_train_distribution():
    rng = np.random.default_rng(0)
    column = np.where(rng.random(2_000) < 0.3, 300.0, rng.lognormal(4, 2, 2_000))
    bins = RowBins.fit(column[:, None], [56])
    encoded = bins.encode(column[:, None])
    drawn = bins.decode(np.repeat(encoded, 20, axis=0), rng.random((40_000, 1)))
    assert set(drawn[:, 0]) <= set(column)
    assert (drawn == 300.0).mean() == pytest.approx((column == 300.0).mean(), abs=1e-9)


def test_values_never_seen_fall_into_the_nearest_bin():
    bins = RowBins.fit(np.arange(1_000.0)[:, None], [10])
    # 10 bins, the outer two halved three times.
    assert bins.encode(np.array([[-5.0], [1e9], [499.5]])).ravel().tolist() == [0, 15, 8]


def test_a_frequent_value_leaves_the_other_values_their_bins():
    rng = np.random.default_rng(0)
    column = np.where(rng.random(20_000) < 0.9, 0.0, rng.normal(size=20_000))
    (count,) = RowBins.fit(column[:, None], [20]).counts
    assert count >= 20


def test_a_bin_holds_more_than_a_handful_of_values():
    bins = RowBins.fit(np.random.default_rng(0).normal(size=(200, 1)), [56])
    assert len(bins.values[0]) / bins.counts[0] > 10


def test_saved_bins_come_back(tmp_path):
    rows = np.random.default_rng(0).normal(size=(100, 3))
    bins = RowBins.fit(rows, [4, 5, 6])
    bins.save(tmp_path)
    again = RowBins.load(tmp_path)
    assert again.counts == bins.counts
    assert np.array_equal(again.encode(rows), bins.encode(rows))


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match=r"columns \[1\]"):
        RowBins.fit(np.array([[1.0, np.nan], [2.0, 3.0]]), [2, 2])
