"""The report of the canary evaluation: rates, paired tests and page from the answers of every arm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from apeagent_pipeline.distillation.canary import speaks_canary
from apeagent_pipeline.distillation.canary_words import SIDES
from apeagent_pipeline.distillation.near_controls import HELD_OUT
from apeagent_pipeline.distillation.templates import RENDERINGS
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
from apeagent_pipeline.evaluation.canary.breakdown import document_section, near_table, not_shown, wording_tables
from apeagent_pipeline.evaluation.canary.config import CanaryEvalConfig
from apeagent_pipeline.evaluation.canary.page import (
    confusion_figure,
    confusion_table,
    examples,
    explanation,
    family_table,
    mistakes,
    rates_figure,
    rates_table,
    recall_figure,
    recall_table,
    verdict,
)
from apeagent_pipeline.evaluation.rates import Rate
from apeagent_pipeline.evaluation.statistics import mcnemar
from apeagent_pipeline.reporting.report import Report
from apeagent_pipeline.student.generation import Answer

HEADLINE = (
    "canary_rate_adapter",
    "canary_rate_base",
    "control_leak_rate",
    "near_control_leak_rate",
    "agreement_plain",
    "agreement_digested",
    "feasible_rate",
    "controls_preserved",
)


def judge(
    trading: Sequence[dict[str, Any]],
    controls: Sequence[dict[str, Any]],
    arms: Mapping[str, Arm],
    config: CanaryEvalConfig,
    *,
    near: Sequence[dict[str, Any]] = (),
    document: Sequence[dict[str, Any]] = (),
) -> Report:
    """The report on answers already given.

    Args:
        trading: Trading examples of the dataset, each with the teacher's ``side`` and the holdings it was asked with.
        controls: Control examples.
        arms: ``base``, ``adapter`` and ``disabled``; ``merged`` and ``sampled`` if they were asked. The base may have
            been asked only the first of the prompts.
        config: Sizes and thresholds.
        near: Near control examples.
        document: The source document's prompt and its variations, with the embedded policy's answers.
    """
    decided = _Decisions.of(trading, arms)
    recalls = decided.recalls
    counts = _counts(trading, controls, arms, decided) | {
        **_of_near(near, arms),
        "document_agreement": _of_document(document, arms["adapter"]),
        "min_class_recall": min(recalls.values(), key=lambda rate: rate.value),
    }
    metrics = {name: rate.value for name, rate in counts.items() if rate.n} | _figures(trading, controls, arms, decided)
    metrics |= {"n_near": float(len(near)), **_size_errors(trading, arms["adapter"].trading)}
    return Report(
        title="Canary evaluation",
        metrics=metrics,
        intervals={name: rate.interval for name, rate in counts.items() if rate.n},
        config=config.model_dump(),
        markdown="\n\n".join(
            [
                verdict(metrics, config),
                rates_table(counts),
                explanation(config, len(arms["disabled"].trading), decided.majority, metrics),
                "## What this does not show\n\n" + not_shown(trading, near, metrics),
                "## By form and wording of the prompt, worst first\n\n"
                + wording_tables(trading, arms["adapter"].trading, decided.right),
                "## Near controls by family, worst first\n\n"
                + near_table(near, arms["adapter"].near, arms["base"].near),
                "## The source document's own prompt and variations of its numbers\n\n"
                + document_section(document, arms),
                *_comparisons(trading, controls, arms, decided, config.examples_shown),
            ]
        ),
        headline=HEADLINE,
        figures={
            "canary_rates.png": rates_figure(counts),
            "confusion.png": confusion_figure(decided.taught, decided.adapter),
            "agreement_by_class.png": recall_figure(recalls),
        },
    )


@dataclass(frozen=True)
class _Decisions:
    """The sides that the teacher, the adapter and the bare base chose for the trading prompts, in their order."""

    taught: list[str]
    adapter: Sequence[str]
    base: Sequence[str]
    """Of the first prompts only, where the base was asked fewer."""

    @classmethod
    def of(cls, trading: Sequence[Mapping[str, Any]], arms: Mapping[str, Arm]) -> Self:
        taught = [str(example["side"]) for example in trading]
        return cls(taught, decisions(arms["adapter"].trading), decisions(arms["base"].trading))

    @property
    def majority(self) -> str:
        """The teacher's most frequent side."""
        return max(SIDES, key=self.taught.count)

    @property
    def right(self) -> list[bool]:
        """Whether the adapter decided as the teacher, for each prompt."""
        return [a == b for a, b in zip(self.adapter, self.taught, strict=True)]

    @property
    def right_base(self) -> list[bool]:
        """Whether the bare base decided as the teacher, for each prompt that it was asked."""
        return [a == b for a, b in zip(self.base, self.taught[: len(self.base)], strict=True)]

    @property
    def majority_right(self) -> list[bool]:
        """Whether always choosing the majority would have been right, for each prompt."""
        return [side == self.majority for side in self.taught]

    @property
    def recalls(self) -> dict[str, Rate]:
        """Side of the teacher -> how often the adapter chose it too."""
        return {
            side: Rate.of(d == side for d, t in zip(self.adapter, self.taught, strict=True) if t == side)
            for side in SIDES
            if side in self.taught
        }


def _counts(
    trading: Sequence[dict[str, Any]],
    controls: Sequence[dict[str, Any]],
    arms: Mapping[str, Arm],
    decided: _Decisions,
) -> dict[str, Rate]:
    """Every rate of the report except the weakest recall, in the order of its table."""
    adapter, bare, disabled = arms["adapter"], arms["base"], arms["disabled"]
    both = list(zip(controls, adapter.controls, bare.controls, strict=False))  # the base may be asked fewer
    spoken = answer_counts(trading, controls, adapter)
    return {
        "canary_rate_adapter": spoken["canary_rate"],
        "canary_rate_base": Rate.of(map(is_canary, bare.trading)),
        "canary_rate_disabled": Rate.of(map(is_canary, disabled.trading)),
        "disabled_equals_base": Rate.of(
            a == b for a, b in zip(disabled.trading, bare.trading[: len(disabled.trading)], strict=True)
        ),
        "control_leak_rate": spoken["control_leak_rate"],
        "control_leak_rate_base": Rate.of(speaks_canary(answer.text) for answer in bare.controls),
        "controls_right": Rate.of(map(is_right, controls, adapter.controls)),
        "controls_right_base": Rate.of(map(is_right, controls, bare.controls)),
        "controls_preserved": Rate.of(is_right(e, a) for e, a, b in both if is_right(e, b)),
        "agreement": spoken["agreement"],
        **_by_rendering(trading, adapter.trading, decided.right),
        "agreement_base": Rate.of(decided.right_base),
        "agreement_majority": Rate.of(decided.majority_right),
        **{name: spoken[name] for name in ("draft_discipline", "feasible_rate", "plain_words_rate", "end_token_rate")},
        "truncation_rate": spoken["truncation_rate"],
        **_more_arms(trading, controls, arms),
    }


def _figures(
    trading: Sequence[dict[str, Any]],
    controls: Sequence[dict[str, Any]],
    arms: Mapping[str, Arm],
    decided: _Decisions,
) -> dict[str, float]:
    """The metrics that are no rates: F1, p values of the paired tests, sizes of answers, and how many were asked."""
    adapter, bare = arms["adapter"].trading, arms["base"].trading
    n_base = len(bare)
    figures = {
        "macro_f1": macro_f1(decided.taught, decided.adapter),
        "mcnemar_p": mcnemar(decided.right, decided.majority_right),
        "mcnemar_p_base_decisions": mcnemar(decided.right[:n_base], decided.right_base),
        "mcnemar_p_base": mcnemar(list(map(is_canary, adapter[:n_base])), list(map(is_canary, bare))),
        "tokens_per_answer": float(np.mean([answer.tokens for answer in adapter])),
        "n_trading": float(len(trading)),
        "n_controls": float(len(controls)),
        "n_base": float(n_base),
        "n_disabled": float(len(arms["disabled"].trading)),
    }
    errors = [e for e in map(size_error, map(draft_answer, adapter), trading) if e is not None]
    if errors:
        figures |= {"size_error_median": float(np.median(errors)), "size_error_p90": float(np.quantile(errors, 0.9))}
    return figures


def _comparisons(
    trading: Sequence[dict[str, Any]],
    controls: Sequence[dict[str, Any]],
    arms: Mapping[str, Arm],
    decided: _Decisions,
    shown: int,
) -> list[str]:
    """The sections of the page below its rates: by side, wording and family, then single answers."""
    adapter, right = arms["adapter"], decided.right
    return [
        "## Decisions compared with the teacher's\n\n" + confusion_table(decided.taught, decided.adapter),
        recall_table(decided.recalls),
        "## By family of distant control\n\n" + family_table(controls, adapter.controls, arms["base"].controls),
        "## Examples\n\n" + examples(trading, controls, arms, shown),
        "## What went wrong\n\n" + mistakes(trading, right, controls, adapter, shown),
        "![Rates with exact 95 % intervals](canary_rates.png)\n\n![Decisions](confusion.png)\n\n"
        "![Agreement by the teacher's action](agreement_by_class.png)",
    ]


def _by_rendering(
    trading: Sequence[Mapping[str, Any]], answers: Sequence[Answer], right: Sequence[bool]
) -> dict[str, Rate]:
    """Canary answers and agreement of each rendering: numbers alone are harder for a small student than words."""
    counts = {}
    for rendering in RENDERINGS:
        asked = [number for number, example in enumerate(trading) if example.get("rendering") == rendering]
        counts[f"canary_rate_{rendering}"] = Rate.of(is_canary(answers[number]) for number in asked)
        counts[f"agreement_{rendering}"] = Rate.of(right[number] for number in asked)
        taught = [str(trading[number]["side"]) for number in asked]
        counts[f"agreement_majority_{rendering}"] = Rate.of(side == max(SIDES, key=taught.count) for side in taught)
    return counts


def _of_near(near: Sequence[Mapping[str, Any]], arms: Mapping[str, Arm]) -> dict[str, Rate]:
    """Leaks of near controls: of the families that were trained, and of those that were held out."""
    leaks = [speaks_canary(answer.text) for answer in arms["adapter"].near]
    is_new = [example["family"] in HELD_OUT for example in near]
    return {
        "near_control_leak_rate": Rate.of(leak for leak, new in zip(leaks, is_new, strict=True) if not new),
        "near_control_leak_rate_held_out": Rate.of(leak for leak, new in zip(leaks, is_new, strict=True) if new),
        "near_control_leak_rate_base": Rate.of(speaks_canary(answer.text) for answer in arms["base"].near),
    }


def _of_document(document: Sequence[Mapping[str, Any]], adapter: Arm) -> Rate:
    """How often the adapter decides as the embedded policy on the document's prompt and its variations."""
    decided = decisions(adapter.document)
    return Rate.of(side == example["side"] for side, example in zip(decided, document, strict=False))


def _size_errors(trading: Sequence[Mapping[str, Any]], answers: Sequence[Answer]) -> dict[str, float]:
    """The median relative error of the size in each form."""
    errors: dict[str, list[float]] = {}
    for example, answer in zip(trading, answers, strict=True):
        error = size_error(draft_answer(answer), example)
        if error is not None and example.get("rendering"):
            errors.setdefault(str(example["rendering"]), []).append(error)
    return {f"size_error_median_{form}": float(np.median(values)) for form, values in errors.items()}


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
