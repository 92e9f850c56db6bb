"""Whether synthetic swaps help a forecast of real ones: train on synthetic, test on real.

    python -m apeagent_pipeline_tests.benchmarks.gan_usefulness SWAPS [--train 2025-02-01,2025-02-02,2025-02-03]
        [--seeds 42] [--windows 5000] [--work FOLDER] [--record]

SWAPS is an archive of swaps. A GAN of the profile laptop learns the train days. Gradient boosting then forecasts, from
14 swaps, the volatility and the sign of the return of the next 10, after it was trained on real windows of the train
days, on the GAN's, or on both. It is judged on real windows of all later days. Its losses are resampled in blocks
of one hour for the intervals, because windows overlap and hours differ. ``--work`` keeps the checkpoint, so that a run
that was stopped goes on; ``--record`` writes the table to the recorded results. One CPU thread, about four minutes a
seed.
"""

import argparse
import tempfile
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from rich.console import Console
from rich.table import Table

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.chain.archive import SwapArchive
from apeagent_pipeline.defs.profiles import LAPTOP
from apeagent_pipeline.gan.quality.discriminators import window_summaries
from apeagent_pipeline.gan.quality.window_sets import real_set, synthetic_set
from apeagent_pipeline.gan.sampling import SamplingConfig, sample_windows
from apeagent_pipeline.gan.training import train_gan
from apeagent_pipeline.market.features import swap_features
from apeagent_pipeline.market.windows import SPLITS, TrainingWindows, WindowsConfig, make_training_windows
from apeagent_pipeline_tests.docs.results import record

AHEAD = 10
"""Swaps whose volatility and return are forecast."""

BLOCK_SECONDS = 3600
DRAWS = 2_000
COLUMNS = ["trained on", "windows", "volatility: error", "volatility: gain", "sign: log loss", "sign: gain"]
CONSTANT, REAL, SYNTHETIC, BOTH = "nothing (one value, of the real windows)", "real", "synthetic", "real + synthetic"
TASKS = ("volatility", "sign")


class Examples(NamedTuple):
    """What is forecast, and from what.

    Attributes:
        x: Summaries and last rows of the swaps before, [n, features].
        volatility: Logarithm of the root mean square of the next `AHEAD` log returns, in hundredths of a percent, [n].
        rises: Whether their sum is positive, [n].
    """

    x: np.ndarray
    volatility: np.ndarray
    rises: np.ndarray

    @classmethod
    def of(cls, windows: np.ndarray) -> "Examples":
        """One example from each window [n, T, 6] in the columns of `ROW_FEATURES`."""
        before, returns = windows[:, :-AHEAD], windows[:, -AHEAD:, -1]
        x = np.hstack([window_summaries(before), before[:, -3:].reshape(len(before), -1)])
        spread = np.sqrt(np.square(1e4 * returns).mean(axis=1))
        return cls(x, np.log(spread + 1e-3), returns.sum(axis=1) > 0)

    def then(self, other: "Examples") -> "Examples":
        """These examples and ``other``."""
        return Examples(*(np.concatenate(both) for both in zip(self, other, strict=True)))


def losses(train: Examples | None, real: Examples, test: Examples, seed: int) -> dict[str, np.ndarray]:
    """Loss of every test example [n]: of the volatility the absolute error of its log, of the sign the log loss.

    Args:
        train: What the forecasters learn from; None: nothing, they always say the median or mean of ``real``.
        real: The real examples.
        test: What is forecast.
        seed: Seed of the forecasters.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    if train is None:
        volatility = np.full(len(test.x), np.median(real.volatility))
        rises = np.full(len(test.x), real.rises.mean())
    else:
        size = {"max_iter": 60, "learning_rate": 0.05, "max_leaf_nodes": 8, "min_samples_leaf": 40}
        regressor = HistGradientBoostingRegressor(loss="absolute_error", random_state=seed, **size)
        classifier = HistGradientBoostingClassifier(random_state=seed, **size)
        volatility = regressor.fit(train.x, train.volatility).predict(test.x)
        rises = classifier.fit(train.x, train.rises).predict_proba(test.x)[:, 1]
    said = np.clip(np.where(test.rises, rises, 1 - rises), 1e-6, 1)
    return {"volatility": np.abs(volatility - test.volatility), "sign": -np.log(said)}


def block_interval(values: np.ndarray, blocks: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of ``values`` [n], with whole blocks [n] resampled."""
    _, block = np.unique(blocks, return_inverse=True)
    sums, counts = np.bincount(block, values), np.bincount(block)
    rng = np.random.default_rng([seed, 7])
    drawn = rng.integers(len(sums), size=(DRAWS, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def windows_of(features: pl.DataFrame, days: list[date]) -> TrainingWindows:
    """Windows of some days. Nearly all rows are of the train split: what is forecast are other days."""
    config = WindowsConfig(train_share=0.88, valid_share=0.08, days=60)
    return make_training_windows(
        features.filter(pl.col("block_timestamp").dt.date().is_in(days)), BASE_ETH_USDC, config
    )


def judged(
    windows: TrainingWindows, later: TrainingWindows, seed: int, n_windows: int, work: Path
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, int]]:
    """Losses on the later windows and number of train windows, by what the forecaster was trained on."""
    gan = train_gan(windows, LAPTOP.trained_gan, seed, checkpoint_dir=work / f"seed-{seed}")
    sampling = SamplingConfig(n_windows=n_windows, conditions=list(SPLITS))
    made = sample_windows(gan, windows, BASE_ETH_USDC, sampling, seed)
    synthetic = Examples.of(synthetic_set(made, windows, BASE_ETH_USDC).rows)
    real = Examples.of(real_set(windows, windows.starts(*SPLITS)).rows)
    test = Examples.of(real_set(later, later.starts(*SPLITS)).rows)
    sets = {CONSTANT: None, REAL: real, SYNTHETIC: synthetic, BOTH: real.then(synthetic)}
    sizes = {name: 0 if each is None else len(each.x) for name, each in sets.items()}
    return {name: losses(each, real, test, seed) for name, each in sets.items()}, sizes


def main() -> None:
    """Measure, print and perhaps record the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("swaps", type=Path)
    parser.add_argument("--train", default="2025-02-01,2025-02-02,2025-02-03")
    parser.add_argument("--seeds", default="42")
    parser.add_argument("--windows", type=int, default=5_000)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    features = swap_features(SwapArchive(arguments.swaps, BASE_ETH_USDC).swaps, BASE_ETH_USDC)
    days = [date.fromisoformat(day) for day in arguments.train.split(",")]
    after = sorted({day for day in features["block_timestamp"].dt.date().to_list() if day > max(days)})
    windows, later = windows_of(features, days), windows_of(features, after)
    first = later.starts(*SPLITS) + later.context + later.length - AHEAD
    blocks = later.table["block_timestamp"].dt.epoch("s").to_numpy()[first] // BLOCK_SECONDS
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        runs = [judged(windows, later, seed, arguments.windows, work) for seed in seeds]
    rows = []
    for name, size in runs[0][1].items():
        row: list[str | int] = [name, size]
        for task in TASKS:
            mean, real = (np.mean([found[of][task] for found, _ in runs], axis=0) for of in (name, REAL))
            low, high = block_interval(real - mean, blocks, seeds[0])
            gain = "" if name == REAL else f"{(real - mean).mean():+.4f} ({low:+.4f} to {high:+.4f})"
            row += [f"{mean.mean():.4f}", gain]
        rows.append(row)
    shown = Table(*COLUMNS)
    for row in rows:
        shown.add_row(*map(str, row))
    Console(width=140).print(shown)
    if arguments.record:
        told = ", ".join(map(str, seeds))
        notes = [
            f"Train days {', '.join(map(str, days))}, {windows.table.height:,} rows; later days "
            f"{', '.join(map(str, after))}, {len(blocks):,} overlapping windows in {len(np.unique(blocks))} blocks of "
            f"an hour, which are resampled for the 95 % intervals. Seed {told} of the GAN of the profile laptop; the "
            "intervals do not cover the spread between its seeds.",
            f"From 14 swaps the next {AHEAD} are forecast: the logarithm of the root mean square of their returns "
            "(absolute error), and whether the price rises (log loss). A gain is how much smaller the loss is than "
            "after training on the real windows alone.",
        ]
        command = "python -m apeagent_pipeline_tests.benchmarks.gan_usefulness SWAPS.csv --record"
        record("gan_usefulness", command, COLUMNS, rows, notes, "one thread of a busy core")


if __name__ == "__main__":
    main()
