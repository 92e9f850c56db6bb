"""Real rows as tensors for the generator."""

import math

import numpy as np
import polars as pl
import torch

from apeagent_pipeline.gan.bins import RowBins
from apeagent_pipeline.gan.rows import LIQUIDITY, PRICE, RANGE, RESERVE, RETURN, SIZE, STATE, Rows
from apeagent_pipeline.gan.swap_execution import IN_TOKEN0, IN_TOKEN1, REPEATED, REPEATS
from apeagent_pipeline.market.features import Q96
from apeagent_pipeline.market.windows import TrainingWindows

_SAME = 1e-12
"""Largest relative difference of two amounts that are equal but for rounding."""


class RealRows:
    """The rows of training windows, ready to be cut into batches.

    Attributes:
        free: Free features, [rows, 5].
        bins: Their bins, [rows, 5].
        origin: Origin of the size, as in `swap_execution.Origins.size`, [rows].
        market: The columns of `Rows.state`, with absolute price, liquidity and range, [rows, STATE].
    """

    def __init__(self, windows: TrainingWindows, bins: RowBins) -> None:
        self.context, self.length = windows.context, windows.length
        self.free, self._bins = windows.free_features(), bins
        self.bins = bins.encode(self.free)
        self.origin = _size_origins(windows.table, min(REPEATS, windows.context))
        price = pl.col("price").log()
        range_width = windows.scaler["tick_spacing"] * math.log(1.0001)
        columns = {
            RETURN: price.diff().over("segment").fill_null(0.0),
            PRICE: price,
            LIQUIDITY: pl.col("liquidity").cast(pl.Float64).log(),
            RESERVE: (pl.col("volume_usdc") / pl.col("liquidity_usage")).log(),
            RANGE: 2.0 * (pl.col("sqrt_price_x96").cast(pl.Float64) / Q96).log() / range_width,
            SIZE: pl.col("log_size"),
        }
        self.market = windows.table.select(columns[k].alias(str(k)) for k in range(STATE)).to_numpy()

    def histories(self, starts: np.ndarray, rng: np.random.Generator, device: torch.device) -> Rows:
        """The condition rows [n, context] of the windows at ``starts`` (see `TrainingWindows.starts`)."""
        return self._rows(starts, self.context, rng, device)

    def windows(self, starts: np.ndarray, rng: np.random.Generator, device: torch.device) -> tuple[Rows, Rows]:
        """The condition rows [n, context] and the real rows that followed them [n, length]."""
        rows = self._rows(starts, self.context + self.length, rng, device)
        return rows.part(slice(self.context)), rows.part(slice(self.context, None))

    def _rows(self, starts: np.ndarray, count: int, rng: np.random.Generator, device: torch.device) -> Rows:
        index = starts[:, None] + np.arange(count)
        bins = self.bins[index]
        positions = self._bins.positions(self.free[index], bins, rng)
        state = self.market[index]
        last = state[:, self.context - 1 : self.context].copy()
        state[..., [PRICE, LIQUIDITY]] -= last[..., [PRICE, LIQUIDITY]]
        state[..., RESERVE] = last[..., RESERVE]
        state[..., RANGE] -= np.floor(last[..., RANGE])
        origin = torch.from_numpy(self.origin[index])
        parts = torch.from_numpy(bins), torch.from_numpy(positions).float(), origin, torch.from_numpy(state).float()
        return Rows(*(part.to(device) for part in parts))

    def state_scale(self, train: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Centre and scale [STATE] of `Rows.state` in windows of the rows that the mask ``train`` [rows] selects."""
        spread = np.maximum(self.market[train].std(axis=0), 1e-9)
        centre, scale = np.zeros(STATE), np.ones(STATE)
        centre[[RESERVE, SIZE]] = self.market[train][:, [RESERVE, SIZE]].mean(axis=0)
        scale[[RETURN, RESERVE, SIZE]] = spread[[RETURN, RESERVE, SIZE]]
        scale[PRICE] = spread[RETURN] * np.sqrt(self.length)
        scale[LIQUIDITY] = max(float(self.free[train, 4].std()), 1e-9)
        return torch.from_numpy(centre).float(), torch.from_numpy(scale).float()


def _size_origins(table: pl.DataFrame, repeats: int) -> np.ndarray:
    """Origin of every size: the newest of the ``repeats`` rows before it with the same size, else the stated token."""
    in_token0 = table["stated_in_token0"].to_numpy()
    segment = table["segment"].to_numpy()
    stated = table.select(
        pl.when("stated_in_token0").then(pl.col("amount0_eth").abs()).otherwise(pl.col("volume_usdc"))
    ).to_series()
    amounts = stated.to_numpy()
    origin = np.where(in_token0, IN_TOKEN0, IN_TOKEN1)
    for age in range(repeats, 0, -1):
        now, before = slice(age, None), slice(None, -age)
        same = np.abs(amounts[now] - amounts[before]) <= _SAME * amounts[now]
        same &= (in_token0[now] == in_token0[before]) & (segment[now] == segment[before])
        origin[now][same] = REPEATED + age - 1
    return origin
