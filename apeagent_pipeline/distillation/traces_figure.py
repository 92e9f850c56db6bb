"""The picture of a teaching: what the teacher decided, what became of its answers, and what they took."""

import polars as pl

from apeagent_pipeline.distillation.canary_words import SIDES
from apeagent_pipeline.distillation.traces import refusal_counts
from apeagent_pipeline.distillation.traces_report import total_in_words
from apeagent_pipeline.reporting.figures import new_figure, png

_BARS = "#88a7c8"


def teaching_figure(traces: pl.DataFrame) -> bytes:
    """Actions of the accepted answers, verdicts on all prompts, tokens of each prompt and their cost.

    Args:
        traces: TRACES_SCHEMA.

    Returns:
        A PNG. Tokens that nobody counted, those of the embedded policy, are told as such.
    """
    figure, axes = new_figure(1, 3, size=(11, 2.8))
    actions, verdicts, tokens = axes[0]
    accepted = traces.filter(pl.col("rejected_reason").is_null())
    drawn = actions.bar(SIDES, [accepted.filter(pl.col("side") == side).height for side in SIDES], color=_BARS)
    actions.bar_label(drawn)
    actions.set_title("actions of accepted answers")
    counts = refusal_counts(traces)
    drawn = verdicts.barh(list(counts)[::-1], list(counts.values())[::-1], color=_BARS)
    verdicts.bar_label(drawn, padding=2)
    verdicts.set_title("verdicts on prompts")
    known = traces.filter(pl.col("attempts") > 0).drop_nulls(["prompt_tokens", "completion_tokens"])
    if known.is_empty():
        tokens.text(0.5, 0.5, "nobody counted tokens", ha="center", va="center", transform=tokens.transAxes)
        tokens.set_axis_off()
    else:
        for name, label in (("prompt_tokens", "read"), ("completion_tokens", "written")):
            tokens.hist(known[name], bins=40, histtype="step", label=f"{label}: {known[name].sum():,} in all")
        tokens.set_xlabel("tokens of a prompt's answers")
        tokens.legend(frameon=False, fontsize=8)
    tokens.set_title(f"tokens; cost: {total_in_words(traces, 'cost_usd')}")
    for axis in axes[0]:
        axis.title.set_fontsize(9)
        axis.margins(x=0.15, y=0.15)
    return png(figure)
