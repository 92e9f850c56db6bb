import datetime as dt
import itertools
import json
import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.market import window_rows
from apeagent_pipeline.market.features import swap_features
from apeagent_pipeline.market.windows import (
    FREE_FEATURES,
    SCALER_FILE,
    SPLITS,
    TABLE_FILE,
    TrainingWindows,
    WindowsConfig,
    WindowsError,
    make_training_windows,
    write_training_windows,
)
from apeagent_pipeline_tests.market.whole_table import whole_table_windows

CONFIG = WindowsConfig(fewest_train_windows=50)


@pytest.fixture(scope="module")
def features(swaps):
    return swap_features(swaps(1_500), BASE_ETH_USDC)


@pytest.fixture(scope="module")
def windows(features):
    return make_training_windows(features, BASE_ETH_USDC, CONFIG)


def days_of(features: pl.DataFrame) -> list[pl.LazyFrame]:
    """Tables that follow each other as days do; some have fewer rows than a window."""
    cuts = [0, 400, 420, 421, 1_100, features.height]
    return [features[start:end].lazy() for start, end in itertools.pairwise(cuts)]


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


def test_windows_of_days_have_the_bytes_of_windows_of_one_table(features, tmp_path):
    config = WindowsConfig(days=9, fewest_train_windows=50)
    write_training_windows(days_of(features), BASE_ETH_USDC, config, tmp_path / "days")
    whole = whole_table_windows(features, BASE_ETH_USDC, config)
    whole.table.write_parquet(tmp_path / TABLE_FILE)
    assert (tmp_path / "days" / TABLE_FILE).read_bytes() == (tmp_path / TABLE_FILE).read_bytes()
    assert json.loads((tmp_path / "days" / SCALER_FILE).read_text()) == whole.scaler
    assert sorted(each.name for each in (tmp_path / "days").iterdir()) == [SCALER_FILE, TABLE_FILE]
    make_training_windows(features, BASE_ETH_USDC, config).save(tmp_path / "saved")
    for name in (TABLE_FILE, SCALER_FILE):
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "days" / name).read_bytes()


@pytest.mark.parametrize("seed", range(4))
def test_borders_of_parts_change_nothing(swaps, seed, tmp_path, monkeypatch):
    """Flags, segments and moves look at rows before and after, which may lie in another part."""
    monkeypatch.setattr(window_rows, "BATCH_ROWS", 251 + 60 * seed)
    rng, n = np.random.default_rng(seed), 1_500
    features = swap_features(swaps(n, seed=seed), BASE_ETH_USDC)
    thin, jump, dust = (pl.Series(rng.random(n) < 0.008) for _ in range(3))
    late = pl.int_range(pl.len()) >= int(rng.integers(n))
    broken = features.with_columns(
        liquidity=pl.when(thin).then(pl.lit("1000000000000")).otherwise("liquidity"),
        price=pl.when(jump).then(pl.col("price") * 1.5).otherwise("price"),
        amount0_eth=pl.when(dust).then(0.0).otherwise("amount0_eth"),
        block_timestamp=pl.when(late)
        .then(pl.col("block_timestamp") + dt.timedelta(hours=5))
        .otherwise("block_timestamp"),
    )
    config = WindowsConfig(fewest_train_windows=1, context=4, length=6, days=2 + 28 * (seed % 2))
    whole = whole_table_windows(broken, BASE_ETH_USDC, config)
    assert sum(whole.scaler["flagged"].values()) > 10
    made = make_training_windows(broken, BASE_ETH_USDC, config)
    assert_frame_equal(made.table, whole.table, check_exact=True)
    assert made.scaler == whole.scaler
    write_training_windows(days_of(broken), BASE_ETH_USDC, config, tmp_path)
    assert_frame_equal(TrainingWindows.load(tmp_path).table, whole.table, check_exact=True)


def test_failed_windows_leave_the_former_ones(features, tmp_path):
    write_training_windows(days_of(features), BASE_ETH_USDC, CONFIG, tmp_path)
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    with pytest.raises(WindowsError, match="Sync more days"):
        write_training_windows(days_of(features), BASE_ETH_USDC, WindowsConfig(fewest_train_windows=10**6), tmp_path)
    with pytest.raises(WindowsError, match="order"):
        write_training_windows(days_of(features)[::-1], BASE_ETH_USDC, CONFIG, tmp_path)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read where Linux keeps it")
def test_a_million_swaps_need_no_more_memory_than_their_days(features, tmp_path):
    """Made of one table they take about 900 MiB."""
    days, swaps = 40, 25_000
    many = pl.concat([features] * (swaps // features.height + 1)).head(swaps)
    seconds = 3 * pl.int_range(pl.len())
    for day in range(days):
        start = dt.datetime(2025, 1, 21, tzinfo=dt.UTC) + dt.timedelta(days=day)
        many.with_columns(
            block_number=25_000_000 + 43_200 * day + seconds // 2,
            seconds_since_previous=pl.lit(3),
            block_timestamp=(pl.lit(start) + pl.duration(seconds=seconds)).cast(pl.Datetime("us", "UTC")),
        ).write_parquet(tmp_path / f"{day:02}.parquet")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        height, peak = process.submit(_peak_of_windows, tmp_path).result()
    assert height > 0.99 * days * swaps
    assert peak < 500


def _peak_of_windows(folder: Path) -> tuple[int, float]:
    """Rows of the windows of all days, written and read again, and the peak memory of this process, MiB."""
    scanned = [pl.scan_parquet(path) for path in sorted(folder.glob("*.parquet"))]
    write_training_windows(scanned, BASE_ETH_USDC, WindowsConfig(days=60), folder / "windows")
    height = TrainingWindows.load(folder / "windows").table.height
    # Not getrusage: its peak is also that of the process that started this one.
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak
    return height, int(peak[1]) / 1024


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
