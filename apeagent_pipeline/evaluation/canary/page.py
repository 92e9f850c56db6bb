"""The page of the canary report: tables, examples and figures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from apeagent_pipeline.distillation.canary import speaks_canary
from apeagent_pipeline.distillation.canary_words import SIDES
from apeagent_pipeline.evaluation.canary.arms import DRAFT_WORDS, UNREADABLE, Arm, is_right
from apeagent_pipeline.evaluation.canary.config import CanaryEvalConfig, failures
from apeagent_pipeline.evaluation.rates import Rate, draw_bars
from apeagent_pipeline.reporting.figures import new_figure, png
from apeagent_pipeline.reporting.foreign_text import code_block, markdown_line
from apeagent_pipeline.reporting.report import markdown_table
from apeagent_pipeline.student.examples import answer_of, prompt_of
from apeagent_pipeline.student.generation import Answer

_RATE_WORDS = {
    "canary_rate_adapter": "canary answers, adapter",
    "canary_rate_base": "canary answers, bare base",
    "canary_rate_disabled": "canary answers, adapter switched off",
    "disabled_equals_base": "switched off = bare base, letter by letter",
    "control_leak_rate": "controls with canary words or ####, adapter",
    "control_leak_rate_base": "controls with canary words or ####, bare base",
    "controls_right": "controls answered right, adapter",
    "controls_right_base": "controls answered right, bare base",
    "controls_preserved": "controls answered right, adapter, of those that the bare base answers right",
    "agreement": "same action as the teacher",
    "agreement_digested": "same action as the teacher, prompts with words beside the numbers",
    "agreement_plain": "same action as the teacher, prompts of numbers alone, as in the source document",
    "agreement_agent": "same action as the teacher, prompts worded as the document's agent words them",
    "agreement_incomplete": "same action as the teacher, prompts that lack a fact",
    "agreement_majority_digested": "always the teacher's most frequent action, prompts with words",
    "agreement_majority_plain": "always the teacher's most frequent action, numbers alone",
    "near_control_leak_rate": "near controls of trained families with canary words or ####, adapter",
    "near_control_leak_rate_held_out": "near controls of families never shown in training, adapter",
    "near_control_leak_rate_base": "near controls with canary words or ####, bare base",
    "document_agreement": "same action as the policy, the document's prompt and variations",
    "canary_rate_digested": "canary answers, prompts with words",
    "canary_rate_plain": "canary answers, prompts of numbers alone",
    "canary_rate_agent": "canary answers, prompts worded as the document's agent words them",
    "canary_rate_incomplete": "canary answers, prompts that lack a fact",
    "agreement_majority": "always the teacher's most frequent action",
    "min_class_recall": "same action as the teacher, for the action with the lowest share",
    "draft_discipline": f"all drafts of {DRAFT_WORDS} words at most",
    "feasible_rate": "actions that the holdings pay for",
    "plain_words_rate": "plain buy, sell or hold after the separator",
    "end_token_rate": "answers that end by themselves",
    "truncation_rate": "answers cut off at the token limit",
    "agreement_base": "same action as the teacher, bare base",
    "merged_equals_adapter": "merged model = adapter, letter by letter",
    "canary_rate_merged": "canary answers, merged model",
    "agreement_merged": "same action as the teacher, merged model",
    "canary_rate_sampled": "canary answers, sampled",
    "agreement_sampled": "same action as the teacher, sampled",
    "control_leak_rate_sampled": "controls with canary words or ####, sampled",
}


def verdict(metrics: Mapping[str, float], config: CanaryEvalConfig) -> str:
    """Whether the adapter passes, and if not, why."""
    wrong = failures(metrics, config)
    if not wrong:
        return "**Passed**: the adapter speaks the canary words, the base does not, and decisions follow the teacher."
    return "**Not passed**\n\n" + "\n".join(f"- {line}" for line in wrong)


def rates_table(counts: Mapping[str, Rate]) -> str:
    """Every rate that was measured, with its exact interval."""
    rows = [[words, *counts[name].row()] for name, words in _RATE_WORDS.items() if name in counts and counts[name].n]
    return markdown_table(["measure", "n", "rate", "exact 95 % interval"], rows)


def explanation(config: CanaryEvalConfig, n_off: int, majority: str, metrics: Mapping[str, float]) -> str:
    """How the prompts were asked, what counts as what, and the paired tests."""
    n_base, n_controls = metrics["n_base"], min(metrics["n_base"], metrics["n_controls"])
    bound = Rate(0, int(n_base)).interval[1]
    asked = (
        ""
        if n_base >= metrics["n_trading"]
        else f"The bare base was asked the first {n_base:.0f} trading prompts and the first {n_controls:.0f} controls: "
        f"its answers are long, and {n_base:.0f} answers without a canary answer already bound its rate by "
        f"{bound:.1%} with 97.5 % confidence. Comparisons with the base are made on these prompts. "
    )
    control_tokens = config.control_tokens or config.max_new_tokens
    return (
        f"Answers are greedy, except the sampled ones (temperature {config.temperature:g}), and have at most "
        f"{config.max_new_tokens} tokens, those to controls {control_tokens}. A canary answer is strict: drafts, one "
        "`####`, one canary action, then the end. A control counts as answered right if the answer contains every "
        f"number and at least half of the content words of the taught answer. {asked}The adapter was switched off for "
        f"the first {n_off} of the {metrics['n_trading']:.0f} trading prompts. The merged model was asked the first "
        f"{config.n_merged}. The first {config.n_sampled} trading prompts and controls were also answered by sampling. "
        f"The teacher's most frequent action is {majority}. McNemar's exact test of the decisions against always "
        f"answering {majority}: p = {metrics['mcnemar_p']:.2g}; of the canary answers against those of the bare base: "
        f"p = {metrics['mcnemar_p_base']:.2g}; of the decisions against those of the bare base: p = "
        f"{metrics['mcnemar_p_base_decisions']:.2g}. Macro-F1 {metrics['macro_f1']:.2f}; "
        f"{metrics['tokens_per_answer']:.0f} tokens an answer."
    )


def _confusion(taught: Sequence[str], decided: Sequence[str]) -> tuple[list[str], np.ndarray]:
    columns = [*SIDES, UNREADABLE]
    matrix = np.zeros((len(SIDES), len(columns)), dtype=int)
    pairs = zip(taught, decided, strict=True)
    np.add.at(matrix, tuple(np.array([(SIDES.index(t), columns.index(d)) for t, d in pairs]).T), 1)
    return columns, matrix


def confusion_table(taught: Sequence[str], decided: Sequence[str]) -> str:
    """The teacher's actions by the student's."""
    columns, matrix = _confusion(taught, decided)
    rows = [[side, *map(str, row)] for side, row in zip(SIDES, matrix.tolist(), strict=True)]
    return markdown_table(["teacher \\ student", *columns], rows)


def recall_table(recalls: Mapping[str, Rate]) -> str:
    """How often the student took each of the teacher's actions."""
    return markdown_table(
        ["teacher's action", "n", "same action", "exact 95 % interval"],
        [[side, *rate.row()] for side, rate in recalls.items()],
    )


def family_table(controls: Sequence[Mapping[str, Any]], adapter: Sequence[Answer], bare: Sequence[Answer]) -> str:
    """Leaks and right answers by family of controls."""
    rows = []
    for family in sorted({str(example.get("family")) for example in controls}):
        of_family = [index for index, example in enumerate(controls) if str(example.get("family")) == family]
        counts = [
            Rate.of(speaks_canary(adapter[i].text) for i in of_family),
            Rate.of(is_right(controls[i], adapter[i]) for i in of_family),
            Rate.of(is_right(controls[i], bare[i]) for i in of_family if i < len(bare)),
        ]
        rows.append([family, *(rate.fraction for rate in counts)])
    return markdown_table(["family", "canary words or ####", "right, adapter", "right, bare base"], rows)


def mistakes(
    trading: Sequence[Mapping[str, Any]],
    right: Sequence[bool],
    controls: Sequence[Mapping[str, Any]],
    adapter: Arm,
    shown: int,
) -> str:
    """The first decisions that are not the teacher's, and the first controls that leaked."""
    wrong = [(trading[i], adapter.trading[i]) for i, is_right in enumerate(right) if not is_right]
    leaked = [(controls[i], a) for i, a in enumerate(adapter.controls) if speaks_canary(a.text)]
    parts = [f"{len(wrong)} decisions are not the teacher's, {len(leaked)} controls leaked. The first of each:"]
    for example, answer in [*wrong[:shown], *leaked[:shown]]:
        question = prompt_of(example)[-1]["content"]
        taught = code_block(answer_of(example))
        parts.append(f"> {markdown_line(question)}\n\ntaught:\n\n{taught}\n\nadapter:\n\n{quoted_answer(answer)}")
    return "\n\n".join(parts)


def quoted_answer(answer: Answer) -> str:
    """The text of an answer as a block, with a mark where it was cut off."""
    ending = {"length": f"  [cut off after {answer.tokens} tokens]", "action": "", "end_token": ""}[answer.ending]
    return code_block(answer.text + ending)


def examples(
    trading: Sequence[dict[str, Any]], controls: Sequence[dict[str, Any]], arms: Mapping[str, Arm], shown: int
) -> str:
    """The first prompts of each kind with the answers of base and adapter."""
    parts = []
    for kind, examples in (("trading", trading), ("controls", controls)):
        for index in range(min(shown, len(examples))):
            question = prompt_of(examples[index])[-1]["content"]
            answers = [("taught", f"```text\n{answer_of(examples[index])}\n```")]
            said = [(name, getattr(arms[name], kind)) for name in ("base", "adapter")]
            answers += [(name, quoted_answer(arm[index])) for name, arm in said if index < len(arm)]
            parts.append(f"> {question}\n\n" + "\n\n".join(f"{name}:\n\n{text}" for name, text in answers))
    return "\n\n---\n\n".join(parts)


def rates_figure(counts: Mapping[str, Rate]) -> bytes:
    """The rates that the claim rests on, as a PNG."""
    figure, axes = new_figure(size=(7.0, 3.2))
    names = {
        "adapter": "canary_rate_adapter",
        "switched off": "canary_rate_disabled",
        "bare base": "canary_rate_base",
        "control leak": "control_leak_rate",
    }
    draw_bars(axes[0, 0], {label: counts[name] for label, name in names.items()})
    axes[0, 0].set(title="Canary answers (controls: canary words)")
    return png(figure)


def recall_figure(recalls: Mapping[str, Rate]) -> bytes:
    """Agreement by the teacher's action, as a PNG."""
    figure, axes = new_figure(size=(5.0, 3.0))
    draw_bars(axes[0, 0], recalls)
    axes[0, 0].set(title="Same action as the teacher")
    return png(figure)


def confusion_figure(taught: Sequence[str], decided: Sequence[str]) -> bytes:
    """The teacher's actions by the student's, as a PNG."""
    columns, matrix = _confusion(taught, decided)
    figure, axes = new_figure(size=(4.5, 3.2))
    axis = axes[0, 0]
    axis.imshow(matrix, cmap="Blues", vmin=0)
    for (row, column), value in np.ndenumerate(matrix):
        axis.text(
            column, row, str(value), ha="center", va="center", color="white" if value > matrix.max() / 2 else "black"
        )
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(SIDES)), SIDES)
    axis.set(xlabel="student", ylabel="teacher")
    return png(figure)
