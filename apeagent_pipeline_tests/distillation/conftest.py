"""Synthetic windows as the GAN will make them: plausible prices, volumes and conditions, from a seed."""

from collections.abc import Callable, Iterator

import numpy as np
import polars as pl
import pytest

from apeagent_pipeline_tests.distillation.scripted_server import Script, ScriptedServer
from apeagent_pipeline_tests.servers import stopped_afterwards

STEPS = 24


def make_windows(n_windows: int, seed: int = 0, swaps_per_hour: float = 80.0) -> pl.DataFrame:
    """A frame with the schema of ``synthetic_windows``: random walks of differing volatility and drift."""
    rng = np.random.default_rng(seed)
    n = n_windows * STEPS
    window = np.repeat(np.arange(n_windows), STEPS)
    scale = np.exp(rng.normal(np.log(10.0), 0.6, n_windows))[window]  # basis points a swap
    drift = rng.normal(0, 0.25, n_windows)[window]
    returns = (rng.standard_t(4, n) / np.sqrt(2) + drift) * scale * 1e-4
    log_price = (
        returns.reshape(n_windows, STEPS).cumsum(axis=1).ravel() + np.log(rng.uniform(2400, 3400, n_windows))[window]
    )
    price = np.exp(log_price)
    tick = np.floor((log_price - np.log(1e12)) / np.log(1.0001)).astype(np.int64)
    tick_change = np.rint(returns / np.log(1.0001)).astype(np.int64)
    usdc = np.exp(rng.normal(4.3, 1.8, n))
    buy = rng.uniform(size=n) < 0.5 + 0.3 * np.sign(returns)
    blocks = 25_428_824 + np.sort(rng.integers(0, 5 * 43_200, n_windows))[window]
    liquidity = 5.6e14
    volatility = np.sqrt((returns.reshape(n_windows, STEPS) ** 2).mean(axis=1))[window]
    return pl.DataFrame(
        {
            "window_id": window,
            "step": np.tile(np.arange(STEPS), n_windows),
            "condition_id": [f"{block:012d}-{index:06d}" for block, index in zip(blocks, window % 97, strict=True)],
            "seconds_since_previous": 2 * rng.geometric(swaps_per_hour / 1800, n),
            "tick": tick,
            "price": price,
            "amount0_eth": np.where(buy, usdc, -usdc) / price,
            "amount1_usdc": np.where(buy, -usdc, usdc),
            "volume_usdc": usdc,
            "volatility": volatility,
            "volume_ma": np.full(n, usdc.mean()),
            "tick_change": tick_change,
            "liquidity": [str(int(liquidity))] * n,
            "liquidity_usage": usdc * 1e6 / (liquidity * np.sqrt(price / 1e12)),
            "sqrt_price_x96": [str(int(root * 2**96)) for root in np.sqrt(price / 1e12)],
            "side": np.where(buy, "BUY", "SELL"),
        }
    )


@pytest.fixture(scope="session")
def windows() -> pl.DataFrame:
    """512 windows over five days, as the demo samples them."""
    return make_windows(512)


@pytest.fixture(scope="session")
def window_factory() -> Callable[..., pl.DataFrame]:
    """``make_windows`` itself."""
    return make_windows


@pytest.fixture
def serve() -> Iterator[Callable[[Script], ScriptedServer]]:
    """Starts scripted servers and stops them after the test."""
    yield from stopped_afterwards(ScriptedServer)
