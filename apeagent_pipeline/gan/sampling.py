"""Sampling: real histories in, synthetic windows out, by any generator of free features."""

from typing import Protocol

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.errors import ApeagentError
from apeagent_pipeline.gan.scenarios import Scenario, ScenarioLimit
from apeagent_pipeline.gan.swap_execution import Origins, synthetic_windows
from apeagent_pipeline.market.windows import TrainingWindows
from apeagent_pipeline.reporting.progress import Progress, silent

_MOST_DRAWN = 40
"""A scenario that fewer than one in so many windows show is given up."""


class SamplingError(ApeagentError, ValueError):
    """Windows that cannot be continued; the message names the cause and the remedy."""


class SamplingConfig(BaseModel):
    """How many windows are sampled, and which histories they continue."""

    model_config = ConfigDict(frozen=True)

    n_windows: int = Field(3_000, description="Windows to sample", ge=1)
    conditions: list[str] = Field(
        ["train", "valid"], description="Splits whose histories are continued (train, valid, holdout)", min_length=1
    )
    scenario: Scenario = Field(
        "any",
        description="Keep only windows of a kind of market: calm or wild (the least or most volatile quarter of the "
        "real windows), buying or selling (the quarter with most bought or sold); any: all",
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
        SamplingError: if the splits hold no history, the generator does not fit the windows, or hardly any window
            shows the scenario.
        WindowsError: if there is no split of that name.
    """
    starts = windows.starts(*config.conditions)
    if len(starts) == 0:
        raise SamplingError(f"the splits {config.conditions} hold no history; sync more days")
    if config.scenario != "any":
        return _of_scenario(generator, windows, pool, config, seed, progress=progress)
    chosen = _histories(starts, config.n_windows, np.random.default_rng([seed, 0]))
    rows, origins = generator.sample(windows, chosen, seed, batch=config.batch, progress=progress)
    return synthetic_windows(windows, chosen + windows.context - 1, rows, pool, origins)


def _histories(starts: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """``n`` of the histories in time order; each is drawn as often as any other, or once more."""
    rounds = -(-n // len(starts))
    return np.sort(np.concatenate([rng.permutation(starts) for _ in range(rounds)])[:n])


def _of_scenario(
    generator: WindowGenerator,
    windows: TrainingWindows,
    pool: PoolSpec,
    config: SamplingConfig,
    seed: int,
    *,
    progress: Progress,
) -> pl.DataFrame:
    """Draw windows until enough show the scenario; see `scenarios`."""
    starts = windows.starts(*config.conditions)
    limit = ScenarioLimit.of(config.scenario, windows, starts)
    wanted, length, rng = config.n_windows, windows.length, np.random.default_rng([seed, 2])
    kept: list[pl.DataFrame] = []
    drawn = shown = 0
    while shown < wanted:
        if drawn >= _MOST_DRAWN * wanted:
            raise SamplingError(
                f"only {shown} of {drawn} windows after the histories of {config.conditions} show the scenario "
                f"{config.scenario!r} ({limit.measure} beyond {limit.limit:.4g}); "
                "ask for another scenario or other histories"
            )
        # As many as are still missing, by the share that showed it so far; a quarter of real windows does.
        share = (shown + 1) / (drawn + 4)
        chosen = _histories(starts, min(int((wanted - shown) / share) + 1, _MOST_DRAWN * wanted - drawn), rng)
        rows, origins = generator.sample(
            windows, chosen, int(rng.integers(1 << 31)), batch=config.batch, progress=silent
        )
        table = synthetic_windows(windows, chosen + windows.context - 1, rows, pool, origins)
        shows = limit.shown_by(table, length)
        kept.append(table.filter(np.repeat(shows, length)).with_columns(pl.col("window_id") + drawn))
        drawn, shown = drawn + len(chosen), shown + int(shows.sum())
        progress(min(shown, wanted), wanted)
    found = pl.concat(kept)
    # Some of them at random: the first ones would be of the first days.
    ids = rng.permutation(found["window_id"].unique(maintain_order=True).to_numpy())[:wanted]
    found = found.filter(pl.col("window_id").is_in(ids.tolist())).sort("condition_id", "window_id", "step")
    return found.with_columns(window_id=np.repeat(np.arange(wanted), length))
