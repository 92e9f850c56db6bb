import datetime as dt

import numpy as np
import polars as pl
import pytest

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.market.features import swap_features
from apeagent_pipeline.market.windows import (
    FREE_FEATURES,
    SPLITS,
    TrainingWindows,
    WindowsConfig,
    WindowsError,
    make_training_windows,
)

CONFIG = WindowsConfig(fewest_train_windows=50)


@pytest.fixture(scope="module")
def features(swaps):
    return swap_features(swaps(1_500), BASE_ETH_USDC)


@pytest.fixture(scope="module")
def windows(features):
    return make_training_windows(features, BASE_ETH_USDC, CONFIG)


def test_windows_lie_in_one_split_and_one_segment(windows):
    table = windows.table
    for split in SPLITS:
        starts = windows.starts(split)
        assert len(starts) > 0
        rows = starts[:, None] + np.arange(windows.rows)
        assert set(table["split"].to_numpy()[rows].ravel()) == {split}
        segments = table["segment"].to_numpy()[rows]
        assert (segments == segments[:, :1]).all()


def test_no_holdout_row_touches_a_training_window(windows):
    """A window and its context before the holdout end before it begins, with a whole window between them."""
    last = {split: windows.starts(split).max() + windows.rows for split in SPLITS}
    assert windows.starts("valid").min() - last["train"] >= windows.rows
    assert windows.starts("holdout").min() - last["valid"] >= windows.rows


def test_valid_blocks_stand_among_the_train_rows_with_a_whole_window_between(swaps):
    features = swap_features(swaps(6_000, seed=4), BASE_ETH_USDC)
    windows = make_training_windows(features, BASE_ETH_USDC, WindowsConfig(longest_pause=10**6))
    splits = windows.table["split"].to_numpy()
    borders = np.flatnonzero(splits[1:] != splits[:-1]) + 1
    runs = [(str(splits[part[0]]), len(part)) for part in np.split(np.arange(len(splits)), borders)]
    assert [name for name, _ in runs] == ["train", "gap", "valid", "gap"] * 4 + ["holdout"]
    assert all(length >= windows.rows for _, length in runs)


def test_typed_amounts_are_told_from_those_that_follow_from_them(features):
    typed = features.with_columns(
        amount0_eth=pl.when(pl.int_range(pl.len()) == 100)
        .then(0.25 * pl.col("amount0_eth").sign())
        .otherwise("amount0_eth")
    )
    table = make_training_windows(typed, BASE_ETH_USDC, CONFIG).table
    assert table.filter("stated_in_token0")["amount0_eth"].abs().to_list() == [0.25]


def test_moves_between_swaps_are_exactly_zero_where_the_price_stood_still(swaps):
    raw = swaps(1_500, seed=3)
    table = make_training_windows(swap_features(raw, BASE_ETH_USDC), BASE_ETH_USDC, CONFIG).table
    zero = (table["move"] == 0).mean()
    # The simulation moves the price before a third of the swaps.
    assert 0.6 < zero < 0.73
    assert table.filter(pl.col("move") != 0)["move"].abs().min() > 1e-9
    assert 0.6 < (table["liquidity_change"] == 0).mean() < 0.73


def test_the_scaler_knows_nothing_of_what_comes_after_the_train_split(features, windows):
    last = windows.table.filter(pl.col("split") == "train")["block_number"].max()
    louder = features.with_columns(
        pl.when(pl.col("block_number") > last).then(pl.col("volume_usdc") * 50).otherwise(pl.col("volume_usdc"))
    )
    assert make_training_windows(louder, BASE_ETH_USDC, CONFIG).scaler["features"] == windows.scaler["features"]


def test_launch_and_liquidity_collapse_are_left_out_and_no_window_spans_them(features):
    thin = pl.int_range(pl.len()).is_in([0, 1, 2, 700])
    broken = features.with_columns(liquidity=pl.when(thin).then(pl.lit("1000000000000")).otherwise("liquidity"))
    windows = make_training_windows(broken, BASE_ETH_USDC, CONFIG)
    assert windows.scaler["flagged"]["thin_liquidity"] == 4
    kept = windows.table.select("block_number", "log_index").rows()
    assert features.select("block_number", "log_index").row(700) not in kept
    assert windows.table["segment"].n_unique() == 2
    assert windows.table["liquidity_change"].abs().max() < 1


def test_a_missing_day_breaks_the_segment(features):
    day = dt.timedelta(days=2)
    late = pl.int_range(pl.len()) >= 600
    shifted = features.with_columns(
        block_timestamp=pl.when(late).then(pl.col("block_timestamp") + day).otherwise("block_timestamp")
    )
    windows = make_training_windows(shifted, BASE_ETH_USDC, CONFIG)
    stamps = windows.table["block_timestamp"].to_numpy()
    rows = np.concatenate([windows.starts(split) for split in SPLITS])[:, None] + np.arange(windows.rows)
    assert (np.diff(stamps[rows], axis=1) < np.timedelta64(7200, "s")).all()


def test_only_the_last_days_are_used(features):
    last = make_training_windows(features, BASE_ETH_USDC, WindowsConfig(days=1, fewest_train_windows=1)).table
    assert last["block_timestamp"].dt.date().n_unique() == 1


def test_saved_windows_come_back(windows, tmp_path):
    windows.save(tmp_path)
    again = TrainingWindows.load(tmp_path)
    assert again.table.equals(windows.table)
    assert again.scaler == windows.scaler
    assert again.free_features().shape == (windows.table.height, len(FREE_FEATURES))
    with pytest.raises(WindowsError, match="materialize training_windows"):
        TrainingWindows.load(tmp_path / "nowhere")


def test_too_few_swaps_are_counted_and_the_remedy_named(features):
    with pytest.raises(WindowsError, match=r"100 swaps .*At least 200 train windows.*Sync more days"):
        make_training_windows(features[:100], BASE_ETH_USDC, WindowsConfig())
    with pytest.raises(WindowsError, match=r"0 swaps"):
        make_training_windows(features.clear(), BASE_ETH_USDC, WindowsConfig())


def test_bad_features_are_named(features):
    with pytest.raises(WindowsError, match=r"lack the columns \['price'\]"):
        make_training_windows(features.drop("price"), BASE_ETH_USDC, CONFIG)
    with pytest.raises(WindowsError, match=r"price=nan in block \d+"):
        make_training_windows(features.with_columns(price=pl.lit(float("nan"))), BASE_ETH_USDC, CONFIG)
    with pytest.raises(WindowsError, match="order"):
        make_training_windows(features.reverse(), BASE_ETH_USDC, CONFIG)
