"""Asking the teacher outside a run: what ``apeagent teach`` shows and asks, with the prompts and cache of the asset.

Whatever is asked here is not asked again when ``teacher_traces`` is made.
"""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from apeagent_pipeline.defs.assets.distillation import TeachingConfig, open_teacher, teaching_config
from apeagent_pipeline.defs.runtime import Runtime
from apeagent_pipeline.distillation.prompts import build_prompts
from apeagent_pipeline.distillation.teachers.teacher import Teacher
from apeagent_pipeline.distillation.teaching_estimate import TeachingEstimate, estimate
from apeagent_pipeline.distillation.traces import collect_traces, stored_traces
from apeagent_pipeline.reporting.progress import Progress, silent

BEFORE_TEACHING = {
    "raw_swaps",
    "swap_features",
    "training_windows",
    "trained_gan",
    "synthetic_windows",
    "synthetic_quality",
}
"""What must be up to date before a prompt is written: prompts of other windows would be paid for in vain."""


@dataclass(frozen=True)
class Teaching:
    """The prompts that ``teacher_traces`` would ask, and whom."""

    prompts: pl.DataFrame
    teacher: Teacher
    config: TeachingConfig
    cache: Path
    seed: int
    max_tokens: int
    price: tuple[float, float] | None

    def stored(self) -> pl.DataFrame:
        """What is known by now; see `stored_traces`."""
        return stored_traces(self.prompts, self.teacher, self.config, self.cache, self.seed)

    def ask(self, progress: Progress = silent) -> pl.DataFrame:
        """Ask what is not known; see `collect_traces`."""
        return collect_traces(self.prompts, self.teacher, self.config, self.cache, self.seed, progress)

    def estimate(self) -> TeachingEstimate:
        """What asking would cost; see `estimate`."""
        return estimate(self.stored(), self.config, self.max_tokens, self.price)


def open_teaching(runtime: Runtime, limit: int = 0) -> Teaching:
    """Build the prompts from the stored synthetic windows.

    Args:
        runtime: Settings and store.
        limit: The first so many prompts; 0: all.

    Raises:
        StorageError: There are no synthetic windows.
        ValueError: They do not suffice for the prompts.
        TeacherError: The teacher's settings are wrong.
    """
    settings = runtime.settings
    config = teaching_config(settings)
    prompts = build_prompts(runtime.store.scan("synthetic_windows").collect(), config, settings.seed)
    return Teaching(
        prompts.head(limit) if limit else prompts,
        open_teacher(settings),
        config,
        runtime.scratch("cache/teacher"),
        settings.seed,
        settings.teacher_max_tokens,
        settings.teacher_prices.get(settings.teacher_model),
    )
