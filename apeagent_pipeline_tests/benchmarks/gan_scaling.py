"""How the quality of synthetic windows grows with data, steps and width.

    python -m apeagent_pipeline_tests.benchmarks.gan_scaling --work FOLDER [--days 5,10,30,60] [--steps 800,0]
        [--widths 64] [--seeds 42] [--swaps SWAPS] [--minutes N] [--record]

Each row of the table is a GAN: so many days of the embedded chain (or, with ``--swaps``, the last days of an archive),
so many steps of the warm start (0: as many as the default takes for these rows), and a width. The cheapest rows come
first. FOLDER keeps finished rows and the checkpoint of the one that was stopped, so that the same command goes on where
it was; ``--minutes`` begins no row later than that. ``--record`` writes the table, with what was not run, to the
recorded results. One CPU thread; 800 steps take about two minutes and a half, and the judges one.

``control`` is the generator that continues the warm start by likelihood alone for as long as the adversarial stage
takes; a GRU is a judge of another family than any part of the training.
"""

import argparse
import json
import time
from dataclasses import replace
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.atomic_files import write_atomically
from apeagent_pipeline.chain.archive import SwapArchive
from apeagent_pipeline.chain.source import open_swap_source
from apeagent_pipeline.gan.config import GanConfig
from apeagent_pipeline.gan.quality.config import QualityConfig
from apeagent_pipeline.gan.quality.report import comparisons, later_scores
from apeagent_pipeline.gan.quality.scores import SCORES as REPORT_SCORES
from apeagent_pipeline.gan.sampling import SamplingConfig, sample_windows
from apeagent_pipeline.gan.training import train_gan
from apeagent_pipeline.market.features import swap_features
from apeagent_pipeline.market.windows import TrainingWindows, WindowsConfig, make_training_windows
from apeagent_pipeline.settings import Settings
from apeagent_pipeline_tests.docs.results import record

SCORES = {
    "AUC, days trained on": "discriminative_auc",
    "of the control": "discriminative_auc_control",
    "AUC, later days": "discriminative_auc_holdout",
    "drift, AUC": "discriminative_auc_drift",
    "real against real, AUC": "discriminative_auc_floor",
    "a GRU beats a coin by": "discriminative_gru",
    "KS": "ks_mean",
    "ACF": "acf_error",
    "copied": "copied_runs",
}
"""Heading of a column -> metric of the quality report."""

_DEFAULT = GanConfig()

COLUMNS = ["days", "rows", "steps", "width", *SCORES, "training, CPU s"]


class Cell(NamedTuple):
    """A row of the table, of one seed. ``steps``: of the warm start; 0: as the default takes for the rows."""

    days: int
    steps: int
    width: int
    seed: int

    def config(self, base: GanConfig) -> GanConfig:
        """The configuration of its GAN; what is not said here is that of ``base``."""
        steps = {"likelihood_steps": self.steps, "most_likelihood_steps": self.steps} if self.steps else {}
        return base.model_copy(update={**steps, "hidden": self.width})

    @property
    def work(self) -> float:
        """What its training takes grows with this."""
        return (self.steps or _DEFAULT.likelihood_steps * max(self.days / 2, 1) ** (1 / 3)) * self.width**1.5

    @property
    def name(self) -> str:
        """A name for files."""
        return f"{self.days}-days-{self.steps or 'default'}-steps-{self.width}-wide-seed-{self.seed}"


class Rows:
    """Finished rows in a folder, one file each."""

    def __init__(
        self, folder: Path, source: str, judges: QualityConfig, *, samples: int = 3_000, base: GanConfig = _DEFAULT
    ) -> None:
        """Make the folder of a source.

        Args:
            folder: Of all rows.
            source: Where the swaps come from; a folder of its own.
            judges: How windows are judged.
            samples: Windows that are sampled for the judges, and half as many on later days.
            base: What the rows do not say of their configuration.
        """
        self._folder, self._judges, self._samples, self._base = folder / source, judges, samples, base
        self._folder.mkdir(parents=True, exist_ok=True)

    def found(self, cell: Cell) -> dict[str, Any] | None:
        """What was measured, if it was."""
        path = self._folder / f"{cell.name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def measure(self, cell: Cell, windows: TrainingWindows) -> dict[str, Any]:
        """Train and judge the GAN of a row, and keep the result. An interrupted training goes on."""
        spent_file = self._folder / f"{cell.name}.seconds"
        before = float(spent_file.read_text()) if spent_file.exists() else 0.0
        begun = time.process_time()

        def progress(done: int, total: int, **losses: float) -> None:
            spent_file.write_text(f"{before + time.process_time() - begun:.1f}")

        gan = train_gan(
            windows,
            cell.config(self._base),
            cell.seed,
            progress=progress,
            checkpoint_dir=self._folder / f"{cell.name}.checkpoint",
        )
        same_days = SamplingConfig(n_windows=self._samples)
        later_days = SamplingConfig(n_windows=self._samples // 2, conditions=["holdout"])
        made, later = (sample_windows(gan, windows, BASE_ETH_USDC, each, cell.seed) for each in (same_days, later_days))
        assert gan.control is not None
        control = sample_windows(replace(gan, generator=gan.control), windows, BASE_ETH_USDC, same_days, cell.seed)
        metrics = _judged({"": made, "_control": control}, later, windows, self._judges, cell.seed)
        result = {
            "swaps": windows.table.height,
            "steps": gan.config.generator_steps,
            "seconds": float(spent_file.read_text()),
            "metrics": {name: metrics[name] for name in SCORES.values()},
        }
        write_atomically(self._folder / f"{cell.name}.json", json.dumps(result, indent=2))
        return result


def _judged(
    tables: dict[str, pl.DataFrame], later: pl.DataFrame, windows: TrainingWindows, judges: QualityConfig, seed: int
) -> dict[str, float]:
    """The metrics of `SCORES`, as the quality report has them; the report's baselines are left out."""
    rng = np.random.default_rng([seed, 0])
    with threadpool_limits(1):
        compared = comparisons(tables, windows, BASE_ETH_USDC, judges, seed=seed, rng=rng, baselines={})
        metrics = {
            score.name + suffix: score.measure(each)
            for suffix, each in compared.items()
            for score in REPORT_SCORES
            if score.name + suffix in SCORES.values()
        }
        return metrics | later_scores(compared[""], later, windows, judges, rng)


def windows_of(days: int, swaps: Path | None) -> TrainingWindows:
    """Windows of the first days of the embedded chain, or of the last ones of an archive."""
    if swaps is None:
        source = open_swap_source(Settings())
        first = source.days()[0]
        raw = pl.concat([source.read_day(first + timedelta(days=i)) for i in range(days)])
    else:
        raw = SwapArchive(swaps, BASE_ETH_USDC).swaps
    return make_training_windows(swap_features(raw, BASE_ETH_USDC), BASE_ETH_USDC, WindowsConfig(days=days))


def table_rows(cells: list[Cell], rows: Rows) -> list[list[str | int]]:
    """Rows of the table: means of the seeds that are finished, with the smallest and the greatest if several are."""
    table: list[list[str | int]] = []
    for days, steps, width in dict.fromkeys(cell[:3] for cell in cells):
        found = [rows.found(cell) for cell in cells if cell[:3] == (days, steps, width)]
        done = [each for each in found if each is not None]
        if done:
            scores = [_in_words([each["metrics"][name] for each in done]) for name in SCORES.values()]
            seconds = f"{np.mean([each['seconds'] for each in done]):.0f}"
            table.append([str(days), done[0]["swaps"], done[0]["steps"], width, *scores, seconds])
    return table


def _in_words(values: list[float]) -> str:
    mean = f"{np.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    """Measure what is missing, print and perhaps record the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--days", default="5,10,30,60")
    parser.add_argument("--steps", default="800,0")
    parser.add_argument("--widths", default="64")
    parser.add_argument("--seeds", default="42")
    parser.add_argument("--swaps", type=Path)
    parser.add_argument("--deals", type=int, default=QualityConfig().deals, help="of blocks to the folds of the judges")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kinds = ((arguments.days, int), (arguments.steps, int), (arguments.widths, int), (arguments.seeds, int))
    chosen = product(*([kind(each) for each in listed.split(",")] for listed, kind in kinds))
    cells = sorted((Cell(*each) for each in chosen), key=lambda cell: (cell.work, cell.days))
    source = "embedded" if arguments.swaps is None else arguments.swaps.stem
    console, rows, begun = (
        Console(width=200),
        Rows(arguments.work, source, QualityConfig(deals=arguments.deals)),
        time.monotonic(),
    )
    for cell in cells:
        if rows.found(cell) is None and time.monotonic() - begun < 60 * arguments.minutes:
            result = rows.measure(cell, windows_of(cell.days, arguments.swaps))
            console.print(cell.name, f"{result['seconds']:.0f} s", result["metrics"])
    table = table_rows(cells, rows)
    shown = Table(*COLUMNS)
    for row in table:
        shown.add_row(*map(str, row))
    console.print(shown)
    missing = [cell.name.replace("-", " ") for cell in cells if rows.found(cell) is None]
    if arguments.record and table:
        name = "gan_scaling" if arguments.swaps is None else "gan_scaling_real"
        days = "The first days of the embedded chain" if arguments.swaps is None else "The last days of the archive"
        notes = [
            f"{days}; seeds {arguments.seeds}. The holdout (the last 15 % of the rows) is the later days: synthetic "
            "windows continue its histories, and drift is a classifier between real windows of the days before and it. "
            f"AUCs are means of {arguments.deals} deals of blocks to folds.",
            f"Not run: {'; '.join(missing) or 'nothing'}.",
        ]
        swaps = "" if arguments.swaps is None else " --swaps SWAPS.csv"
        options = ("days", "steps", "widths", "seeds", "deals")
        grid = " ".join(f"--{name} {getattr(arguments, name)}" for name in options)
        command = f"python -m apeagent_pipeline_tests.benchmarks.gan_scaling --work FOLDER{swaps} {grid} --record"
        record(name, command, COLUMNS, table, notes, "one thread of a busy core")


if __name__ == "__main__":
    main()
