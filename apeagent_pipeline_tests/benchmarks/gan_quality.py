"""What each part of the GAN adds: quality scores over seeds, beside a likelihood-only control of equal time.

    python -m apeagent_pipeline_tests.benchmarks.gan_quality SWAPS.csv [--seeds 42,43,44] [--ablations] [--times N]

SWAPS is an archive of swaps. For every seed the generator is warmed up once. From these weights go on: the adversarial
stage as configured; likelihood alone for as many CPU seconds; and, with ``--ablations``, the stage without each of its
parts in turn. The windows of all are judged by the quality report, and on blocks held out. One CPU thread; about six
minutes a seed, and four minutes more with ablations. ``--times`` makes both stages longer.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.chain.archive import SwapArchive
from apeagent_pipeline.gan.config import GanConfig
from apeagent_pipeline.gan.quality.config import QualityConfig
from apeagent_pipeline.gan.quality.report import quality_report
from apeagent_pipeline.gan.sampling import SamplingConfig, sample_windows
from apeagent_pipeline.gan.trained_gan import TrainedGan
from apeagent_pipeline.gan.training import Training
from apeagent_pipeline.gan.training_rows import RealRows
from apeagent_pipeline.gan.weight_selection import held_out_score
from apeagent_pipeline.market.features import swap_features
from apeagent_pipeline.market.windows import TrainingWindows, WindowsConfig, make_training_windows

SCORES = (
    "discriminative_gbm",
    "discriminative_auc",
    "discriminative_gru",
    "ks_mean",
    "acf_error",
    "xcorr_error",
    "mmd",
    "predictive_ratio",
    "copied_runs",
    "effective_price",
    "discriminative_gbm_holdout",
    "held_out_auc",
)
REFERENCES = ("_floor", "_block_bootstrap", "_gaussian_copula", "_drift")
ABLATIONS = {
    "no policy (positions alone)": {"policy": 0.0},
    "no likelihood anchor": {"anchor": 0.0},
    "no feature matching": {"feature_matching": 0.0},
    "no minibatch discrimination": {"minibatch_discrimination": False},
    "no diversity loss": {"diversity": 0.0},
    "no instance noise": {"instance_noise": 0.0},
    "no gradient penalty": {"gradient_penalty": 0.0},
}


def runs(windows: TrainingWindows, config: GanConfig, seed: int, ablations: bool) -> Iterator[tuple[str, TrainedGan]]:
    """Name and result of every way to go on from the warm start of a seed."""
    begun = time.process_time()
    warm = Training(windows, config, seed)
    warm_steps = warm.config.likelihood_steps
    while warm.step < warm_steps:
        warm.likelihood_step()
        warm.step += 1
    weights = warm.averaged.state_dict()
    yield f"warm start ({time.process_time() - begun:.0f} s)", warm_result(warm)

    def fresh(changes: dict[str, object]) -> Training:
        run = Training(windows, config.model_copy(update=changes), seed)
        for module in (run.generator, run.averaged, run.best, run.control, run.control_averaged):
            module.load_state_dict(weights)
        run.step = warm_steps
        return run

    ways = {"with the adversarial stage": {}} | (ABLATIONS if ablations else {})
    spent = 0.0
    for name, changes in ways.items():
        run, begun = fresh(changes), time.process_time()
        while run.step < run.config.generator_steps:
            run.adversarial_step()
            run.step += 1
        if not changes:
            spent = time.process_time() - begun
        yield (name if changes else f"{name} (+ {spent:.0f} s)"), warm_result(run)
        if not changes:
            control, begun = fresh({}), time.process_time()
            while time.process_time() - begun < spent:
                control.control_step()
                control.step += 1
            steps = control.step - warm_steps
            yield (
                f"likelihood alone as long ({steps} steps)",
                replace(warm_result(run), generator=control.control_averaged),
            )


def warm_result(run: Training) -> TrainedGan:
    """The averaged weights as they are, not those that selection would keep."""
    return TrainedGan(run.config, run.seed, run.bins, run.averaged, run.critic, {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("swaps", type=Path)
    parser.add_argument("--seeds", default="42,43,44")
    parser.add_argument("--ablations", action="store_true")
    parser.add_argument("--times", type=int, default=1, help="So many times the default's steps")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    features = swap_features(SwapArchive(arguments.swaps, BASE_ETH_USDC).swaps, BASE_ETH_USDC)
    windows = make_training_windows(features, BASE_ETH_USDC, WindowsConfig())
    console = Console(width=220)
    found: dict[str, list[list[float]]] = {}

    def judge(seed: int, name: str, gan: TrainedGan) -> None:
        made = sample_windows(gan, windows, BASE_ETH_USDC, SamplingConfig(), seed)
        later = sample_windows(
            gan, windows, BASE_ETH_USDC, SamplingConfig(n_windows=1_500, conditions=["holdout"]), seed
        )
        metrics = quality_report(made, windows, BASE_ETH_USDC, QualityConfig(), seed, later=later).metrics
        real, splits = RealRows(windows, gan.bins), (windows.starts("train"), windows.starts("valid"))
        held_out = held_out_score(gan.generator, gan.bins, real, splits, seed, max_windows=config.judged_windows)
        metrics["held_out_auc"] = float("nan") if held_out is None else held_out.auc
        key = name.split(" (", maxsplit=1)[0]
        found.setdefault(key, []).append([metrics[score] for score in SCORES])
        for reference in REFERENCES:
            names = [s.replace("_holdout", "_drift") if reference == "_drift" else s + reference for s in SCORES]
            row = [metrics.get(name, float("nan")) for name in names]
            found.setdefault(reference.strip("_").replace("_", " "), []).append(row)
        console.print(f"seed {seed}: {name}", *(f"{metrics[score]:.4f}" for score in SCORES))

    config = GanConfig()
    steps = ("likelihood_steps", "adversarial_steps")  # the control goes on for the CPU time of the latter
    config = config.model_copy(update={name: getattr(config, name) * arguments.times for name in steps})
    for seed in map(int, arguments.seeds.split(",")):
        for name, gan in runs(windows, config, seed, arguments.ablations):
            judge(seed, name, gan)
    table = Table("mean over seeds (smallest to greatest)", *(score.replace("_", " ") for score in SCORES))
    for name, rows in found.items():
        low, middle, high = np.min(rows, axis=0), np.mean(rows, axis=0), np.max(rows, axis=0)
        table.add_row(name, *(f"{m:.4f}\n({a:.4f} {b:.4f})" for a, m, b in zip(low, middle, high, strict=True)))
    console.print(table)


if __name__ == "__main__":
    main()
