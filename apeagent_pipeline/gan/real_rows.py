"""Real rows as the generator reads them."""

import numpy as np
import polars as pl
import torch

from apeagent_pipeline.gan.bins import RowBins
from apeagent_pipeline.gan.model import Rows
from apeagent_pipeline.market.windows import TrainingWindows


class RealRows:
    """The rows of training windows, ready to be cut into batches.

    Attributes:
        free: Irreducible features, [rows, 5].
        bins: Their bins, [rows, 5].
        market: Return since the row before, log price, log liquidity and log virtual token1 reserve, [rows, 4].
    """

    def __init__(self, windows: TrainingWindows, bins: RowBins) -> None:
        self.context, self.length = windows.context, windows.length
        self.free, self._bins = windows.free_features(), bins
        self.bins = bins.encode(self.free)
        price = pl.col("price").log()
        self.market = windows.table.select(
            price.diff().over("segment").fill_null(0.0).alias("return"),
            price,
            pl.col("liquidity").cast(pl.Float64).log(),
            (pl.col("volume_usdc") / pl.col("liquidity_usage")).log().alias("reserve"),
        ).to_numpy()

    def histories(self, starts: np.ndarray, rng: np.random.Generator, device: torch.device) -> Rows:
        """The condition rows [n, context] of the windows that start at ``starts``."""
        return self._rows(starts, self.context, rng, device)

    def windows(self, starts: np.ndarray, rng: np.random.Generator, device: torch.device) -> tuple[Rows, Rows]:
        """The condition rows [n, context] and what really followed them [n, length]."""
        rows = self._rows(starts, self.context + self.length, rng, device)
        return rows.part(slice(self.context)), rows.part(slice(self.context, None))

    def _rows(self, starts: np.ndarray, count: int, rng: np.random.Generator, device: torch.device) -> Rows:
        index = starts[:, None] + np.arange(count)
        bins = self.bins[index]
        positions = self._bins.positions(self.free[index], bins, rng)
        state = self.market[index]
        last = state[:, self.context - 1 : self.context]
        state[..., 1:3] -= last[..., 1:3]
        state[..., 3] = last[..., 3]
        parts = torch.from_numpy(bins), torch.from_numpy(positions).float(), torch.from_numpy(state).float()
        return Rows(*(part.to(device) for part in parts))

    def state_scale(self, train: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Centre and scale [4] of the state that rows of a mask ``train`` [rows] have in a window."""
        returns, reserve = self.market[train, 0], self.market[train, 3]
        step = max(float(returns.std()), 1e-9)
        change = max(float(self.free[train, 4].std()), 1e-9)
        scale = [step, step * np.sqrt(self.length), change, max(float(reserve.std()), 1e-9)]
        return torch.tensor([0.0, 0.0, 0.0, float(reserve.mean())]), torch.tensor(scale, dtype=torch.float32)
