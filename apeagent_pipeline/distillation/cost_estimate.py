"""What asking a teacher will cost, told before anything is asked."""

from dataclasses import dataclass, replace

import polars as pl

from apeagent_pipeline.distillation.chain_of_draft import SYSTEM_PROMPT
from apeagent_pipeline.distillation.token_guess import token_guess
from apeagent_pipeline.distillation.traces import TracesConfig
from apeagent_pipeline.distillation.traces_report import total

_SHORTEST_ANSWER = 40
"""Tokens of four drafts and an action without any thinking."""

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
        expected: As the answers that are there by now; None before there are any.
        most: Every prompt uses all its attempts and every answer all its room. Requests that a broken server makes
            necessary again are not in it.
    """

    open_prompts: int
    least: Bill
    expected: Bill | None
    most: Bill


def estimate(traces: pl.DataFrame, config: TracesConfig, max_tokens: int, price: Price | None) -> TeachingEstimate:
    """What it takes to ask the prompts that have no accepted answer yet.

    Tokens of a prompt are counted as words, digits and signs, about as tokenizers of today do, until the server has
    told better.

    Args:
        traces: The frame of ``stored_traces``.
        config: How often a prompt may be asked.
        max_tokens: Most tokens of an answer.
        price: What tokens cost; None: unknown.
    """
    accepted = pl.col("rejected_reason").is_null()
    is_open = traces.filter(~accepted & (pl.col("attempts") < config.attempts))
    # A prompt is settled by as many verified answers as make a majority of the samples.
    needed = config.samples // 2 + 1
    first = int((needed - is_open["attempts"]).clip(1).sum())
    last = int((config.attempts - is_open["attempts"]).sum())
    measured = traces.filter(accepted & pl.col("completion_tokens").is_not_null())
    guessed = sum(map(token_guess, is_open["prompt"])) + is_open.height * token_guess(SYSTEM_PROMPT)
    answers = int(measured["attempts"].sum())
    read = total(measured, "prompt_tokens") / answers if answers else guessed / max(is_open.height, 1)

    def bill(requests: int, written: float) -> Bill:
        prompt_tokens, completion_tokens = round(requests * read), round(requests * written)
        cost = None if price is None else (prompt_tokens * price[0] + completion_tokens * price[1]) / 1e6
        return Bill(requests, prompt_tokens, completion_tokens, cost)

    expected, shortest = None, float(_SHORTEST_ANSWER)
    if answers:
        shortest = min(shortest, total(measured, "completion_tokens") / answers)
        requests = round(is_open.height * traces["attempts"].sum() / measured.height)
        expected = bill(min(max(requests, first), last), total(measured, "completion_tokens") / answers)
        if measured["cost_usd"].null_count() == 0:  # what was charged says more than a price table
            expected = replace(expected, cost_usd=expected.requests * total(measured, "cost_usd") / answers)
    return TeachingEstimate(is_open.height, bill(first, shortest), expected, bill(last, max_tokens))
