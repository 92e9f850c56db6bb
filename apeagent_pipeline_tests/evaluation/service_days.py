"""Days of ``swap_features`` for the tests of the daily score, with a market that can be chosen."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.amm.price import sqrt_price_x96_from_price


def day_of_swaps(
    seed: int, n: int = 400, volatility: float = 5e-4, size: float = 200.0, day: str = "2025-02-01"
) -> pl.DataFrame:
    """A day of ``swap_features`` around 2,500 USDC."""
    rng, midnight = np.random.default_rng(seed), datetime.fromisoformat(f"{day}T00:00:00+00:00")
    prices = 2500 * np.exp(np.cumsum(rng.normal(0, volatility, n)))
    sizes = rng.lognormal(np.log(size), 1, n)
    return pl.DataFrame(
        {
            "block_number": np.arange(n) + 25_000_000,
            "log_index": np.zeros(n, dtype=int),
            "block_timestamp": [midnight + timedelta(seconds=30 * i) for i in range(n)],
            "seconds_since_previous": rng.integers(2, 60, n),
            "price": prices,
            "volume_usdc": sizes,
            "volume_ma": np.full(n, size),
            "tick_change": rng.normal(0, volatility * 1e4, n).astype(int),
            "volatility": np.abs(rng.normal(volatility, volatility / 5, n)),
            "liquidity": ["100000000000000000"] * n,
            "liquidity_usage": sizes / 1e7,
            "sqrt_price_x96": [str(sqrt_price_x96_from_price(float(p), BASE_ETH_USDC)) for p in prices],
            "side": rng.choice(["BUY", "SELL"], n),
        }
    )
