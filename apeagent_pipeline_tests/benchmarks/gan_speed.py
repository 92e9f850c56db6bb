"""CPU seconds of training and sampling, beside a plain implementation of the tutorial's GAN, in one run on one thread.

Run it with ``python -m apeagent_pipeline_tests.benchmarks.gan_speed``. The rows are those of the shared sample of real
swaps; where it is absent, simulated ones. Trained is at the source document's size (hidden 256, 4 layers, 8 heads,
batch 32, 5 critic steps for each generator step); sampled at the demo size in batches of 512.
"""

import copy
import os
import statistics
import time
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.chain.archive import SwapArchive
from apeagent_pipeline.defs.profiles import FULL
from apeagent_pipeline.gan.config import GanConfig
from apeagent_pipeline.gan.generator import Generator
from apeagent_pipeline.gan.rows import Rows
from apeagent_pipeline.gan.sampling import SamplingConfig, sample_windows
from apeagent_pipeline.gan.trained_gan import TrainedGan
from apeagent_pipeline.gan.training import Training, train_gan
from apeagent_pipeline.gan.training_rows import RealRows
from apeagent_pipeline.market.features import swap_features
from apeagent_pipeline.market.windows import TrainingWindows, WindowsConfig, make_training_windows
from apeagent_pipeline_tests.benchmarks.plain_wgan_gp import NOISE, PlainTraining
from apeagent_pipeline_tests.conftest import REAL_SWAPS
from apeagent_pipeline_tests.gan.conftest import simulate_features

SEED = 1
BATCH, CRITIC_STEPS = 32, 5
STEPS = 7
SAMPLED = 512
RUNS = 3
FASTER_STEP, WINDOWS_A_SECOND, FASTER_WITH_CACHE = 8.0, 500.0, 10.0

console = Console(width=120)


class WithoutCache(Generator):
    """The same generator, which reads condition and window from their start before every row."""

    def prefill(self, condition: Rows) -> Any:
        return [condition]

    def decode_step(self, before: Rows, cache: Any, step: int) -> Tensor:
        before = before.part(slice(-1, None))
        if step:
            cache.append(before)
        condition, *rows = cache
        # `trunk` does not read the last row of a window: here it holds the place of the row to come.
        return self.trunk(condition, reduce(Rows.then, [*rows, before]))[:, -1:]


def training_windows() -> TrainingWindows:
    """Of the shared sample or of a simulated market."""
    if REAL_SWAPS.exists():
        features = swap_features(SwapArchive(REAL_SWAPS, BASE_ETH_USDC).swaps, BASE_ETH_USDC)
    else:
        features = simulate_features(5_000)
    return make_training_windows(features, BASE_ETH_USDC, WindowsConfig())


def step_seconds(windows: TrainingWindows, config: GanConfig) -> tuple[float, float]:
    """CPU seconds of a likelihood step and of an adversarial step, medians without the first of each."""
    config = config.model_copy(update={"likelihood_steps": STEPS, "adversarial_steps": STEPS})
    run = Training(windows, config, SEED)
    medians = []
    for step in (run.likelihood_step, run.adversarial_step):
        times = []
        for _ in range(STEPS):
            times.append(seconds(step, 1))
            run.step += 1
        medians.append(statistics.median(times[1:]))
    return medians[0], medians[1]


def seconds(work: Callable[[], object], runs: int = RUNS) -> float:
    """Median CPU seconds."""
    times = []
    for _ in range(runs):
        begun = time.process_time()
        work()
        times.append(time.process_time() - begun)
    return statistics.median(times)


def train(windows: TrainingWindows, plain: PlainTraining) -> tuple[float, float]:
    """Print the table of training; returns how many times faster each of our steps is than the plain one."""
    config = FULL.trained_gan.model_copy(
        update={"batch": BATCH, "adversarial_batch": BATCH // 4, "critic_steps": CRITIC_STEPS}
    )
    plain.step()
    slow = seconds(plain.step)
    fast = step_seconds(windows, config)
    demo = step_seconds(windows, GanConfig())
    title = f"A training step: hidden {config.hidden}, {config.layers} layers, {config.heads} heads, batch {BATCH}"
    shown = Table("step", "CPU s", "times faster", "parameters, millions", title=title)
    sizes = [sum(p.numel() for p in each.parameters()) / 1e6 for each in (plain.generator, plain.critic)]
    shown.add_row(
        "plain WGAN-GP, 5 critic steps and 1 of the generator",
        f"{slow:.2f}",
        "",
        "generator {:.1f}, critic {:.1f}".format(*sizes),
    )
    names = "likelihood", f"adversarial, {CRITIC_STEPS} critic steps and 1 of the generator"
    for name, each in zip(names, fast, strict=True):
        shown.add_row(f"this package, {name}", f"{each:.3f}", f"{slow / each:.1f}", "")
    for name, each in zip(("likelihood", "adversarial"), demo, strict=True):
        shown.add_row(f"the same at the demo size, {name}", f"{each:.3f}", "", "")
    console.print(shown)
    return slow / fast[0], slow / fast[1]


def sample(windows: TrainingWindows, gan: TrainedGan, plain: PlainTraining) -> tuple[float, float]:
    """Print the table of sampling; returns windows a CPU second, and how many times that is of the uncached loop."""
    rng = np.random.default_rng(SEED)
    starts = windows.starts("train")
    condition = RealRows(windows, gan.bins).histories(rng.choice(starts, SAMPLED), rng, torch.device("cpu"))
    uncached = copy.deepcopy(gan.generator)
    uncached.__class__ = WithoutCache

    def rows(generator: Generator) -> Rows:
        return generator.sample(condition, torch.Generator().manual_seed(SEED)).rows

    context = plain.rows[torch.arange(plain.context)].expand(SAMPLED, -1, -1)
    plain.generator.eval()

    @torch.no_grad()
    def plain_windows() -> Tensor:
        return plain.generator(context, torch.randn(SAMPLED, NOISE))

    whole = SamplingConfig(n_windows=2 * SAMPLED, batch=SAMPLED)
    same = float((rows(gan.generator).bins == rows(uncached).bins).double().mean())
    rates = {
        "with the cache": SAMPLED / seconds(lambda: rows(gan.generator)),
        "without: the whole prefix for every row": SAMPLED / seconds(lambda: rows(uncached), 1),
        "`sample_windows`, with the exact pool arithmetic": 2
        * SAMPLED
        / seconds(lambda: sample_windows(gan, windows, BASE_ETH_USDC, whole, SEED)),
        "plain WGAN-GP, hidden 256, one pass for all rows": SAMPLED / seconds(plain_windows),
    }
    shown = Table("sampling", "windows a CPU second", title=f"Windows of {windows.length} swaps, batches of {SAMPLED}")
    for name, rate in rates.items():
        shown.add_row(name, f"{rate:,.0f}")
    shown.caption = f"{same:.2%} of the bins are the same with and without the cache"
    console.print(shown)
    cached, slow, *_ = rates.values()
    return cached, cached / slow


def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    windows = training_windows()
    rows = torch.from_numpy(windows.free_features()).float()
    rows = (rows - rows.mean(dim=0)) / rows.std(dim=0)
    starts = torch.from_numpy(windows.starts("train"))
    plain = PlainTraining(rows, starts, windows.context, windows.length, BATCH)
    faster = train(windows, plain)
    steps = {"likelihood_steps": 30, "adversarial_steps": 0, "control_steps": 0}
    brief = GanConfig().model_copy(update=steps)
    rate, gain = sample(windows, train_gan(windows, brief, SEED), plain)
    shown = Table("target", "asked for", "measured", "met")
    for target, least, measured in (
        ("likelihood step, times faster", FASTER_STEP, faster[0]),
        ("adversarial step, times faster", FASTER_STEP, faster[1]),
        ("sampled windows a CPU second, demo size", WINDOWS_A_SECOND, rate),
        ("times faster than without the cache", FASTER_WITH_CACHE, gain),
    ):
        shown.add_row(target, f"≥ {least:.0f}", f"{measured:,.1f}", "yes" if measured >= least else "MISSED")
    console.print(shown)
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    console.print(f"{os.cpu_count()} cores, one thread; load average at the end {load}")


if __name__ == "__main__":
    main()
