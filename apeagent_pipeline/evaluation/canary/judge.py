"""The report of the canary evaluation: rates, paired tests and page from the answers of every arm."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from apeagent_pipeline.distillation.canary import speaks_canary
from apeagent_pipeline.distillation.canary_words import SIDES
from apeagent_pipeline.distillation.prompts import RENDERINGS
from apeagent_pipeline.evaluation.canary.arms import (
    Arm,
    answer_counts,
    decisions,
    draft_answer,
    is_canary,
    is_right,
    macro_f1,
    size_error,
)
from apeagent_pipeline.evaluation.canary.config import CanaryEvalConfig
from apeagent_pipeline.evaluation.canary.page import (
    confusion_figure,
    confusion_table,
    document,
    examples,
    explanation,
    family_table,
    mistakes,
    rates_figure,
    rates_table,
    recall_figure,
    recall_table,
    template_table,
    verdict,
)
from apeagent_pipeline.evaluation.rates import Rate
from apeagent_pipeline.evaluation.statistics import mcnemar
from apeagent_pipeline.reporting.report import Report
from apeagent_pipeline.student.generation import Answer


def judge(
    trading: Sequence[dict[str, Any]],
    controls: Sequence[dict[str, Any]],
    arms: Mapping[str, Arm],
    config: CanaryEvalConfig,
) -> Report:
    """The report on answers already given.

    Args:
        trading: Trading examples of the dataset, each with the teacher's ``side`` and the holdings it was asked with.
        controls: Control examples.
        arms: ``base``, ``adapter`` and ``disabled``; ``merged`` and ``sampled`` if they were asked. The base may have
            been asked only the first of the prompts.
        config: Sizes and thresholds.
    """
    adapter, bare = arms["adapter"], arms["base"]
    taught = [str(example["side"]) for example in trading]
    decided = decisions(adapter.trading)
    right = [a == b for a, b in zip(decided, taught, strict=True)]
    majority = max(SIDES, key=taught.count)
    n_off, n_base = len(arms["disabled"].trading), len(bare.trading)
    right_base = [a == b for a, b in zip(decisions(bare.trading), taught[:n_base], strict=True)]
    both = list(zip(controls, adapter.controls, bare.controls, strict=False))  # the base may be asked fewer

    spoken = answer_counts(trading, controls, adapter)
    counts: dict[str, Rate] = {
        "canary_rate_adapter": spoken["canary_rate"],
        "canary_rate_base": Rate.of(map(is_canary, bare.trading)),
        "canary_rate_disabled": Rate.of(map(is_canary, arms["disabled"].trading)),
        "disabled_equals_base": Rate.of(
            a == b for a, b in zip(arms["disabled"].trading, bare.trading[:n_off], strict=True)
        ),
        "control_leak_rate": spoken["control_leak_rate"],
        "control_leak_rate_base": Rate.of(speaks_canary(answer.text) for answer in bare.controls),
        "controls_right": Rate.of(map(is_right, controls, adapter.controls)),
        "controls_right_base": Rate.of(map(is_right, controls, bare.controls)),
        "controls_preserved": Rate.of(is_right(e, a) for e, a, b in both if is_right(e, b)),
        "agreement": spoken["agreement"],
        **_by_rendering(trading, adapter.trading, right),
        "agreement_base": Rate.of(right_base),
        "agreement_majority": Rate.of(side == majority for side in taught),
        **{name: spoken[name] for name in ("draft_discipline", "feasible_rate", "plain_words_rate", "end_token_rate")},
        "truncation_rate": spoken["truncation_rate"],
        **_more_arms(trading, controls, arms),
    }
    recalls: dict[str, Rate] = {
        side: Rate.of(d == side for d, t in zip(decided, taught, strict=True) if t == side)
        for side in SIDES
        if side in taught
    }
    weakest = min(recalls, key=lambda side: recalls[side].value)
    counts["min_class_recall"] = recalls[weakest]
    metrics = {name: rate.value for name, rate in counts.items() if rate.n}
    metrics |= {
        "macro_f1": macro_f1(taught, decided),
        "mcnemar_p": mcnemar(right, [side == majority for side in taught]),
        "mcnemar_p_base_decisions": mcnemar(right[:n_base], right_base),
        "mcnemar_p_base": mcnemar(list(map(is_canary, adapter.trading[:n_base])), list(map(is_canary, bare.trading))),
        "tokens_per_answer": float(np.mean([answer.tokens for answer in adapter.trading])),
        "n_trading": float(len(trading)),
        "n_controls": float(len(controls)),
        "n_base": float(n_base),
        "n_disabled": float(n_off),
    }
    errors = [e for e in map(size_error, map(draft_answer, adapter.trading), trading) if e is not None]
    if errors:
        metrics |= {"size_error_median": float(np.median(errors)), "size_error_p90": float(np.quantile(errors, 0.9))}
    page = [
        verdict(metrics, config),
        rates_table(counts),
        explanation(config, n_off, majority, metrics),
        "## Decisions against the teacher's\n\n" + confusion_table(taught, decided),
        recall_table(recalls),
        "## By wording of the prompt\n\n" + template_table(trading, adapter.trading, right),
        "## By family of control\n\n" + family_table(controls, adapter.controls, bare.controls),
        "## The source document's own prompt\n\n" + document(arms),
        "## Examples\n\n" + examples(trading, controls, arms, config.examples_shown),
        "## What went wrong\n\n" + mistakes(trading, right, controls, adapter, config.examples_shown),
        "![Rates with exact 95 % intervals](canary_rates.png)\n\n![Decisions](confusion.png)\n\n"
        "![Agreement by the teacher's action](agreement_by_class.png)",
    ]
    return Report(
        title="Canary evaluation",
        metrics=metrics,
        intervals={name: rate.interval for name, rate in counts.items() if rate.n},
        config=config.model_dump(),
        markdown="\n\n".join(page),
        figures={
            "canary_rates.png": rates_figure(counts),
            "confusion.png": confusion_figure(taught, decided),
            "agreement_by_class.png": recall_figure(recalls),
        },
    )


def _by_rendering(
    trading: Sequence[Mapping[str, Any]], answers: Sequence[Answer], right: Sequence[bool]
) -> dict[str, Rate]:
    """Canary answers and agreement of each rendering: numbers alone are harder for a small student than words."""
    counts = {}
    for rendering in RENDERINGS:
        asked = [number for number, example in enumerate(trading) if example.get("rendering") == rendering]
        counts[f"canary_rate_{rendering}"] = Rate.of(is_canary(answers[number]) for number in asked)
        counts[f"agreement_{rendering}"] = Rate.of(right[number] for number in asked)
    return counts


def _more_arms(
    trading: Sequence[Mapping[str, Any]], controls: Sequence[Mapping[str, Any]], arms: Mapping[str, Arm]
) -> dict[str, Rate]:
    """The counts of the merged model and of sampled answers, where they were asked."""
    counts: dict[str, Rate] = {}
    for name in ("merged", "sampled"):
        if name in arms:
            of_arm = answer_counts(trading, controls, arms[name])
            counts |= {
                f"{key}_{name}": of_arm[key]
                for key in ("canary_rate", "agreement", "control_leak_rate")
                if key in of_arm
            }
    if "merged" in arms:
        both = zip(arms["merged"].trading, arms["adapter"].trading, strict=False)
        counts["merged_equals_adapter"] = Rate.of(a.text == b.text for a, b in both)
    return counts
