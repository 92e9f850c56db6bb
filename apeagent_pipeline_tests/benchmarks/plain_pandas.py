"""Features and windows of swaps as one writes them with pandas in an afternoon: what ``market.py`` compares with."""

from typing import Any

import numpy as np
import pandas as pd

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.market.windows import WindowsConfig


def swap_features(raw: pd.DataFrame, pool: PoolSpec, previous: pd.DataFrame | None) -> pd.DataFrame:
    """The columns of `SWAP_FEATURES_SCHEMA`."""
    swaps = raw if previous is None else pd.concat([previous.tail(50), raw])
    root = swaps["sqrt_price_x96"].astype(float) / 2**96
    swaps["price"] = root**2 * 10 ** (pool.token0.decimals - pool.token1.decimals)
    swaps["amount0_eth"] = swaps["amount0"].astype(float) / 10**pool.token0.decimals
    swaps["amount1_usdc"] = swaps["amount1"].astype(float) / 10**pool.token1.decimals
    swaps["volume_usdc"] = swaps["amount1_usdc"].abs()
    swaps["seconds_since_previous"] = swaps["block_timestamp"].diff().dt.total_seconds()
    swaps["tick_change"] = swaps["tick"].diff()
    swaps["volatility"] = np.sqrt((np.log(swaps["price"]).diff() ** 2).rolling(24, min_periods=1).mean())
    swaps["volume_ma"] = swaps["volume_usdc"].rolling(50, min_periods=1).mean()
    reserve = swaps["liquidity"].astype(float) * root / 10**pool.token1.decimals
    swaps["liquidity_usage"] = (swaps["volume_usdc"] / reserve).where(reserve > 0)
    swaps["side"] = np.where(swaps["amount0_eth"] > 0, "BUY", "SELL")
    return swaps.tail(len(raw))


def training_windows(
    features: pd.DataFrame, pool: PoolSpec, config: WindowsConfig
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table of `make_training_windows` and the mean, deviation and quantiles of its free features."""
    table = features.reset_index(drop=True)
    liquidity = table["liquidity"].astype(float)
    thin = liquidity < config.thin_liquidity * liquidity.rolling(501, center=True, min_periods=1).median()
    dust = (table["amount0_eth"] == 0) | (table["amount1_usdc"] == 0)
    jump = np.log(table["price"]).diff().abs() > config.price_jump
    bad = thin | (liquidity <= 0) | dust | jump
    pause = table["block_timestamp"].diff().dt.total_seconds() > config.longest_pause
    table["segment"] = (pause | bad | bad.shift(fill_value=True)).cumsum()

    buys = table["side"] == "BUY"
    root = table["sqrt_price_x96"].astype(float) / 2**96
    reserve = liquidity * root / 10**pool.token1.decimals
    impact = np.where(buys, 1 - pool.static_fee / 1e6, -1.0) * table["volume_usdc"] / reserve
    log_root = np.log(root)
    segments = table["segment"]
    move = 2 * (log_root + np.log1p(-impact) - log_root.groupby(segments).shift())
    rounding = 2 * (3 / 10**pool.token1.decimals / reserve + 2**-51 * (2 + log_root.abs()))
    log_liquidity = np.log(liquidity)
    table["seconds"] = table["seconds_since_previous"].astype(float)
    table["is_buy"] = buys.astype(float)
    table["log_size"] = np.log(table["volume_usdc"])
    table["move"] = move.where(move.abs() > rounding, 0.0)
    table["liquidity_change"] = log_liquidity - log_liquidity.groupby(segments).shift()

    kept = table[~bad & (table.groupby("segment").cumcount() > 0)].reset_index(drop=True)
    train_end = int(config.train_share * len(kept))
    valid_end = int((config.train_share + config.valid_share) * len(kept))
    kept["split"] = "holdout"
    kept.loc[: valid_end + config.rows - 1, "split"] = "gap"
    kept.loc[: valid_end - 1, "split"] = "valid"
    kept.loc[: train_end + config.rows - 1, "split"] = "gap"
    kept.loc[: train_end - 1, "split"] = "train"
    last = config.rows - 1
    together = (kept["segment"] == kept["segment"].shift(-last)) & (kept["split"] == kept["split"].shift(-last))
    kept["window_start"] = together & (kept["split"] != "gap")
    kept["segment"] = kept["segment"].rank(method="dense").astype(int) - 1
    train = kept[kept["split"] == "train"]
    free = train[["seconds", "is_buy", "log_size", "move", "liquidity_change"]]
    return kept, {"mean": free.mean(), "std": free.std(ddof=0), "quantiles": free.quantile(np.linspace(0, 1, 101))}
