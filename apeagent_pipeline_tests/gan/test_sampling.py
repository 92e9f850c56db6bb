import numpy as np
import polars as pl
import pytest

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.amm.swap_math import swap_step
from apeagent_pipeline.amm.ticks import tick_at_sqrt_price
from apeagent_pipeline.gan.quality.scores import domain_checks
from apeagent_pipeline.gan.sampling import SamplingConfig, SamplingError, sample_windows
from apeagent_pipeline.gan.swap_execution import (
    IN_TOKEN0,
    REPEATED,
    SYNTHETIC_WINDOWS_SCHEMA,
    Origins,
    synthetic_windows,
)
from apeagent_pipeline.market.features import swap_key
from apeagent_pipeline.market.windows import FREE_FEATURES, TrainingWindows

CONFIG = SamplingConfig(n_windows=60, batch=25)


@pytest.fixture(scope="module")
def synthetic(gan, windows):
    return sample_windows(gan, windows, BASE_ETH_USDC, CONFIG, seed=5)


def test_windows_have_their_columns_and_continue_a_real_history(synthetic, windows):
    assert synthetic.schema == pl.Schema(SYNTHETIC_WINDOWS_SCHEMA)
    assert synthetic["window_id"].to_list() == np.repeat(np.arange(60), 24).tolist()
    assert synthetic["step"].to_list() == list(range(24)) * 60
    assert synthetic.null_count().sum_horizontal().item() == 0
    assert synthetic["condition_id"].is_sorted()
    real = {f"{block:012d}-{log:06d}" for block, log in windows.table.select("block_number", "log_index").rows()}
    assert set(synthetic["condition_id"]) <= real


def test_every_row_is_a_swap_the_pool_would_make(synthetic, windows):
    """Replayed with integers alone: price, tick and both amounts are exact.

    Swaps that leave a range are replayed on the contract itself (`test_replay`).
    """
    stayed = 0
    for row in synthetic.sample(300, seed=0).iter_rows(named=True):
        root, liquidity = int(row["sqrt_price_x96"]), int(row["liquidity"])
        raw1 = round(row["amount1_usdc"] * 1e6)
        buys = row["side"] == "BUY"
        assert row["tick"] == tick_at_sqrt_price(root)
        assert np.sign(row["amount0_eth"]) == -np.sign(row["amount1_usdc"]) == (1 if buys else -1)
        # Undo the swap in integers, then make it again.
        reaching = -raw1 * (10**6 - 500) // 10**6 if buys else raw1
        before = root - (reaching << 96) // liquidity if buys else root - (-(raw1 << 96) // liquidity)
        if tick_at_sqrt_price(before) // 10 != row["tick"] // 10:
            continue
        stayed += 1
        step = swap_step(before, liquidity, raw1, not buys, 500)
        assert step.sqrt_price_x96 == root
        assert step.amount1 == raw1
        assert float(step.amount0) / 1e18 == row["amount0_eth"]
    assert stayed > 150


def test_round_sizes_and_unchanged_prices_are_exact(windows):
    """300 USDC stays 300 USDC, and a move of 0 leaves the price unchanged to the last digit."""
    rows = np.zeros((1, 24, 5))
    rows[..., FREE_FEATURES.index("log_size")] = np.log(300.0)
    rows[..., FREE_FEATURES.index("is_buy")] = np.arange(24) % 2
    end = windows.starts("train")[:1] + windows.context - 1
    table = synthetic_windows(windows, end, rows, BASE_ETH_USDC)
    assert (table["volume_usdc"] == 300.0).all()
    root = int(windows.table["sqrt_price_x96"][int(end[0])])
    liquidity = int(windows.table["liquidity"][int(end[0])])
    assert set(table["liquidity"]) == {str(liquidity)}
    for row in table.iter_rows(named=True):
        buys = row["side"] == "BUY"
        root = swap_step(root, liquidity, -300_000_000 if buys else 300_000_000, not buys, 500).sqrt_price_x96
        assert row["sqrt_price_x96"] == str(root)


def test_typed_amounts_are_exact_in_either_token(windows):
    """0.25 ETH stays 0.25 ETH if the swap was stated in ETH, and so do swaps that repeat its size."""
    typed = [0.01, 0.25, 1.5]
    table = windows.table.with_columns(
        stated_in_token0=pl.int_range(pl.len()) % 50 == 0,
        amount0_eth=pl.when(pl.int_range(pl.len()) % 50 == 0)
        .then(pl.Series([typed[k // 50 % 3] for k in range(windows.table.height)]))
        .otherwise("amount0_eth"),
    )
    stated = TrainingWindows(table, windows.scaler)
    rows = np.zeros((2, 24, 5))
    rows[..., FREE_FEATURES.index("log_size")] = np.log(700.0)
    rows[..., FREE_FEATURES.index("is_buy")] = [[1], [0]]
    origins = Origins.none(2, 24)
    origins.size[:, 0] = IN_TOKEN0
    origins.size[:, 2] = REPEATED + 1  # as two rows before
    made = synthetic_windows(stated, stated.starts("train")[:2] + windows.context - 1, rows, BASE_ETH_USDC, origins)
    first, second, third = (made.filter(step=k) for k in range(3))
    assert first["amount0_eth"].to_list() == third["amount0_eth"].to_list() == [0.25, -0.25]
    assert second["amount1_usdc"].to_list() == [-700.0, 700.0]


def test_a_size_that_is_not_repeated_is_another_than_the_last_ones(windows):
    """Of the typed amounts of token0 the nearest one that none of the last rows has."""
    typed = [0.01, 0.25, 1.5]
    table = windows.table.with_columns(
        stated_in_token0=pl.lit(True), amount0_eth=pl.Series([typed[k % 3] for k in range(windows.table.height)])
    )
    table = table.with_columns(stated_in_token0=pl.int_range(pl.len()) < 30)
    rows = np.zeros((1, 24, 5))
    rows[..., FREE_FEATURES.index("log_size")] = np.log(700.0)
    origins = Origins.none(1, 24)
    origins.size[:] = IN_TOKEN0
    stated = TrainingWindows(table, windows.scaler)
    made = synthetic_windows(stated, np.array([200]), rows, BASE_ETH_USDC, origins)["amount0_eth"].abs().to_list()
    assert made[0] == 0.25
    assert made[1] != 0.25


def test_a_restored_liquidity_is_that_of_the_earlier_row_and_what_was_added_since(windows):
    """To the last digit. Nothing is added by swaps that leave their range: they find another liquidity there."""
    rows = np.zeros((1, 24, 5))
    rows[..., FREE_FEATURES.index("log_size")] = np.log(50.0)
    rows[..., FREE_FEATURES.index("liquidity_change")] = 0.01
    rows[0, 2, FREE_FEATURES.index("move")] = 0.003  # three ranges
    origins = Origins.none(1, 24)
    origins.liquidity[0, 3], origins.liquidity[0, 5] = 2, 8
    end = windows.starts("train")[:1] + windows.context - 1
    made = synthetic_windows(windows, end, rows, BASE_ETH_USDC, origins)
    both = pl.concat([windows.table[: int(end[0]) + 1], made], how="diagonal_relaxed")
    ranges = (both["tick"] // BASE_ETH_USDC.tick_spacing).to_list()
    liquidity = [int(each) for each in both["liquidity"]]
    first = int(end[0]) + 1
    assert ranges[first + 2] != ranges[first + 1]
    for step, back in ((3, 2), (5, 8)):
        source, last = first + step - back, first + step - 1
        stayed = [i for i in range(source + 1, last + 1) if ranges[i] == ranges[i - 1]]
        assert liquidity[first + step] == liquidity[source] + sum(liquidity[i] - liquidity[i - 1] for i in stayed)
    assert liquidity[first + 3] == liquidity[first + 1]  # the row between left its range
    assert liquidity[first + 5] != liquidity[first - 3]  # the rows between changed liquidity where they were


def test_derived_columns_equal_those_of_swap_features(windows):
    """Real rows, reduced to their free features and executed again, give their own features."""
    start = windows.starts("train")[60:61]
    end = start + windows.context - 1
    index = int(end[0]) + 1 + np.arange(windows.length)
    table = synthetic_windows(windows, end, windows.free_features()[index][None], BASE_ETH_USDC)
    real = windows.table[index]
    for name in ("seconds_since_previous", "side"):
        assert table[name].to_list() == real[name].to_list(), name
    assert (table["tick"] - real["tick"]).abs().max() <= 1
    for name in ("price", "amount0_eth", "amount1_usdc", "volume_usdc", "volatility", "volume_ma", "liquidity_usage"):
        assert ((table[name] - real[name]).abs() <= 1e-6 * real[name].abs().max()).all(), name


def test_sizes_beyond_the_pool_are_cut_and_not_an_error(windows):
    rows = np.zeros((2, 24, 5))
    rows[..., FREE_FEATURES.index("log_size")] = np.log(1e12)
    rows[1, :, FREE_FEATURES.index("is_buy")] = 1
    table = synthetic_windows(windows, windows.starts("train")[:2], rows, BASE_ETH_USDC)
    assert (table["liquidity_usage"] < 1.01).all()


def test_the_seed_decides_the_windows(gan, windows, synthetic):
    assert sample_windows(gan, windows, BASE_ETH_USDC, CONFIG, seed=5).equals(synthetic)
    assert not sample_windows(gan, windows, BASE_ETH_USDC, CONFIG, seed=6).equals(synthetic)


def test_another_generator_fits_in(windows):
    class Replay:
        """Returns the real continuation of each history."""

        def sample(self, windows, starts, seed, *, batch, progress):
            index = starts[:, None] + windows.context + np.arange(windows.length)
            return windows.free_features()[index], Origins.none(*index.shape)

    replayed = sample_windows(Replay(), windows, BASE_ETH_USDC, CONFIG, seed=5)
    keys = windows.table.select(swap_key()).to_series()
    first = replayed.filter(step=0)
    real = windows.table[[keys.index_of(key) + 1 for key in first["condition_id"]]]
    assert first["side"].to_list() == real["side"].to_list()
    assert first["volume_usdc"].to_list() == pytest.approx(real["volume_usdc"].to_list(), rel=1e-6)


def test_histories_come_from_the_chosen_splits(gan, windows):
    holdout = sample_windows(gan, windows, BASE_ETH_USDC, SamplingConfig(n_windows=5, conditions=["holdout"]), seed=1)
    blocks = windows.table.filter(pl.col("split") == "holdout")["block_number"]
    assert holdout["condition_id"].str.head(12).cast(pl.Int64).is_in(blocks.to_list()).all()


def test_bad_input_is_named(gan, windows):
    with pytest.raises(ValueError, match="unknown splits"):
        sample_windows(gan, windows, BASE_ETH_USDC, SamplingConfig(conditions=["tomorrow"]), seed=1)
    other = TrainingWindows(windows.table, {**windows.scaler, "context": 10})
    with pytest.raises(ValueError, match=r"10 \+ 24 rows, the generator was trained for 20 \+ 24"):
        sample_windows(gan, other, BASE_ETH_USDC, CONFIG, seed=1)
    with pytest.raises(ValueError, match="finite"):
        synthetic_windows(windows, np.array([30]), np.full((1, 24, 5), np.nan), BASE_ETH_USDC)


@pytest.mark.parametrize(("scenario", "sign"), [("calm", -1), ("wild", 1), ("buying", 1), ("selling", -1)])
def test_a_scenario_arrives_and_the_rest_stays_that_of_such_windows(gan, windows, synthetic, scenario, sign):
    from scipy.stats import ks_2samp

    config = CONFIG.model_copy(update={"scenario": scenario})
    made = sample_windows(gan, windows, BASE_ETH_USDC, config, seed=5)
    assert made.schema == synthetic.schema
    assert made["window_id"].to_list() == np.repeat(np.arange(60), 24).tolist()
    assert made["condition_id"].is_sorted()
    assert set(domain_checks(made, BASE_ETH_USDC).values()) == {1.0}

    def of(table):
        """Flow and volatility of every window, written anew."""
        signed = pl.when(pl.col("side") == "BUY").then("volume_usdc").otherwise(-pl.col("volume_usdc"))
        each = table.group_by("window_id", maintain_order=True).agg(
            flow=signed.sum() / pl.col("volume_usdc").sum(),
            volatility=pl.col("price").log().diff().pow(2).mean().sqrt(),
        )
        return each["flow" if scenario in {"buying", "selling"} else "volatility"].to_numpy()

    kind = real_windows(windows)
    limit = np.quantile(of(kind), 0.75 if sign > 0 else 0.25)
    assert (sign * of(made) >= sign * limit).all()
    assert not (sign * of(synthetic) >= sign * limit).all(), "windows that were not asked for show it seldom"
    # What the scenario does not speak of is as in windows that were drawn without it.
    assert ks_2samp(made["seconds_since_previous"], synthetic["seconds_since_previous"]).statistic < 0.1


def real_windows(windows):
    starts = windows.starts("train", "valid")
    index = (starts + windows.context)[:, None] + np.arange(windows.length)
    return windows.table[index.ravel()].with_columns(window_id=np.repeat(np.arange(len(starts)), windows.length))


def test_a_scenario_that_never_comes_is_given_up(windows):
    class Still:
        """Buys one cent, again and again."""

        def sample(self, windows, starts, seed, *, batch, progress):
            rows = np.zeros((len(starts), windows.length, 5))
            rows[..., 1:3] = 1.0, np.log(0.01)
            return rows, Origins.none(*rows.shape[:2])

    config = SamplingConfig(n_windows=3, scenario="wild")
    with pytest.raises(SamplingError, match=r"only 0 of 120 windows .* show the scenario 'wild'"):
        sample_windows(Still(), windows, BASE_ETH_USDC, config, seed=5)
