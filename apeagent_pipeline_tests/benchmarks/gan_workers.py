"""Whether a GAN trained by two processes is as good as one trained by one, and how long both take.

    python -m apeagent_pipeline_tests.benchmarks.gan_workers [--seeds 42,43]

The days and the budget of ``apeagent demo``, judged by the quality report. Each process has one thread. On two
cores two processes cannot be faster than one process with two threads; they are for a machine with several GPUs.
"""

import argparse
import os
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from apeagent_pipeline.chain.days import days_between
from apeagent_pipeline.chain.source import open_swap_source
from apeagent_pipeline.gan.config import GanConfig
from apeagent_pipeline.gan.quality.config import QualityConfig
from apeagent_pipeline.gan.quality.report import quality_report
from apeagent_pipeline.gan.sampling import SamplingConfig, sample_windows
from apeagent_pipeline.gan.training import train_gan
from apeagent_pipeline.market.features import swap_features
from apeagent_pipeline.market.windows import TrainingWindows, WindowsConfig, make_training_windows
from apeagent_pipeline.settings import Settings
from apeagent_pipeline_tests.benchmarks.gan_quality import SCORES


def demo_windows() -> TrainingWindows:
    """The training windows of the embedded demo."""
    import polars as pl

    source = open_swap_source(Settings())
    days = [source.read_day(day, lambda done, total, **_: None) for day in days_between(*source.demo_days())]
    return make_training_windows(swap_features(pl.concat(days), source.pool), source.pool, WindowsConfig())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="42,43")
    seeds = [int(seed) for seed in parser.parse_args().seeds.split(",")]
    import torch

    torch.set_num_threads(1)
    windows, pool = demo_windows(), open_swap_source(Settings()).pool
    scores = [score for score in SCORES if not score.endswith(("_holdout", "held_out_auc"))]
    config = GanConfig().model_copy(update={"control_steps": 0})
    table = Table("processes (mean of the seeds, smallest and greatest)", "wall s", *scores)
    console = Console(width=220)
    for workers in (1, 2):
        rows = []
        for seed in seeds:
            begun = time.perf_counter()
            gan = train_gan(windows, config.model_copy(update={"workers": workers}), seed)
            wall = time.perf_counter() - begun
            made = sample_windows(gan, windows, pool, SamplingConfig(), seed)
            metrics = quality_report(made, windows, pool, QualityConfig(), seed).metrics
            rows.append([wall, *(metrics[score] for score in scores)])
            console.print(workers, seed, *(f"{value:.4f}" for value in rows[-1]), f"load {os.getloadavg()[0]:.1f}")
        low, middle, high = np.min(rows, axis=0), np.mean(rows, axis=0), np.max(rows, axis=0)
        table.add_row(str(workers), *(f"{m:.4f}\n({a:.4f} {b:.4f})" for a, m, b in zip(low, middle, high, strict=True)))
    console.print(table)


if __name__ == "__main__":
    main()
