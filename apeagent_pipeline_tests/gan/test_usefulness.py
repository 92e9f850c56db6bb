"""What the benchmarks of usefulness and scaling say must hold before anybody waits for their figures."""

import numpy as np
import pytest

from apeagent_pipeline.gan.quality.config import QualityConfig
from apeagent_pipeline_tests.benchmarks.gan_scaling import Cell, Rows, table_rows
from apeagent_pipeline_tests.benchmarks.gan_usefulness import AHEAD, Examples, block_interval, losses
from apeagent_pipeline_tests.gan.conftest import TINY


def windows_with_persistent_volatility(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, 24, 6))
    rows[..., -1] = rng.normal(size=(n, 24)) * 1e-4 * np.exp(rng.normal(size=(n, 1)))
    return rows


def test_nothing_of_what_is_forecast_is_among_what_the_forecast_sees():
    windows = windows_with_persistent_volatility(50, seed=0)
    later = windows.copy()
    later[:, -AHEAD:] *= 3
    one, other = Examples.of(windows), Examples.of(later)
    assert np.array_equal(one.x, other.x)
    assert np.allclose(other.volatility - one.volatility, np.log(3), atol=0.02)
    assert np.array_equal(one.rises, windows[:, -AHEAD:, -1].sum(axis=1) > 0)


def test_a_forecaster_trained_on_like_windows_gains_and_one_trained_on_noise_does_not():
    real, test = (Examples.of(windows_with_persistent_volatility(1_500, seed=seed)) for seed in (1, 2))
    noise = Examples(real.x, np.random.default_rng(3).permutation(real.volatility), real.rises)
    found = {
        name: losses(train, real, test, 0)["volatility"].mean()
        for name, train in {"constant": None, "real": real, "noise": noise, "both": real.then(real)}.items()
    }
    assert found["real"] < 0.6 * found["constant"]
    assert found["both"] < 0.6 * found["constant"]
    assert found["noise"] > 0.9 * found["constant"]


def test_the_interval_knows_that_windows_of_an_hour_are_alike():
    rng = np.random.default_rng(0)
    blocks = np.repeat(np.arange(20), 100)
    values = rng.normal(size=20)[blocks]
    low, high = block_interval(values, blocks, seed=0)
    assert low < values.mean() < high
    as_rows = block_interval(values, np.arange(len(values)), seed=0)
    assert high - low > 5 * (as_rows[1] - as_rows[0])
    assert block_interval(np.full(40, 0.5), np.arange(40) // 10, seed=0) == (0.5, 0.5)


@pytest.mark.slow
def test_a_finished_row_is_not_measured_again(windows, tmp_path):
    judges = QualityConfig(windows=60, deals=1, folds=2, gru_epochs=1)
    rows = Rows(tmp_path, "embedded", judges, samples=200, base=TINY)
    cell = Cell(days=2, steps=8, width=16, seed=42)
    assert rows.found(cell) is None
    result = rows.measure(cell, windows)
    assert rows.found(cell) == result == Rows(tmp_path, "embedded", judges).found(cell)
    (only,) = table_rows([cell, cell._replace(days=5)], rows)
    assert only[:4] == ["2", windows.table.height, 8 + TINY.adversarial_steps, 16]
