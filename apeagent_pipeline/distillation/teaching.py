"""One teaching: the prompts of ``teacher_traces``, the teacher that is asked, and the cache that keeps the answers."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from apeagent_pipeline.distillation.cost_estimate import Price, TeachingEstimate, estimate
from apeagent_pipeline.distillation.teachers.batches import BatchTeacher
from apeagent_pipeline.distillation.teachers.openai_server import OpenAITeacher
from apeagent_pipeline.distillation.teachers.server_check import ServerCheck, check_server
from apeagent_pipeline.distillation.teachers.server_config import is_reasoning_model
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
        return collect_traces(self.prompts, self.teacher, self.config, self.cache, self.seed, progress=progress)

    def check(self) -> ServerCheck:
        """What the server tells about model, key, credit and price, before anything is paid."""
        server = self._server
        return check_server(server.base_url, server.model, server.api_key) if server else ServerCheck()

    def estimate(self, price: Price | None = None) -> TeachingEstimate:
        """What asking would cost; see `estimate`. ``price`` stands in where the settings hold none."""
        server = self._server
        concurrency = server.config.concurrency if server else 1
        thinks = server is None or is_reasoning_model(server.model)
        price = self.price or price
        return estimate(self.stored(), self.config, self.max_tokens, price, concurrency=concurrency, thinks=thinks)

    @property
    def _server(self) -> OpenAITeacher | None:
        teacher = self.teacher.server if isinstance(self.teacher, BatchTeacher) else self.teacher
        return teacher if isinstance(teacher, OpenAITeacher) else None
