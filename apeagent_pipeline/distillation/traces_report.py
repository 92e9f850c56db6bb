"""What a teacher's answers were worth: how many were accepted, what the others were refused for, what they cost."""

from collections import Counter
from typing import Any

import polars as pl

from apeagent_pipeline.distillation.canary_words import SIDES
from apeagent_pipeline.distillation.teachers.rules import RulesTeacher, decide
from apeagent_pipeline.distillation.traces import refusal_counts
from apeagent_pipeline.reporting.report import markdown_table


def teacher_in_words(teacher: str) -> str:
    """The teacher's name and what it is, for every report."""
    if teacher == RulesTeacher.name:
        return f"`{teacher}`, the embedded rule-based policy (a documented rule, not a language model)"
    return f"`{teacher}`, a language model"


def answer_counts(traces: pl.DataFrame) -> dict[str, int]:
    """How many answers were verified (key ``verified``) and refused for each reason, refused attempts included."""
    refused = Counter(traces["refusals"].explode().drop_nulls())
    return {"verified": int(traces["attempts"].sum()) - refused.total(), **dict(refused.most_common())}


def total(traces: pl.DataFrame, column: str) -> float:
    """Sum of ``prompt_tokens``, ``completion_tokens`` or ``cost_usd`` over the prompts of which it is known."""
    return float(traces[column].sum() or 0)


def total_in_words(traces: pl.DataFrame, column: str) -> str:
    """The sum as people read it; what is unknown is called unknown."""
    asked = traces.filter(pl.col("attempts") > 0)
    unknown = asked[column].null_count()
    number = f"{total(asked, column):.4f} USD" if column == "cost_usd" else f"{total(asked, column):,.0f}"
    if unknown == 0:
        return number
    return "unknown" if unknown == asked.height else f"at least {number} (unknown for {unknown} of {asked.height})"


def agreement_with_rules(traces: pl.DataFrame) -> tuple[float, list[list[int]]] | None:
    """How often the teacher decides as the embedded policy would.

    Returns:
        The share of accepted traces with the same action, and how often the policy's action (rows) met the teacher's
        (columns), both in the order of ``SIDES``. None if nothing was accepted.
    """
    accepted = traces.filter(pl.col("rejected_reason").is_null())
    if accepted.is_empty():
        return None
    told = accepted.select("trend", "volatility", "confirmation", "portfolio", "missing").iter_rows()
    by_rules = ("HOLD" if missing else decide(*words)[0] for *words, missing in told)
    pairs = Counter(zip(by_rules, accepted["side"], strict=True))
    return sum(pairs[side, side] for side in SIDES) / accepted.height, [
        [pairs[rule, said] for said in SIDES] for rule in SIDES
    ]


def teaching_metrics(traces: pl.DataFrame) -> dict[str, Any]:
    """Flat numbers of a set of traces; what is unknown is left out.

    ``answers_accepted_share`` and ``answers_cut_off_share`` are of answers, ``accepted_share`` is of prompts.
    """
    counts = answer_counts(traces)
    answers = sum(counts.values())
    prompts = refusal_counts(traces)
    sides = traces.filter(pl.col("rejected_reason").is_null())["side"].value_counts().sort("side")
    agreement = agreement_with_rules(traces)
    of_answers = {
        "answers_accepted_share": counts["verified"] / max(answers, 1),
        "answers_cut_off_share": counts.get("cut_off", 0) / max(answers, 1),
    }
    return {
        "prompts": traces.height,
        "answers": answers,
        "accepted_share": prompts.get("accepted", 0) / traces.height,
        **(of_answers if answers else {}),
        **{f"accepted_{side}": count for side, count in sides.iter_rows()},
        **({} if agreement is None else {"agreement_with_rules": agreement[0]}),
        **{
            f"total_{column}": total(traces, column)
            for column in ("prompt_tokens", "completion_tokens", "cost_usd")
            if answers and traces.filter(pl.col("attempts") > 0)[column].null_count() == 0
        },
    }


def teaching_report(traces: pl.DataFrame) -> str:
    """The same as a page (Markdown): verdicts, cost, and the agreement table with the embedded policy."""
    teacher = traces["teacher"][0]
    answers = answer_counts(traces)
    lines = [
        f"Teacher: {teacher_in_words(teacher)}.",
        "",
        markdown_table(["verdict", "prompts", "share"], _shares(refusal_counts(traces))),
        "",
        "All answers, including those to prompts that were asked again:",
        "",
        markdown_table(["verdict", "answers", "share"], _shares(answers)),
        "",
    ]
    if teacher == RulesTeacher.name:
        return "\n".join([*lines, "Cost: none; no server was asked."])
    lines.append(
        f"Cut off at the token limit: {answers.get('cut_off', 0)} of {sum(answers.values())} answers. "
        f"Cost: {total_in_words(traces, 'cost_usd')}; tokens read: {total_in_words(traces, 'prompt_tokens')}, "
        f"written: {total_in_words(traces, 'completion_tokens')}."
    )
    agreement = agreement_with_rules(traces)
    if agreement is not None:
        share, table = agreement
        rows = [[side, *map(str, row)] for side, row in zip(SIDES, table, strict=True)]
        lines += [
            "",
            f"Same action as the embedded policy: {share:.1%} of the accepted answers.",
            "",
            markdown_table(["policy \\ teacher", *SIDES], rows),
        ]
    return "\n".join(lines)


def _shares(counts: dict[str, int]) -> list[list[str]]:
    everything = max(sum(counts.values()), 1)
    return [[name, str(count), f"{count / everything:.1%}"] for name, count in counts.items()]
