"""Sampling: real histories in, synthetic windows out."""

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.gan.swap_execution import SYNTHETIC_WINDOWS_SCHEMA, Origins, synthetic_windows
from apeagent_pipeline.market.windows import TrainingWindows
from apeagent_pipeline.reporting.progress import Progress, silent

if TYPE_CHECKING:
    from apeagent_pipeline.gan.training import TrainedGan

__all__ = ["SYNTHETIC_WINDOWS_SCHEMA", "SamplingConfig", "sample_windows"]


class SamplingConfig(BaseModel):
    """How many windows are sampled and what they continue."""

    model_config = ConfigDict(frozen=True)

    n_windows: int = Field(3_000, description="Windows to sample", ge=1)
    conditions: list[str] = Field(
        ["train", "valid"], description="Splits whose histories are continued (train, valid, holdout)", min_length=1
    )
    batch: int = Field(512, description="Windows sampled at once", ge=1)


def sample_windows(
    gan: "TrainedGan",
    windows: TrainingWindows,
    pool: PoolSpec,
    config: SamplingConfig,
    seed: int,
    *,
    progress: Progress = silent,
) -> pl.DataFrame:
    """Continue real histories by generated swaps.

    Histories are spread evenly over those of the chosen splits, in an order drawn from ``seed``: none is used twice
    before all have been used once.

    Args:
        gan: A trained generator.
        windows: Where the histories come from.
        pool: Fee and decimals.
        config: How many and from where.
        seed: Of the choice of histories and of all noise.
        progress: Called after every batch.

    Returns:
        A table with `SYNTHETIC_WINDOWS_SCHEMA`, ``window_id`` from 0 in time order of the histories.

    Raises:
        ValueError: if the windows have another shape than the generator was trained for, or no history is there.
    """
    # Here and not above: the configuration is also read where torch is not wanted.
    import torch

    from apeagent_pipeline.gan.training_rows import RealRows

    if (windows.context, windows.length) != (gan.generator.context, gan.generator.length):
        raise ValueError(
            f"the windows are {windows.context} + {windows.length} rows, the generator was trained for "
            f"{gan.generator.context} + {gan.generator.length}; materialize trained_gan again"
        )
    starts = windows.starts(*config.conditions)
    if len(starts) == 0:
        raise ValueError(f"there is no history in the splits {config.conditions}; sync more days")
    rng = np.random.default_rng([seed, 0])
    rounds = -(-config.n_windows // len(starts))
    chosen = np.sort(np.concatenate([rng.permutation(starts) for _ in range(rounds)])[: config.n_windows])
    real, device = RealRows(windows, gan.bins), next(gan.generator.parameters()).device
    generated = []
    for first in range(0, len(chosen), config.batch):
        rng = np.random.default_rng([seed, 1, first])
        condition = real.histories(chosen[first : first + config.batch], rng, device)
        chance = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        sampled = gan.generator.sample(condition, chance)
        generated.append([part.cpu().numpy() for part in (*sampled.rows[:3], sampled.liquidity_back)])
        progress(min(first + config.batch, len(chosen)), len(chosen))
    bins, positions, origin, back = (np.concatenate(parts) for parts in zip(*generated, strict=True))
    rows = gan.bins.decode(bins, positions.astype(np.float64))
    return synthetic_windows(windows, chosen + windows.context - 1, rows, pool, Origins(origin, back))
