"""Windows of a small seeded market, and a GAN that was trained on them for a few steps."""

import numpy as np
import polars as pl
import pytest

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.gan.config import GanConfig
from apeagent_pipeline.gan.swap_execution import synthetic_windows
from apeagent_pipeline.gan.trained_gan import TrainedGan
from apeagent_pipeline.gan.training import train_gan
from apeagent_pipeline.market.features import SWAP_FEATURES_SCHEMA
from apeagent_pipeline.market.windows import TrainingWindows, WindowsConfig, make_training_windows

TINY = GanConfig(
    hidden=16,
    layers=2,
    heads=4,
    bins=[6, 2, 12, 8, 6],
    batch=16,
    likelihood_steps=6,
    adversarial_steps=3,
    adversarial_batch=4,
    samples=3,
    critic_steps=2,
    critic_channels=8,
    control_steps=2,
    judged_windows=100,
)


def free_rows(n: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of seconds, side, log size, move and liquidity change with frequent values like those of real rows."""
    half = rng.random((2, n)) < 0.5
    return np.column_stack(
        [
            rng.choice([0.0, 2.0, 8.0, 30.0, 120.0], n),
            (rng.random(n) < 0.5).astype(float),
            np.where(rng.random(n) < 0.2, np.log(300.0), np.log(0.01 + np.exp(rng.normal(4, 2, n)))),
            np.where(half[0], 0.0, rng.normal(0, 2e-4, n)),
            np.where(half[1], 0.0, rng.normal(0, 0.02, n)),
        ]
    )


def simulate_features(n: int, seed: int = 0) -> pl.DataFrame:
    """Features of ``n`` swaps that follow one another, executed by the pool."""
    start = pl.DataFrame(
        {
            "block_number": [25_000_000],
            "log_index": [0],
            "segment": [0],
            "price": [3_000.0],
            "tick": [-196_256],
            "volume_usdc": [100.0],
            "liquidity": ["50000000000000000"],
            "sqrt_price_x96": ["4339505179874779662909440"],
        }
    )
    rows = free_rows(n, np.random.default_rng(seed))
    made = synthetic_windows(
        TrainingWindows(start, {"context": 1, "length": n}), np.array([0]), rows[None], BASE_ETH_USDC
    )
    seconds = made["seconds_since_previous"].cum_sum()
    made = made.with_columns(
        block_number=25_000_000 + seconds // 2,
        block_timestamp=pl.lit("2025-01-21T00:00:00").str.to_datetime("%Y-%m-%dT%H:%M:%S", time_zone="UTC")
        + pl.duration(seconds=seconds),
    ).with_columns(log_index=pl.int_range(pl.len()).over("block_number"))
    return made.select(pl.col(name).cast(dtype) for name, dtype in SWAP_FEATURES_SCHEMA.items())


@pytest.fixture(scope="session")
def windows() -> TrainingWindows:
    config = WindowsConfig(train_share=0.6, valid_share=0.2)
    return make_training_windows(simulate_features(1_500), BASE_ETH_USDC, config)


@pytest.fixture(scope="session")
def tiny() -> GanConfig:
    return TINY


@pytest.fixture(scope="session")
def gan(windows: TrainingWindows) -> TrainedGan:
    return train_gan(windows, TINY, seed=1)
