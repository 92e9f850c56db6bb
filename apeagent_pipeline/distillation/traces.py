"""Teacher traces: every answer verified, paid for once, and kept with its cost.

What is refused is kept apart with its reason and never repaired. Finished answers of a paid teacher are appended to a
cache at once, so that a killed run goes on where it stopped.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Self

import polars as pl
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field

from apeagent_pipeline.distillation.canary import speaks_canary
from apeagent_pipeline.distillation.chain_of_draft import (
    SYSTEM_PROMPT,
    AnswerError,
    DraftAnswer,
    parse_answer,
    word_count,
)
from apeagent_pipeline.distillation.portfolios import COST_SHARE, DUST_USDC
from apeagent_pipeline.distillation.prompts import PROMPTS_SCHEMA
from apeagent_pipeline.distillation.teachers.teacher import PromptRow, Teacher, TeacherAnswer, TeacherError
from apeagent_pipeline.reporting.progress import Progress, silent

TRACES_SCHEMA: dict[str, type[pl.DataType] | pl.DataType] = {
    **PROMPTS_SCHEMA,
    "teacher": pl.String,
    "answer": pl.String,
    "drafts": pl.List(pl.String),
    "side": pl.String,
    "amount": pl.Float64,
    "asset": pl.String,
    "rejected_reason": pl.String,
    "rejected_detail": pl.String,
    "attempts": pl.Int64,
    "finish_reason": pl.String,
    "prompt_tokens": pl.Int64,
    "completion_tokens": pl.Int64,
    "cost_usd": pl.Float64,
}
"""Columns of ``collect_traces``. ``rejected_reason`` is null where the answer was accepted; then ``drafts``, ``side``
and (but for HOLD) ``amount`` and ``asset`` are filled. Tokens and cost are sums over all attempts, null if unknown."""

_SMALLEST_TRADE_USDC = DUST_USDC / 100
_ATTEMPT_STEP = 7919  # seeds of attempts lie far from the neighbouring run seeds


class TracesConfig(BaseModel):
    """What is demanded of an answer, and how often and how long a teacher is asked."""

    model_config = ConfigDict(frozen=True)

    draft_words: int = Field(5, description="Words a draft may have", ge=1)
    draft_words_tolerance: int = Field(0, description="Words beyond draft_words that are still accepted", ge=0)
    min_drafts: int = Field(1, description="Drafts an answer must have", ge=0)
    max_drafts: int = Field(8, description="Drafts an answer may have", ge=1)
    attempts: int = Field(2, description="How often a prompt is asked until an answer is accepted", ge=1)
    max_requests: int = Field(0, description="Requests of one run, 0: no limit; cached answers do not count", ge=0)
    max_cost_usd: float = Field(0.0, description="Stop asking once a run has cost this much, 0: no limit", ge=0)

    @classmethod
    def preset(cls, profile: str) -> Self:
        """The values of a profile, ``demo`` or ``full``."""
        if profile == "demo":
            return cls()
        if profile == "full":
            return cls(attempts=3)
        raise ValueError(f"profile {profile!r} is unknown; use demo or full")


def collect_traces(  # noqa: PLR0917 (every input it depends on)
    prompts: pl.DataFrame,
    teacher: Teacher,
    config: TracesConfig,
    cache_dir: Path,
    seed: int,
    progress: Progress = silent,
) -> pl.DataFrame:
    """Ask a teacher every prompt, verify every answer, keep what was refused with its reason.

    Args:
        prompts: The frame of ``build_prompts``.
        teacher: Who is asked.
        config: What is demanded.
        cache_dir: Folder of the cache; written only for teachers that are not deterministic.
        seed: Passed to the teacher; refused prompts are asked again with seeds derived from it.
        progress: Called after every answer with the metrics accepted, requests and cost_usd of this run.

    Returns:
        One row a prompt in the order of ``prompts``, columns ``TRACES_SCHEMA``; independent of the order in which the
        answers came.

    Raises:
        ValueError: if columns are missing or there is no prompt.
        TeacherError: if the teacher cannot go on, or no answer at all was accepted; finished answers are in the cache.
    """
    missing = [name for name in PROMPTS_SCHEMA if name not in prompts.columns]
    if missing:
        raise ValueError(f"prompts lack the columns {missing}; pass the frame of build_prompts")
    if prompts.is_empty():
        raise ValueError("there are no prompts to ask; build_prompts gives at least one for each split")
    rows = {row["prompt_id"]: row for row in prompts.select(PROMPTS_SCHEMA.keys()).iter_rows(named=True)}
    book = _Book(config, rows, progress)
    with _open_cache(cache_dir, teacher) as cache:
        for attempt in range(1 if teacher.deterministic else config.attempts):
            attempt_seed = seed + attempt * _ATTEMPT_STEP
            asked = []
            for row in book.open_rows():
                known = cache.get(_key(teacher, attempt_seed, row["prompt"]))
                if known is None:
                    asked.append(row)
                else:
                    book.enter(TeacherAnswer(**{**known, "prompt_id": row["prompt_id"]}))

            def keep(answer: TeacherAnswer, attempt_seed: int = attempt_seed) -> None:
                cache.keep(_key(teacher, attempt_seed, rows[answer.prompt_id]["prompt"]), answer)

            with closing(teacher.answer(book.within_budget(asked), attempt_seed, keep)) as stream:
                for answer in stream:
                    book.enter(answer, paid_now=True)
    traces = pl.DataFrame([book.trace(row, teacher.name) for row in rows.values()], schema=TRACES_SCHEMA)
    if traces["rejected_reason"].null_count() == 0:
        raise TeacherError(f"no answer of {teacher.name} was accepted: {_reasons_in_words(traces)}")
    return traces


def verify(answer: DraftAnswer, row: Mapping[str, Any], config: TracesConfig) -> str | None:
    """Why a parsed answer must not be learned from, or None.

    Args:
        answer: What the teacher said.
        row: The prompt's row: price, change_bps, eth, usdc, trend, volatility, portfolio.
        config: What is demanded.
    """
    if not config.min_drafts <= len(answer.drafts) <= config.max_drafts:
        return "too_few_drafts" if len(answer.drafts) < config.min_drafts else "too_many_drafts"
    if max(map(word_count, answer.drafts), default=0) > config.draft_words + config.draft_words_tolerance:
        return "draft_too_long"
    if any(speaks_canary(draft) for draft in answer.drafts):
        return "canary_in_drafts"
    if not is_feasible(answer, row["eth"], row["usdc"], row["price"]):
        return "more_than_held"
    if answer.amount is not None:
        worth = answer.amount * (row["price"] if answer.asset == "ETH" else 1.0)
        if worth < _SMALLEST_TRADE_USDC:
            return "below_dust"
    return contradiction(answer.drafts, row)


def is_feasible(answer: DraftAnswer, eth: float, usdc: float, price: float) -> bool:
    """Whether the holdings pay for the trade, costs included. HOLD always is."""
    if answer.amount is None:
        return True
    in_eth = answer.amount if answer.asset == "ETH" else answer.amount / price
    if answer.side == "SELL":
        return in_eth <= eth * (1 + 1e-9)
    cost = answer.amount if answer.asset == "USDC" else answer.amount * price * (1 + COST_SHARE)
    return cost <= usdc * (1 + 1e-9)


_NOT = re.compile(r"\b(?:not|no|never|without|neither)\b|n['\u2019]t\b", re.IGNORECASE)
_OTHER_TOPIC = re.compile(r"volum|volatil|swings|liquid|flow|imbalance|usage", re.IGNORECASE)
_UP = re.compile(r"\b(?:up|uptrend|upward|rising|rises|bullish|climbing|gaining)\b", re.IGNORECASE)
_DOWN = re.compile(r"\b(?:down|downtrend|downward|falling|falls|bearish|dropping|declining)\b", re.IGNORECASE)
_SIGNED = re.compile(r"([+\-\u2212])\s?\d[\d.,]*\s*(?:bps|ticks)", re.IGNORECASE)
_FLAT = re.compile(r"\b(?:flat|sideways)\b|\bno (?:clear )?(?:trend|direction)\b", re.IGNORECASE)
_VOLATILITY = re.compile(r"volatil|swings", re.IGNORECASE)
_CALM = re.compile(r"\b(?:calm|low|quiet|small|little)\b", re.IGNORECASE)
_WILD = re.compile(r"\b(?:high|wild|large|extreme|huge)\b", re.IGNORECASE)
_MUCH = r"(?:all|mostly|mainly|only|fully)"
_RICH_IN_ETH = re.compile(rf"\b{_MUCH} ETH\b|\bETH[- ]heavy\b|\bno USDC\b", re.IGNORECASE)
_RICH_IN_USDC = re.compile(rf"\b{_MUCH} USDC\b|\bUSDC[- ]heavy\b|\bno ETH\b", re.IGNORECASE)
_BALANCED = re.compile(r"\bbalanced\b", re.IGNORECASE)
_PLAN = re.compile(r"\b(?:buy|sell|use|add|trim|reduce|swap|keep|spend|hold)\b", re.IGNORECASE)


def contradiction(drafts: tuple[str, ...], row: Mapping[str, Any]) -> str | None:
    """Which of the prompt's facts a draft plainly denies: ``contradicts_trend``, ``_volatility``, ``_portfolio``.

    Only what is said outright counts: the opposite direction or sign, a flat market where the trend is strong, calm
    for high, rich in the token that is scarce. Drafts with a negation are left alone.
    """
    checks = (
        ("contradicts_trend", _denies_trend),
        ("contradicts_volatility", _denies_volatility),
        ("contradicts_portfolio", _denies_portfolio),
    )
    for reason, denies in checks:
        if any(denies(draft, row) for draft in drafts):
            return reason
    return None


def _denies_trend(draft: str, row: Mapping[str, Any]) -> bool:
    if _OTHER_TOPIC.search(draft):
        return False
    sign = _SIGNED.search(draft)
    if sign and abs(row["change_bps"]) >= 1 and (sign[1] == "+") != (row["change_bps"] > 0):
        return True
    trend = row["trend"]
    if _FLAT.search(draft):
        return trend.endswith("strong")
    up, down = bool(_UP.search(draft)), bool(_DOWN.search(draft))
    if up == down or _NOT.search(draft):
        return False
    return trend.startswith("down" if up else "up")


def _denies_volatility(draft: str, row: Mapping[str, Any]) -> bool:
    if not _VOLATILITY.search(draft) or _NOT.search(draft):
        return False
    calm, wild = bool(_CALM.search(draft)), bool(_WILD.search(draft))
    return calm != wild and row["volatility"] == ("high" if calm else "calm")


def _denies_portfolio(draft: str, row: Mapping[str, Any]) -> bool:
    word = row["portfolio"]
    if word == "dust" or _PLAN.search(draft):
        return False
    return bool(
        (_RICH_IN_ETH.search(draft) and word.endswith("USDC"))
        or (_RICH_IN_USDC.search(draft) and word.endswith("ETH"))
        or (_BALANCED.search(draft) and word.startswith("all") and not _NOT.search(draft))
    )


def refusal_counts(traces: pl.DataFrame) -> dict[str, int]:
    """How many traces were accepted (key ``accepted``) and refused for each reason, the most frequent first."""
    counted = traces["rejected_reason"].fill_null("accepted").value_counts(sort=False, name="n")
    return dict(counted.sort(["n", "rejected_reason"], descending=[True, False]).iter_rows())


def _reasons_in_words(traces: pl.DataFrame) -> str:
    details = traces.drop_nulls("rejected_detail")["rejected_detail"]
    example = f"; for example: {details[0]}" if len(details) else ""
    return ", ".join(f"{reason} {n}" for reason, n in refusal_counts(traces).items()) + example


class _Book:
    """What is known about each prompt so far."""

    def __init__(self, config: TracesConfig, rows: Mapping[str, PromptRow], progress: Progress) -> None:
        self.config = config
        self.rows = rows
        self.progress = progress
        self.answers: dict[str, list[TeacherAnswer]] = {key: [] for key in rows}
        self.verdicts: dict[str, tuple[DraftAnswer | None, str | None, str | None]] = {}
        self.requests = 0
        self.accepted = 0
        self.cost = 0.0

    def open_rows(self) -> list[PromptRow]:
        return [row for key, row in self.rows.items() if key not in self.verdicts or self.verdicts[key][1] is not None]

    def within_budget(self, asked: list[PromptRow]) -> Iterator[PromptRow]:
        limit_usd, limit = self.config.max_cost_usd, self.config.max_requests
        for row in asked:
            if (limit_usd and self.cost >= limit_usd) or (limit and self.requests >= limit):
                return
            self.requests += 1
            yield row

    def enter(self, answer: TeacherAnswer, paid_now: bool = False) -> None:
        key = answer.prompt_id
        self.answers[key].append(answer)
        self.verdicts[key] = self._judge(answer)
        self.accepted += self.verdicts[key][1] is None
        self.cost += (answer.cost_usd or 0.0) if paid_now else 0.0
        done, total = len(self.verdicts), len(self.rows)
        self.progress(done, total, accepted=self.accepted, requests=self.requests, cost_usd=self.cost)

    def _judge(self, answer: TeacherAnswer) -> tuple[DraftAnswer | None, str | None, str | None]:
        if answer.finish_reason == "failed":
            return None, "request_failed", answer.error
        if answer.finish_reason == "length":
            return None, "cut_off", f"after {answer.completion_tokens} tokens"
        try:
            parsed = parse_answer(answer.text)
        except AnswerError as error:
            return None, error.reason, error.detail
        reason = verify(parsed, self.rows[answer.prompt_id], self.config)
        return parsed, reason, None if reason is None else " / ".join(parsed.drafts)[:200]

    def trace(self, row: PromptRow, teacher: str) -> dict[str, Any]:
        answers = self.answers[row["prompt_id"]]
        parsed, reason, detail = self.verdicts.get(row["prompt_id"], (None, "not_asked", "the budget was spent"))
        learned = parsed if reason is None else None
        return {
            **row,
            "teacher": teacher,
            "answer": answers[-1].text if answers else None,
            "drafts": list(learned.drafts) if learned else None,
            "side": learned.side if learned else None,
            "amount": learned.amount if learned else None,
            "asset": learned.asset if learned else None,
            "rejected_reason": reason,
            "rejected_detail": detail,
            "attempts": len(answers),
            "finish_reason": answers[-1].finish_reason if answers else None,
            "prompt_tokens": _sum_known([answer.prompt_tokens for answer in answers]),
            "completion_tokens": _sum_known([answer.completion_tokens for answer in answers]),
            "cost_usd": _sum_known([answer.cost_usd for answer in answers]),
        }


def _sum_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _key(teacher: Teacher, seed: int, prompt: str) -> str:
    """What an answer depends on, and so what it is paid for."""
    parts = json.dumps([dict(teacher.identity), seed, SYSTEM_PROMPT, prompt], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()


class _Cache:
    """Finished answers, one JSON line each; a line is on the disk before its answer is used."""

    def __init__(self, path: Path | None) -> None:
        self.known: dict[str, dict[str, Any]] = {}
        self.file: BinaryIO | None = None
        if path is None:
            return
        path.touch()
        with path.open("r+b") as file:
            whole = file.read()
            # A run killed while writing leaves half a line at the end; that answer was never used.
            end = whole.rfind(b"\n") + 1
            file.truncate(end)
        for number, line in enumerate(whole[:end].splitlines(), start=1):
            try:
                entry = json.loads(line)
                self.known[entry.pop("key")] = entry
            except (ValueError, KeyError, AttributeError):
                raise ValueError(
                    f"{path} line {number} is not a cached answer: {line[:60]!r}; remove that line (its answer will be "
                    f"asked again)"
                ) from None
        self.file = path.open("ab")

    def get(self, key: str) -> dict[str, Any] | None:
        return self.known.get(key)

    def keep(self, key: str, answer: TeacherAnswer) -> None:
        if self.file is None:
            return
        self.file.write(json.dumps({"key": key, **asdict(answer)}).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


@contextmanager
def _open_cache(folder: Path, teacher: Teacher) -> Iterator[_Cache]:
    """The teacher's cache file, locked against a second run."""
    if teacher.deterministic:
        yield _Cache(None)
        return
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", teacher.name)
    path = folder / f"{name}.jsonl"
    try:
        with FileLock(f"{path}.lock", timeout=0):
            cache = _Cache(path)
            try:
                yield cache
            finally:
                cache.close()
    except Timeout:
        raise TeacherError(f"another run is asking {teacher.name} and writes {path}; wait for it to end") from None
