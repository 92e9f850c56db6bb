"""What asking a teacher will cost, told before anything is asked."""

from dataclasses import dataclass, replace

import polars as pl

from apeagent_pipeline.distillation.chain_of_draft import SYSTEM_PROMPT
from apeagent_pipeline.distillation.token_guess import token_guess
from apeagent_pipeline.distillation.traces import TracesConfig
from apeagent_pipeline.distillation.traces_report import total

_SHORTEST_ANSWER = 40
"""Tokens of four drafts and an action without any thinking."""
_USUAL_ANSWER, _USUAL_THINKING = 60, 2000
"""Tokens of a usual answer, without and with the thinking of a reasoning model."""
_USUAL_REPETITIONS = 1.15
"""Requests for each prompt, where the share of refused answers is not known yet."""
_TOKENS_A_SECOND = 50.0
"""Speed at which servers write one answer; half to twice as much is usual."""

Price = tuple[float, float]
"""US dollars for a million tokens read and written."""


@dataclass(frozen=True)
class Bill:
    """So many requests, tokens and US dollars."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None


@dataclass(frozen=True)
class TeachingEstimate:
    """What the prompts that are still open will need.

    Attributes:
        open_prompts: Prompts that will be asked.
        least: Every first answer is accepted and no more than drafts.
        expected: As measured by the answers that are there by now; before there are any, as usual answers.
        is_measured: Whether ``expected`` rests on answers of this teacher.
        seconds: Expected time at the given concurrency.
        most: Every prompt uses all its attempts and every answer all its room. Requests that a broken server makes
            necessary again are not in it.
    """

    open_prompts: int
    least: Bill
    expected: Bill
    most: Bill
    is_measured: bool
    seconds: float


def estimate(
    traces: pl.DataFrame,
    config: TracesConfig,
    max_tokens: int,
    price: Price | None,
    *,
    concurrency: int = 1,
    thinks: bool = True,
) -> TeachingEstimate:
    """What it takes to ask the prompts that have no accepted answer yet.

    Tokens of a prompt are counted as words, digits and signs, about as tokenizers of today do, until the server has
    told better.

    Args:
        traces: The frame of ``stored_traces``.
        config: How often a prompt may be asked.
        max_tokens: Most tokens of an answer.
        price: What tokens cost; None: unknown.
        concurrency: Requests under way at once.
        thinks: Whether the model thinks before it answers.
    """
    accepted = pl.col("rejected_reason").is_null()
    is_open = traces.filter(
        ~accepted & (pl.col("attempts") < config.attempts) & (pl.col("rejected_reason") != "no_answer")
    )
    # A prompt is settled by as many verified answers as make a majority of the samples.
    needed = config.samples // 2 + 1
    first = int((needed - is_open["attempts"]).clip(1).sum())
    last = int((config.attempts - is_open["attempts"]).sum())
    measured = traces.filter(accepted & pl.col("completion_tokens").is_not_null())
    guessed = sum(map(token_guess, is_open["prompt"])) + is_open.height * token_guess(SYSTEM_PROMPT)
    answers = int(measured["attempts"].sum())
    read = total(measured, "prompt_tokens") / answers if answers else guessed / max(is_open.height, 1)
    written = total(measured, "completion_tokens") / answers if answers else min(_usual(thinks), max_tokens)

    def bill(requests: int, written: float) -> Bill:
        prompt_tokens, completion_tokens = round(requests * read), round(requests * written)
        cost = None if price is None else (prompt_tokens * price[0] + completion_tokens * price[1]) / 1e6
        return Bill(requests, prompt_tokens, completion_tokens, cost)

    repetitions = traces["attempts"].sum() / measured.height if answers else _USUAL_REPETITIONS
    expected = bill(min(max(round(is_open.height * repetitions), first), last), written)
    if answers and measured["cost_usd"].null_count() == 0:  # what was charged says more than a price table
        expected = replace(expected, cost_usd=expected.requests * total(measured, "cost_usd") / answers)
    seconds = expected.requests * (1 + written / _TOKENS_A_SECOND) / concurrency
    shortest = min(float(_SHORTEST_ANSWER), written)
    return TeachingEstimate(
        is_open.height, bill(first, shortest), expected, bill(last, max_tokens), answers > 0, seconds
    )


def _usual(thinks: bool) -> int:
    return _USUAL_THINKING if thinks else _USUAL_ANSWER


def limits_in_words(config: TracesConfig, expected: Bill) -> str:
    """Which budgets apply, in one sentence, and whether the expected bill fits into them."""
    limits = {
        "requests": (config.max_requests, expected.requests),
        "tokens": (config.max_total_tokens, expected.prompt_tokens + expected.completion_tokens),
        "USD": (config.max_cost_usd, expected.cost_usd or 0.0),
        "requests a day": (config.daily_requests, expected.requests),
        "tokens a day": (config.daily_tokens, expected.prompt_tokens + expected.completion_tokens),
    }
    set_ones = {name: pair for name, pair in limits.items() if pair[0]}
    if not set_ones:
        return "No limit applies; set APEAGENT_TEACHER_MAX_REQUESTS, _MAX_TOTAL_TOKENS or _MAX_COST_USD."
    told = f"Asking stops at {', '.join(f'{limit:,} {name}' for name, (limit, _) in set_ones.items())}"
    short = [name for name, (limit, needed) in set_ones.items() if needed > limit]
    return f"{told}, which is less than expected ({', '.join(short)})." if short else f"{told}."
