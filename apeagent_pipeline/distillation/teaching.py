"""One teaching: the prompts of ``teacher_traces``, the teacher that is asked, and the cache that keeps the answers."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from apeagent_pipeline.distillation.cost_estimate import Price, TeachingEstimate, estimate
from apeagent_pipeline.distillation.teachers.openai_server import OpenAITeacher, is_reasoning_model
from apeagent_pipeline.distillation.teachers.server_check import ServerCheck, check_server
from apeagent_pipeline.distillation.teachers.teacher import Teacher
from apeagent_pipeline.distillation.traces import TracesConfig, collect_traces, stored_traces
from apeagent_pipeline.reporting.progress import Progress, silent


@dataclass(frozen=True)
class Teaching:
    """The prompts that ``teacher_traces`` would ask, and whom."""

    prompts: pl.DataFrame
    teacher: Teacher
    config: TracesConfig
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

    def check(self) -> ServerCheck:
        """What the server tells about model, key, credit and price, before anything is paid."""
        if not isinstance(self.teacher, OpenAITeacher):
            return ServerCheck()
        return check_server(self.teacher.base_url, self.teacher.model, self.teacher.api_key)

    def estimate(self, price: Price | None = None) -> TeachingEstimate:
        """What asking would cost; see `estimate`. ``price`` stands in where the settings hold none."""
        concurrency, thinks = 1, True
        if isinstance(self.teacher, OpenAITeacher):
            concurrency, thinks = self.teacher.config.concurrency, is_reasoning_model(self.teacher.model)
        price = self.price or price
        return estimate(self.stored(), self.config, self.max_tokens, price, concurrency, thinks)
