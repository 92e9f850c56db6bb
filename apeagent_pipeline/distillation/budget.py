"""What a teaching may cost, and what it has cost so far."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Protocol

from apeagent_pipeline.distillation.teachers.teacher import PromptRow, TeacherAnswer


class Limits(Protocol):
    """What a teaching may use at most, of one run and of one UTC day; 0: no limit."""

    @property
    def max_requests(self) -> int: ...  # noqa: D102

    @property
    def max_total_tokens(self) -> int: ...  # noqa: D102

    @property
    def max_cost_usd(self) -> float: ...  # noqa: D102

    @property
    def daily_requests(self) -> int: ...  # noqa: D102

    @property
    def daily_tokens(self) -> int: ...  # noqa: D102


def _reached(limits: Iterable[tuple[float, float]]) -> bool:
    return any(limit and spent >= limit for limit, spent in limits)


class Budget:
    """What one run asks and pays, and where it must stop. What is under way when a limit is reached comes on top."""

    def __init__(self, config: Limits, today: Iterable[TeacherAnswer]) -> None:
        self.config = config
        self.requests = 0
        self.today = Counter(requests=0, tokens=0)
        for answer in today:
            self.today.update(requests=1, tokens=(answer.prompt_tokens or 0) + (answer.completion_tokens or 0))
        self.known: dict[str, float] = {}
        self.unmeasured: str | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more may be asked."""
        limits = (
            (self.config.max_requests, self.requests),
            (self.config.max_total_tokens, self.known.get("tokens", 0)),
            (self.config.max_cost_usd, self.known.get("cost_usd", 0)),
        )
        return self.unmeasured is not None or self.day_is_over or _reached(limits)

    @property
    def day_is_over(self) -> bool:
        """Whether the budget of this UTC day is spent."""
        limits = (
            (self.config.daily_requests, self.today["requests"] + self.requests),
            (self.config.daily_tokens, self.today["tokens"] + self.known.get("tokens", 0)),
        )
        return _reached(limits)

    def allowed(self, rows: Iterator[PromptRow]) -> Iterator[PromptRow]:
        """The rows that may still be asked, each counted as a request when it is taken."""
        for row in rows:
            if self.over:
                return
            self.requests += 1
            yield row

    def add(self, answer: TeacherAnswer) -> None:
        """Count an answer, or a request that the server may have charged without one."""
        self.requests += answer.finish_reason == "lost"
        if answer.prompt_tokens is not None and answer.completion_tokens is not None:
            used = answer.prompt_tokens + answer.completion_tokens
            self.known["tokens"] = self.known.get("tokens", 0) + used
        elif self.config.max_total_tokens or self.config.daily_tokens:
            self.unmeasured = (
                "a budget of tokens cannot be enforced: the server does not report how many tokens it used"
            )
        if answer.cost_usd is not None:
            self.known["cost_usd"] = self.known.get("cost_usd", 0) + answer.cost_usd
        elif self.config.max_cost_usd and not answer.estimated:
            self.unmeasured = (
                "max_cost_usd cannot be enforced: the price of this model is unknown. Set APEAGENT_TEACHER_PRICES, or "
                "limit max_requests or max_total_tokens instead. Finished answers are kept"
            )
