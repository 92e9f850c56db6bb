import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.gan.quality.config import QualityConfig
from apeagent_pipeline.gan.quality.discriminators import named_summaries, window_summaries
from apeagent_pipeline.gan.quality.report import quality_report
from apeagent_pipeline.gan.quality.scores import (
    SCORES,
    Comparison,
    area_under_curve,
    domain_checks,
    feature_distances,
    quality_failures,
)
from apeagent_pipeline.gan.quality.telltales import telltales, telltales_figure, telltales_text
from apeagent_pipeline.gan.quality.window_sets import QualityError, WindowSet
from apeagent_pipeline.gan.sampling import SamplingConfig, sample_windows
from apeagent_pipeline.gan.swap_execution import synthetic_windows

CONFIG = QualityConfig(windows=80, gru_epochs=1, folds=2)
NAMES = [
    "discriminative_gbm", "discriminative_auc", "discriminative_gru", "predictive_ratio", "ks_mean",
    "acf_error", "xcorr_error", "mmd", "copied_runs", "price_matches_tick",
    "opposite_signs", "effective_price",
]  # fmt: skip


@pytest.fixture(scope="module")
def synthetic(gan, windows):
    return sample_windows(gan, windows, BASE_ETH_USDC, SamplingConfig(n_windows=250), seed=5)


@pytest.fixture(scope="module")
def report(synthetic, windows, gan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gan")
    gan.save(folder)
    later = sample_windows(gan, windows, BASE_ETH_USDC, SamplingConfig(n_windows=80, conditions=["holdout"]), seed=5)
    alone = replace(gan, generator=gan.control)
    control = sample_windows(alone, windows, BASE_ETH_USDC, SamplingConfig(n_windows=160), seed=5)
    return quality_report(
        synthetic, windows, BASE_ETH_USDC, CONFIG, seed=3,
        history=folder / "history.json", later=later, control=control,
    )  # fmt: skip


def test_the_report_has_every_score_its_floor_and_its_baseline(report):
    kinds = ("", "_floor", "_block_bootstrap", "_gaussian_copula", "_likelihood")
    assert "likelihood alone |" in report.markdown
    assert [score.name for score in SCORES] == NAMES, "metric names are an interface"
    assert {name + kind for name in NAMES for kind in kinds} <= report.metrics.keys()
    assert report.intervals.keys() == {"discriminative_auc" + kind for kind in kinds}
    assert {f"discriminative_{score}_{of}" for score in ("gbm", "auc") for of in ("holdout", "drift")} <= set(
        report.metrics
    )
    files = report.files({"run": "test"})
    assert {
        "report.json",
        "report.md",
        "distributions.png",
        "autocorrelations.png",
        "training.png",
        "paths.png",
        "telltales.png",
    } == set(files)
    assert all(f"]({name})" in report.markdown for name in files if name.endswith(".png"))
    json.loads(files["report.json"])


def test_synthetic_rows_obey_the_pool_in_every_row(report):
    for kind in ("", "_block_bootstrap", "_gaussian_copula", "_likelihood"):
        for name in ("price_matches_tick", "opposite_signs", "effective_price"):
            assert report.metrics[name + kind] == 1.0


def test_a_bootstrap_is_caught_by_its_copied_runs(report):
    assert report.metrics["copied_runs_block_bootstrap"] > 0.5
    assert report.metrics["copied_runs"] < 0.05


def test_a_gaussian_copula_keeps_every_distribution_and_copies_nothing(report):
    assert report.metrics["ks_mean_gaussian_copula"] < 2 * report.metrics["ks_mean_floor"] + 0.02
    assert report.metrics["copied_runs_gaussian_copula"] < 0.05


def test_the_seed_decides_the_report(report, synthetic, windows):
    again = quality_report(synthetic, windows, BASE_ETH_USDC, CONFIG, seed=3).metrics
    # The later windows and the control are drawn after all others, so that the other metrics do not depend on them.
    rest = {name for name in report.metrics if name.endswith(("_holdout", "_drift", "_likelihood"))}
    assert {name: value for name, value in again.items() if name not in rest} == {
        name: value for name, value in report.metrics.items() if name not in rest
    }


def test_bad_windows_score_badly_and_fail_the_check(windows):
    starts = windows.starts("train", "valid")
    rows = np.zeros((len(starts), 24, 5))
    rows[..., 1:3] = 1.0
    bad = synthetic_windows(windows, starts + windows.context - 1, rows, BASE_ETH_USDC)
    metrics = quality_report(bad, windows, BASE_ETH_USDC, CONFIG, seed=3).metrics
    assert metrics["discriminative_auc"] > 0.99
    assert metrics["ks_mean"] > 0.3
    assert any("discriminative_auc" in failure for failure in quality_failures(metrics, CONFIG))
    good = {**metrics, "discriminative_auc": 0.5, "ks_mean": 0.01, "copied_runs": 0.0}
    assert quality_failures(good, CONFIG) == []


def test_rows_that_break_the_pools_rules_are_counted(synthetic):
    broken = synthetic.with_columns(
        tick=pl.col("tick") + (pl.col("step") == 0).cast(pl.Int64),
        amount0_eth=pl.when(pl.col("step") < 12).then(-pl.col("amount0_eth")).otherwise(2 * pl.col("amount0_eth")),
    )
    checks = domain_checks(broken, BASE_ETH_USDC)
    assert checks["price_matches_tick"] == pytest.approx(23 / 24)
    assert checks["opposite_signs"] == pytest.approx(12 / 24)
    assert checks["effective_price"] == pytest.approx(12 / 24)


@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=40))
def test_the_area_under_the_curve_is_that_of_sklearn_with_ties_too(rows):
    truth, scores = np.array(rows).T
    assume(0 < truth.sum() < len(truth))
    assert area_under_curve(truth, scores) == pytest.approx(roc_auc_score(truth, scores))


def test_a_feature_that_is_the_same_has_no_distance():
    rows = np.random.default_rng(0).normal(size=(500, 6))
    distances = feature_distances(rows, np.column_stack([rows[:, :5], rows[:, 5] + 3]))
    assert all(distances[name] == (0.0, 0.0) for name in list(distances)[:5])
    assert distances["return"][0] > 0.8


def test_what_tells_the_windows_apart_is_named_with_both_means():
    """A planted difference comes first; between windows of one kind nothing is certain enough to be named much."""
    rng = np.random.default_rng(0)

    def compared(other):
        sets = [WindowSet(rows, np.arange(240), np.zeros((240, 24))) for rows in (rng.normal(size=(240, 24, 6)), other)]
        deals = [np.arange(3) % 2]
        return Comparison(*sets, tuple(sets), deals, pl.DataFrame(), (sets[0].keys,) * 2, BASE_ETH_USDC, CONFIG, 3)

    rows = rng.normal(size=(240, 24, 6))
    rows[:, 1::2, 4] = rows[:, 0::2, 4]  # every second liquidity change is the one before once more
    found = telltales(compared(rows))
    assert found[0].name == "liquidity change times that of the row before"
    assert found[0].synthetic == pytest.approx(0.5, abs=0.1)
    assert found[0].real == pytest.approx(0.0, abs=0.1)
    text = telltales_text(found, auc_low=0.9)
    assert "by liquidity change times that of the row before more than by anything else" in text
    assert telltales_figure(found).startswith(b"\x89PNG")
    alike = telltales(compared(rng.normal(size=(240, 24, 6))))
    assert max((one.importance for one in alike), default=0.0) < found[0].importance / 5
    assert telltales_text(alike, auc_low=0.45).startswith("The classifier does not tell the windows apart")


def test_summaries_have_a_name_each(windows):
    rows = np.random.default_rng(0).normal(size=(7, 24, 6))
    named = named_summaries(rows)
    assert window_summaries(rows).shape == (7, len(named))
    assert named["share of rows with move 0"].max() == 0
    rows[:, 1::2, 4] = -rows[:, 0::2, 4]
    assert (named_summaries(rows)["liquidity change times that of the row before"] < 0).mean() > 0.5


def test_bad_input_is_named(synthetic, windows):
    def judged(table):
        return quality_report(table, windows, BASE_ETH_USDC, CONFIG, seed=3)

    with pytest.raises(QualityError, match=r"lack the columns \['price'\]"):
        judged(synthetic.drop("price"))
    with pytest.raises(QualityError, match="no synthetic windows"):
        judged(synthetic.clear())
    with pytest.raises(QualityError, match=r"columns \['price'\]"):
        judged(synthetic.with_columns(price=pl.lit(float("nan"))))
    with pytest.raises(QualityError, match="histories that training_windows does not hold"):
        judged(synthetic.with_columns(condition_id=pl.lit("000000000001-000000")))
    with pytest.raises(QualityError, match="Sync more days or sample more windows"):
        judged(synthetic.filter(pl.col("window_id") < 10))
