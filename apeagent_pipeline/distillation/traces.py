"""Teacher traces: every answer verified, paid for once, and kept with its cost.

A table of traces says what the cache of answers holds for a set of prompts, judged by a configuration. It is the same
whatever order the answers came in, however often the run was killed, and it can be looked at before all were asked.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import polars as pl
from pydantic import Field, model_validator

from apeagent_pipeline.distillation.action_line import AnswerError
from apeagent_pipeline.distillation.answer_cache import AnswerCache, open_cache
from apeagent_pipeline.distillation.answer_text import spoken_text
from apeagent_pipeline.distillation.budget import Budget
from apeagent_pipeline.distillation.chain_of_draft import DraftAnswer, parse_answer
from apeagent_pipeline.distillation.prompts import PROMPTS_SCHEMA
from apeagent_pipeline.distillation.teachers.teacher import PromptRow, Teacher, TeacherAnswer, TeacherError
from apeagent_pipeline.distillation.verification import VerificationConfig, verify
from apeagent_pipeline.reporting.progress import Progress, silent

_ANSWER_SCHEMA: dict[str, type[pl.DataType] | pl.DataType] = {
    "teacher": pl.String,
    "answer": pl.String,
    "drafts": pl.List(pl.String),
    "side": pl.String,
    "amount": pl.Float64,
    "asset": pl.String,
    "rejected_reason": pl.String,
    "rejected_detail": pl.String,
    "attempts": pl.Int64,
    "refusals": pl.List(pl.String),
    "finish_reason": pl.String,
    "prompt_tokens": pl.Int64,
    "completion_tokens": pl.Int64,
    "cost_usd": pl.Float64,
    "answered_by": pl.String,
    "lost_requests": pl.Int64,
    "estimated": pl.Boolean,
}
TRACES_SCHEMA: dict[str, type[pl.DataType] | pl.DataType] = {**PROMPTS_SCHEMA, **_ANSWER_SCHEMA}
"""Columns of ``collect_traces``.

``rejected_reason`` is null where an answer was accepted; then ``drafts``, ``side`` and (except for HOLD) ``amount`` and
``asset`` are filled. ``answer`` is the accepted or else the last answer without its thinking, ``attempts`` counts the
answers that came, ``refusals`` has the reason of each that was refused, ``lost_requests`` counts requests that the
server may have charged although no answer came. Tokens and cost are sums over all of these, null if one of them is
unknown; ``estimated`` says whether one is an estimate. ``answered_by`` is the model and its provider, as the server
names them.
"""

_ATTEMPT_STEP = 7919  # seeds of attempts lie far from the neighbouring run seeds
_ROWS_AT_ONCE = 4096
_MOST_LOST = 2
"""A prompt is given up after so many requests that the server may have charged without an answer."""

COLUMN_DESCRIPTIONS = {
    "teacher": "Who answered",
    "drafts": "Drafts of the accepted answer, one a line",
    "amount": "Size of the trade, of the token in asset; null for HOLD",
    "asset": "ETH or USDC; null for HOLD",
    "rejected_detail": "Details of the reason for the refusal",
    "finish_reason": "Why the last answer ended, as the server said",
    "prompt_tokens": "Tokens read for all attempts; null if unknown",
    "completion_tokens": "Tokens written for all attempts; null if unknown",
    "answer": "The teacher's answer",
    "rejected_reason": "Why the answer is not used for training; null if it is used",
    "attempts": "Number of answers to this prompt",
    "answered_by": "Model and provider of the chosen answer, as the server names them",
    "lost_requests": "Requests that the server may have charged although no answer came",
    "estimated": "Whether tokens or cost of an answer were estimated, because the server did not tell them",
    "refusals": "Reason for each refused answer, in the order of asking",
    "cost_usd": "US dollars for all attempts; null if unknown",
}
"""What each column that this module adds means, with its unit; shown in the UI as the column schema."""
REFUSED_IN_A_ROW = 36
"""The circuit breaker: after so many refused answers in a row the model cannot follow the form."""


class TracesConfig(VerificationConfig):
    """What is demanded of an answer, and how often and how long a teacher is asked."""

    attempts: int = Field(2, description="Most attempts to get an accepted answer to a prompt", ge=1)
    samples: int = Field(
        1, description="Self-consistency: verified answers to a prompt; more than half must agree on the action", ge=1
    )
    max_requests: int = Field(0, description="Most requests of one run, without cached answers; 0: no limit", ge=0)
    max_total_tokens: int = Field(0, description="Tokens after which a run stops asking; 0: no limit", ge=0)
    max_cost_usd: float = Field(0.0, description="Cost in US dollars after which a run stops asking; 0: no limit", ge=0)
    daily_requests: int = Field(0, description="Most answered requests of all runs on one UTC day; 0: no limit", ge=0)
    daily_tokens: int = Field(0, description="Most tokens of all runs on one UTC day; 0: no limit", ge=0)

    @model_validator(mode="after")
    def _enough_attempts_to_agree(self) -> Self:
        if self.attempts < self.samples:
            raise ValueError(f"{self.samples} samples cannot come from {self.attempts} attempts; raise attempts")
        return self


def collect_traces(
    prompts: pl.DataFrame,
    teacher: Teacher,
    config: TracesConfig,
    cache_dir: Path,
    seed: int,
    *,
    progress: Progress = silent,
) -> pl.DataFrame:
    """Ask a teacher every prompt, verify every answer, keep what was refused with its reason.

    Args:
        prompts: The frame of ``build_prompts``.
        teacher: Who is asked.
        config: What is demanded.
        cache_dir: Folder of the cache; written only for teachers that are not deterministic.
        seed: Passed to the teacher; refused prompts are asked again with seeds derived from it.
        progress: Called after every answer with prompts that are settled of all, and the metrics accepted, requests and
            (where known) tokens and cost_usd of this run.

    Returns:
        One row a prompt in the order of ``prompts``, columns ``TRACES_SCHEMA``; independent of the order in which the
        answers came.

    Raises:
        ValueError: if columns are missing or there is no prompt.
        TeacherError: if the teacher cannot go on, a budget cannot be kept because the server does not tell what it
            counts, or no answer at all was accepted; finished answers are in the cache.
    """
    prompts = _checked(prompts)
    with open_cache(cache_dir, teacher) as cache:
        table = _TraceTable(prompts, teacher, config, cache, seed)
        _Questioning(table, progress).run()
        traces = table.table()
    if traces["rejected_reason"].null_count() == 0:
        raise TeacherError(f"no answer of {teacher.name} was accepted: {_reasons_in_words(traces)}")
    return traces


def stored_traces(
    prompts: pl.DataFrame, teacher: Teacher, config: TracesConfig, cache_dir: Path, seed: int
) -> pl.DataFrame:
    """What ``collect_traces`` would return if nothing more were asked; also while another run is asking.

    Raises:
        ValueError: if columns are missing or there is no prompt.
    """
    with open_cache(cache_dir, teacher, read_only=True) as cache:
        return _TraceTable(_checked(prompts), teacher, config, cache, seed).table()


def refusal_counts(traces: pl.DataFrame) -> dict[str, int]:
    """How many traces were accepted (key ``accepted``) and refused for each reason, the most frequent first."""
    counted = traces["rejected_reason"].fill_null("accepted").value_counts(sort=False, name="n")
    return dict(counted.sort(["n", "rejected_reason"], descending=[True, False]).iter_rows())


def _checked(prompts: pl.DataFrame) -> pl.DataFrame:
    missing = [name for name in PROMPTS_SCHEMA if name not in prompts.columns]
    if missing:
        raise ValueError(f"prompts lack the columns {missing}; pass the frame of build_prompts")
    if prompts.is_empty():
        raise ValueError("there are no prompts to ask; build_prompts gives at least one for each split")
    return prompts.select(PROMPTS_SCHEMA.keys())


def _reasons_in_words(traces: pl.DataFrame) -> str:
    details = traces.drop_nulls("rejected_detail")["rejected_detail"]
    example = f"; for example: {details[0]}" if len(details) else ""
    return ", ".join(f"{reason} {n}" for reason, n in refusal_counts(traces).items()) + example


class _Questioning:
    """Asks until every prompt has an accepted answer, its attempts are used up, or the budget is spent.

    A request that failed is no attempt: it is made again, as often as a prompt may be asked. A request that the server
    may have charged is made again once.
    """

    def __init__(self, table: "_TraceTable", progress: Progress) -> None:
        self.table = table
        self.progress = progress
        self.budget = Budget(table.config, table.cache.answered_today)
        self.attempts = 1 if table.teacher.deterministic else table.config.attempts
        self.waiting: dict[int, list[int]] = defaultdict(list)
        self.settled = self.accepted = 0
        self.refused_in_a_row: list[tuple[str, str, str]] = []

    def run(self) -> None:
        table, budget = self.table, self.budget
        for number in range(table.prompts.height):
            self._sort_in(number)
        self._tell()
        while self.waiting and not budget.over:
            attempt = min(self.waiting)
            asked = budget.allowed(map(partial(table.question, attempt), self.waiting.pop(attempt)))
            keep = partial(_keep, table, budget, attempt)
            with closing(table.teacher.answer(asked, table.seed_of(attempt), keep)) as stream:
                for answer in stream:
                    self._receive(answer, attempt)
        if budget.unmeasured:
            raise TeacherError(budget.unmeasured)
        left = table.prompts.height - self.settled
        if left and budget.day_is_over:
            raise TeacherError(
                f"the teacher's budget of this UTC day is spent, {left} of {table.prompts.height} prompts are left; "
                "finished answers are kept. Retry tomorrow, or raise APEAGENT_TEACHER_DAILY_REQUESTS or _DAILY_TOKENS"
            )

    def _receive(self, answer: TeacherAnswer, attempt: int) -> None:
        number = self.table.number[answer.prompt_id]
        if answer.finish_reason in ("failed", "lost"):
            self.budget.requests -= 1  # it cost nothing, or was counted when it was written down
        if answer.finish_reason == "failed":
            failures = self.table.failures[number]
            failures.append(answer.error or "")
            if len(failures) < self.attempts:
                self.waiting[attempt].append(number)
        else:
            self.table.failures.pop(number, None)
            self._sort_in(number)
        self._tell()
        if answer.finish_reason not in ("failed", "lost") and not self.table.teacher.deterministic:
            self._watch(answer, number)

    def _sort_in(self, number: int) -> None:
        known = self.table.judged(number)
        missing = next((attempt for attempt in range(self.attempts) if attempt not in known.answers), None)
        if known.learned is None and missing is not None:
            prompt = self.table.row(number)["prompt"]
            if len(self.table.lost(prompt, missing)) < _MOST_LOST:
                self.waiting[missing].append(number)
                return
        self.settled += 1
        self.accepted += known.learned is not None

    def _tell(self) -> None:
        metrics = {"accepted": self.accepted, "requests": self.budget.requests, **self.budget.known}
        self.progress(self.settled, self.table.prompts.height, **metrics)

    def _watch(self, answer: TeacherAnswer, number: int) -> None:
        """Stop after many refused answers in a row, before the money is gone."""
        verdict = _judge(answer, self.table.row(number), self.table.config)
        if isinstance(verdict, DraftAnswer):
            self.refused_in_a_row.clear()
            return
        self.refused_in_a_row.append((*verdict, spoken_text(answer.text)[:200] or answer.error or ""))
        if len(self.refused_in_a_row) < REFUSED_IN_A_ROW:
            return
        examples = "; ".join(
            f"({place}) {reason}: {detail!r} in {text!r}"
            for place, (reason, detail, text) in enumerate(self.refused_in_a_row[-3:], start=1)
        )
        raise TeacherError(
            f"{self.table.teacher.name}: the last {REFUSED_IN_A_ROW} answers were all refused, so the run stopped "
            f"before it cost more. {examples}. Choose another APEAGENT_TEACHER_MODEL, or raise "
            f"APEAGENT_TEACHER_MAX_TOKENS if answers are cut off; finished answers are kept"
        )


def _keep(table: "_TraceTable", budget: "Budget", attempt: int, answer: TeacherAnswer) -> None:
    prompt = table.row(table.number[answer.prompt_id])["prompt"]
    table.cache.keep(prompt, table.seed_of(attempt), answer)
    budget.add(answer)


@dataclass(frozen=True)
class _Judged:
    """What is known about one prompt: its answers by attempt, what is learned from them or else why nothing is."""

    answers: Mapping[int, TeacherAnswer]
    lost: list[TeacherAnswer]
    refusals: list[str]
    chosen: TeacherAnswer | None
    learned: DraftAnswer | None
    reason: str | None
    detail: str | None


class _TraceTable:
    """A set of prompts and what a cache says about each of them. Holds no answer itself, so it does not grow."""

    def __init__(
        self, prompts: pl.DataFrame, teacher: Teacher, config: TracesConfig, cache: AnswerCache, seed: int
    ) -> None:
        self.prompts = prompts
        self.teacher = teacher
        self.config = config
        self.cache = cache
        self.seed = seed
        self.number = {prompt_id: number for number, prompt_id in enumerate(prompts["prompt_id"])}
        self.failures: dict[int, list[str]] = defaultdict(list)

    def row(self, number: int) -> PromptRow:
        return self.prompts.row(number, named=True)

    def lost(self, prompt: str, attempt: int) -> list[TeacherAnswer]:
        """The requests of one attempt that the server may have charged although no answer came."""
        return self.cache.lost(prompt, self.seed_of(attempt))

    def question(self, attempt: int, number: int) -> PromptRow:
        """The row with ``lost_requests``, so that the teacher knows how often it may still ask."""
        row = self.row(number)
        return {**row, "lost_requests": len(self.lost(row["prompt"], attempt))}

    def seed_of(self, attempt: int) -> int:
        return self.seed + attempt * _ATTEMPT_STEP

    def judged(self, number: int) -> _Judged:
        row = self.row(number)
        found = {n: self.cache.get(row["prompt"], self.seed_of(n)) for n in range(self.config.attempts)}
        answers = {attempt: answer for attempt, answer in found.items() if answer is not None}
        lost = [each for n in range(self.config.attempts) for each in self.lost(row["prompt"], n)]
        verified: list[tuple[TeacherAnswer, DraftAnswer]] = []
        refused: list[tuple[str, str]] = []
        for answer in answers.values():
            verdict = _judge(answer, row, self.config)
            if isinstance(verdict, DraftAnswer):
                verified.append((answer, verdict))
            else:
                refused.append(verdict)
        refusals = [reason for reason, _ in refused]
        votes = Counter(parsed.side for _, parsed in verified)
        for answer, parsed in verified:
            if votes[parsed.side] > self.config.samples // 2:
                return _Judged(answers, lost, refusals, answer, parsed, None, None)
        reason, detail = self._why_nothing(number, votes, refused, lost)
        last = list(answers.values())[-1] if answers else None
        return _Judged(answers, lost, refusals, last, None, reason, detail)

    def _why_nothing(
        self, number: int, votes: Counter[Any], refused: list[tuple[str, str]], lost: list[TeacherAnswer]
    ) -> tuple[str, str]:
        if number in self.failures:
            return "request_failed", self.failures[number][-1]
        if len(votes) > 1 or (votes and not refused):
            agreed = ", ".join(f"{count} {side}" for side, count in votes.most_common())
            return "inconsistent", f"{agreed} of {self.config.samples} samples"
        if lost and not refused:
            return "no_answer", lost[-1].error or ""
        return refused[-1] if refused else ("not_asked", "the budget was spent, or the run has not reached this prompt")

    def table(self) -> pl.DataFrame:
        parts = []
        for begin in range(0, self.prompts.height, _ROWS_AT_ONCE):
            rows = self.prompts.slice(begin, _ROWS_AT_ONCE)
            traces = [self._trace(self.judged(begin + number)) for number in range(rows.height)]
            parts.append(rows.hstack(pl.DataFrame(traces, schema=_ANSWER_SCHEMA)))
        return pl.concat(parts)

    def _trace(self, known: _Judged) -> dict[str, Any]:
        paid = [*known.answers.values(), *known.lost]
        chosen = known.chosen
        return {
            "teacher": self.teacher.name,
            "answer": spoken_text(known.chosen.text) if known.chosen else None,
            "drafts": list(known.learned.drafts) if known.learned else None,
            "side": known.learned.side if known.learned else None,
            "amount": known.learned.amount if known.learned else None,
            "asset": known.learned.asset if known.learned else None,
            "rejected_reason": known.reason,
            "rejected_detail": known.detail,
            "attempts": len(known.answers),
            "refusals": known.refusals,
            "finish_reason": known.chosen.finish_reason if known.chosen else None,
            "prompt_tokens": _sum_if_known([answer.prompt_tokens for answer in paid]),
            "completion_tokens": _sum_if_known([answer.completion_tokens for answer in paid]),
            "cost_usd": _sum_if_known([answer.cost_usd for answer in paid]),
            "answered_by": " at ".join(filter(None, (chosen.model, chosen.provider))) or None if chosen else None,
            "lost_requests": len(known.lost),
            "estimated": any(answer.estimated for answer in paid),
        }


def _judge(answer: TeacherAnswer, row: PromptRow, config: TracesConfig) -> DraftAnswer | tuple[str, str]:
    """What was answered, or the reason and detail for which it is refused."""
    if answer.finish_reason == "length":
        return "cut_off", f"after {answer.completion_tokens} tokens"
    if answer.finish_reason == "refused":
        return "refused", (answer.error or answer.text)[:200]
    if answer.finish_reason == "unusable":
        return "unusable", (answer.error or "")[:200]
    if answer.reasoning and not answer.text.strip():
        return "only_thinking", answer.reasoning[:200]
    try:
        parsed = parse_answer(answer.text)
    except AnswerError as error:
        return error.reason, error.detail
    reason = verify(parsed, row, config)
    return (reason, " / ".join(parsed.drafts)[:200]) if reason else parsed


def _sum_if_known(values: list[Any]) -> Any:
    return None if not values or None in values else sum(values)
