"""Sampling: real histories in, synthetic windows out, by any generator of free features."""

from typing import Protocol

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.errors import ApeagentError
from apeagent_pipeline.gan.swap_execution import Origins, synthetic_windows
from apeagent_pipeline.market.windows import TrainingWindows
from apeagent_pipeline.reporting.progress import Progress, silent


class SamplingError(ApeagentError, ValueError):
    """Windows that cannot be continued; the message names the cause and the remedy."""


class SamplingConfig(BaseModel):
    """How many windows are sampled, and which histories they continue."""

    model_config = ConfigDict(frozen=True)

    n_windows: int = Field(3_000, description="Windows to sample", ge=1)
    conditions: list[str] = Field(
        ["train", "valid"], description="Splits whose histories are continued (train, valid, holdout)", min_length=1
    )
    batch: int = Field(512, description="Windows sampled in one batch", ge=1)


class WindowGenerator(Protocol):
    """What `sample_windows` needs of a generator; `trained_gan.TrainedGan` is one."""

    def sample(
        self, windows: TrainingWindows, starts: np.ndarray, seed: int, *, batch: int, progress: Progress
    ) -> tuple[np.ndarray, Origins]:
        """Generate one window after each history.

        Args:
            windows: Holds the histories.
            starts: Position [n] in ``windows.table`` of the first of the ``windows.context`` rows of each history.
            seed: Decides all randomness.
            batch: Number of windows to generate at once; a generator without batches may ignore it.
            progress: To be called with the number of generated windows.

        Returns:
            Free features of the generated rows, [n, windows.length, 5] in the order of `FREE_FEATURES`, and the origins
            of their sizes and liquidities (`Origins.none` if the generator does not know any).
        """
        ...


def sample_windows(
    generator: WindowGenerator,
    windows: TrainingWindows,
    pool: PoolSpec,
    config: SamplingConfig,
    seed: int,
    *,
    progress: Progress = silent,
) -> pl.DataFrame:
    """Continue real histories by generated swaps, executed by the pool.

    Histories are drawn from the chosen splits without replacement; if more windows are wanted than there are
    histories, another round begins.

    Args:
        generator: Generates the free features of the swaps.
        windows: Holds the histories.
        pool: The pool that executes the swaps.
        config: How many windows, and after which histories.
        seed: Decides the histories and all noise.
        progress: Called after every batch.

    Returns:
        A table with `SYNTHETIC_WINDOWS_SCHEMA`, ``window_id`` from 0 in time order of the histories.

    Raises:
        SamplingError: if the splits hold no history, or the generator does not fit the windows.
        WindowsError: if there is no split of that name.
    """
    starts = windows.starts(*config.conditions)
    if len(starts) == 0:
        raise SamplingError(f"the splits {config.conditions} hold no history; sync more days")
    rng = np.random.default_rng([seed, 0])
    rounds = -(-config.n_windows // len(starts))
    chosen = np.sort(np.concatenate([rng.permutation(starts) for _ in range(rounds)])[: config.n_windows])
    rows, origins = generator.sample(windows, chosen, seed, batch=config.batch, progress=progress)
    return synthetic_windows(windows, chosen + windows.context - 1, rows, pool, origins)
