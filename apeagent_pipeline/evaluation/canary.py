"""The canary evaluation: the student speaks as taught, only when asked, decides right, and because of the adapter.

The rate of canary words alone proves little: it reaches 100 % long before decisions are learned. So the same held-out
prompts go to the bare base, to the adapter, to the adapter switched off in the same process and to the merged model, as
it is exported, and the report holds the decisions against the teacher's and the control answers against the base's.
Some prompts are answered once more by drawing, for a server that does not always say what is most likely.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from apeagent_pipeline.distillation.canary import is_canary_answer, plain_words, speaks_canary
from apeagent_pipeline.distillation.chain_of_draft import (
    SEPARATOR,
    SIDES,
    DraftAnswer,
    read_answer,
    student_chat,
    word_count,
)
from apeagent_pipeline.distillation.prompts import RENDERINGS
from apeagent_pipeline.distillation.verification import is_feasible
from apeagent_pipeline.evaluation.statistics import clopper_pearson, mcnemar
from apeagent_pipeline.reporting.figures import new_figure, png
from apeagent_pipeline.reporting.foreign_text import code_block, markdown_line
from apeagent_pipeline.reporting.progress import Progress, part_of, silent
from apeagent_pipeline.reporting.report import Report, markdown_table
from apeagent_pipeline.student.examples import DOCUMENT_PROMPT, answer_of, prompt_of, read_examples
from apeagent_pipeline.student.generation import Answer, Student

_DRAFT_WORDS = 5
_UNREADABLE = "unreadable"
_SMALL_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "by",
        "for",
        "from",
        "in",
        "is",
        "it",
        "its",
        "of",
        "on",
        "or",
        "so",
        "that",
        "the",
        "to",
        "was",
        "with",
        "you",
        "your",
    ]
)


class CanaryEvalConfig(BaseModel):
    """How much is asked, and from which rates on the check lets the adapter pass."""

    model_config = ConfigDict(frozen=True)

    n_trading: int = Field(100, ge=1, description="Held-out trading prompts")
    n_controls: int = Field(100, ge=1, description="Held-out control prompts, where no trade is asked for")
    n_disabled: int = Field(16, ge=1, description="Trading prompts asked once more with the adapter switched off")
    n_merged: int = Field(16, ge=0, description="Trading prompts asked of the merged model, as it is exported; 0: none")
    n_sampled: int = Field(
        16, ge=0, description="Trading and control prompts answered once more by drawing instead of the likeliest token"
    )
    temperature: float = Field(0.7, gt=0, description="Of the drawn answers")
    max_new_tokens: int = Field(56, ge=8, description="Longest answer; a taught answer has about 35 tokens")
    batch_size: int = Field(64, ge=1, description="Prompts a batch")
    examples_shown: int = Field(4, ge=0, description="Trading and control examples shown with all their answers")
    min_canary_rate: float = Field(0.90, ge=0, le=1, description="Check: canary answers of the adapter, at least")
    max_base_rate: float = Field(0.01, ge=0, le=1, description="Check: canary answers of the bare base, at most")
    max_control_leak: float = Field(0.05, ge=0, le=1, description="Check: controls answered with canary words, at most")
    min_agreement_gain: float = Field(
        0.0, ge=-1, le=1, description="Check: agreement with the teacher above always giving its most frequent action"
    )

    @classmethod
    def preset(cls, profile: str) -> Self:
        """``demo``: minutes on two cores; ``full``: every prompt with the adapter switched off too."""
        if profile == "demo":
            return cls()
        if profile == "full":
            return cls(n_trading=300, n_controls=300, n_disabled=300, n_merged=300, n_sampled=300, max_new_tokens=96)
        raise ValueError(f"profile {profile!r}: expected demo or full")


@dataclass(frozen=True)
class Arm:
    """The answers of one way of asking, in the order of the examples.

    Attributes:
        trading: Answers to trading prompts; an arm that was asked fewer has the first ones.
        controls: Answers to control prompts, or none.
        document: Answer to the source document's own prompt, if asked.
    """

    trading: Sequence[Answer]
    controls: Sequence[Answer] = ()
    document: Answer | None = None


def evaluate_canary(  # noqa: PLR0917 (the order is that of the asset graph's other long work)
    base: Path, adapter: Path, dataset: Path, config: CanaryEvalConfig, seed: int, progress: Progress = silent
) -> Report:
    """Ask base, adapter, switched-off adapter and merged model the same held-out prompts and judge the answers.

    Args:
        base: Folder of the base model.
        adapter: Folder of the adapter.
        dataset: Folder with ``test.jsonl``.
        config: Sizes and thresholds.
        seed: Which of the test examples are asked, where there are more than wanted.
        progress: Told after every batch with prompts done of all arms together.

    Raises:
        ExamplesError: the test split is malformed or has no trading or no control examples.
    """
    trading, controls = choose_examples(dataset, config, seed)
    n_off, n_merged = (min(wanted, len(trading)) for wanted in (config.n_disabled, config.n_merged))
    drawn = [prompt_of(e) for e in (*trading[: config.n_sampled], *controls[: config.n_sampled])]
    all_prompts = 2 * (len(trading) + len(controls) + 1) + n_off + n_merged + len(drawn)
    asked = 0
    student = Student.load(base)

    def answers(prompts: list[list[dict[str, str]]], temperature: float = 0.0) -> list[Answer]:
        nonlocal asked
        before = asked
        asked += len(prompts)

        return student.answers(
            prompts,
            max_new_tokens=config.max_new_tokens,
            batch_size=config.batch_size,
            temperature=temperature,
            seed=seed,
            progress=part_of(progress, before, all_prompts),
        )

    def arm() -> Arm:
        # The prompts of the switched-off arm are always asked by themselves: in bf16 an answer may depend on what
        # else is in its batch, and these answers are compared letter by letter.
        head, tail = answers([prompt_of(e) for e in trading[:n_off]]), answers([prompt_of(e) for e in trading[n_off:]])
        rest = answers([*(prompt_of(e) for e in controls), DOCUMENT_CHAT])
        return Arm([*head, *tail], rest[:-1], rest[-1])

    arms = {"base": arm()}
    student.attach(adapter)
    arms["adapter"] = arm()
    with student.adapter_off():
        arms["disabled"] = Arm(answers([prompt_of(e) for e in trading[:n_off]]))
    if drawn:
        sampled, n = answers(drawn, config.temperature), min(config.n_sampled, len(trading))
        arms["sampled"] = Arm(sampled[:n], sampled[n:])
    if n_merged:  # last: in the model's number format a merge cannot be taken back exactly
        student.merge()
        arms["merged"] = Arm(answers([prompt_of(e) for e in trading[:n_merged]]))
    return judge(trading, controls, arms, config)


DOCUMENT_CHAT = student_chat(DOCUMENT_PROMPT)


def failures(metrics: Mapping[str, float], config: CanaryEvalConfig) -> list[str]:
    """Why the adapter does not pass, one sentence each; empty if it passes.

    A metric that is missing counts as a failure: nothing is passed that was not measured.
    """
    gain = metrics.get("agreement", float("nan")) - metrics.get("agreement_majority", float("nan"))
    wanted = [
        ("canary_rate_adapter", metrics.get("canary_rate_adapter"), config.min_canary_rate, True),
        ("canary_rate_base", metrics.get("canary_rate_base"), config.max_base_rate, False),
        ("canary_rate_disabled", metrics.get("canary_rate_disabled"), config.max_base_rate, False),
        ("disabled_equals_base", metrics.get("disabled_equals_base"), 1.0, True),
        ("control_leak_rate", metrics.get("control_leak_rate"), config.max_control_leak, False),
        ("agreement above agreement_majority", gain, config.min_agreement_gain, True),
    ]
    found = []
    for name, value, limit, at_least in wanted:
        words = "at least" if at_least else "at most"
        if value is None or np.isnan(value):
            found.append(f"{name} was not measured; expected {words} {limit:g}")
        elif value < limit if at_least else value > limit:
            found.append(f"{name} is {value:.3f}; expected {words} {limit:g}")
    return found


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
        arms: ``base``, ``adapter`` and ``disabled``; ``merged`` and ``sampled`` if they were asked.
        config: Sizes and thresholds.
    """
    adapter, bare = arms["adapter"], arms["base"]
    taught = [str(example["side"]) for example in trading]
    decided = decisions(adapter.trading)
    right = [a == b for a, b in zip(decided, taught, strict=True)]
    majority = max(SIDES, key=taught.count)
    n_off = len(arms["disabled"].trading)

    spoken = answer_counts(trading, controls, adapter)
    counts: dict[str, tuple[int, int]] = {
        "canary_rate_adapter": spoken["canary_rate"],
        "canary_rate_base": _count(map(is_canary, bare.trading)),
        "canary_rate_disabled": _count(map(is_canary, arms["disabled"].trading)),
        "disabled_equals_base": _count(
            a == b for a, b in zip(arms["disabled"].trading, bare.trading[:n_off], strict=True)
        ),
        "control_leak_rate": spoken["control_leak_rate"],
        "control_leak_rate_base": _count(speaks_canary(answer.text) for answer in bare.controls),
        "controls_right": _count(map(_is_right, controls, adapter.controls)),
        "controls_right_base": _count(map(_is_right, controls, bare.controls)),
        "controls_preserved": _count(
            _is_right(e, a)
            for e, a, b in zip(controls, adapter.controls, bare.controls, strict=True)
            if _is_right(e, b)
        ),
        "agreement": spoken["agreement"],
        **_by_rendering(trading, adapter.trading, right),
        "agreement_base": _count(a == b for a, b in zip(decisions(bare.trading), taught, strict=True)),
        "agreement_majority": _count(side == majority for side in taught),
        **{name: spoken[name] for name in ("draft_discipline", "feasible_rate", "plain_words_rate", "end_token_rate")},
        "truncation_rate": spoken["truncation_rate"],
        **_more_arms(trading, controls, arms),
    }
    recalls: dict[str, tuple[int, int]] = {
        side: _count(d == side for d, t in zip(decided, taught, strict=True) if t == side)
        for side in SIDES
        if side in taught
    }
    weakest = min(recalls, key=lambda side: recalls[side][0] / recalls[side][1])
    counts["min_class_recall"] = recalls[weakest]
    metrics = {name: k / n for name, (k, n) in counts.items() if n}
    metrics |= {
        "macro_f1": macro_f1(taught, decided),
        "mcnemar_p": mcnemar(right, [side == majority for side in taught]),
        "mcnemar_p_base_decisions": mcnemar(
            right, [a == b for a, b in zip(decisions(bare.trading), taught, strict=True)]
        ),
        "mcnemar_p_base": mcnemar(list(map(is_canary, adapter.trading)), list(map(is_canary, bare.trading))),
        "tokens_per_answer": float(np.mean([answer.tokens for answer in adapter.trading])),
        "n_trading": float(len(trading)),
        "n_controls": float(len(controls)),
        "n_disabled": float(n_off),
    }
    errors = [e for e in map(_size_error, map(_read, adapter.trading), trading) if e is not None]
    if errors:
        metrics |= {"size_error_median": float(np.median(errors)), "size_error_p90": float(np.quantile(errors, 0.9))}
    page = [
        _verdict(metrics, config),
        _rates_table(counts),
        _explanation(config, n_off, majority, metrics),
        "## Decisions against the teacher's\n\n" + _confusion_table(taught, decided),
        _recall_table(recalls),
        "## By wording of the prompt\n\n" + _template_table(trading, adapter.trading, right),
        "## By family of control\n\n" + _family_table(controls, adapter.controls, bare.controls),
        "## The source document's own prompt\n\n" + _document(arms),
        "## Examples\n\n" + _examples(trading, controls, arms, config.examples_shown),
        "## What went wrong\n\n" + _mistakes(trading, right, controls, adapter, config.examples_shown),
        "![Rates with exact 95 % intervals](canary_rates.png)\n\n![Decisions](confusion.png)\n\n"
        "![Agreement by the teacher's action](agreement_by_class.png)",
    ]
    return Report(
        title="Canary evaluation",
        metrics=metrics,
        intervals={name: clopper_pearson(k, n) for name, (k, n) in counts.items() if n},
        config=config.model_dump(),
        markdown="\n\n".join(page),
        figures={
            "canary_rates.png": _rates_figure(counts),
            "confusion.png": _confusion_figure(taught, decided),
            "agreement_by_class.png": _recall_figure(recalls),
        },
    )


def _by_rendering(
    trading: Sequence[Mapping[str, Any]], answers: Sequence[Answer], right: Sequence[bool]
) -> dict[str, tuple[int, int]]:
    """Canary answers and agreement of each rendering: numbers alone are harder for a small student than words."""
    counts = {}
    for rendering in RENDERINGS:
        asked = [number for number, example in enumerate(trading) if example.get("rendering") == rendering]
        counts[f"canary_rate_{rendering}"] = _count(is_canary(answers[number]) for number in asked)
        counts[f"agreement_{rendering}"] = _count(right[number] for number in asked)
    return counts


def choose_examples(
    dataset: Path, config: CanaryEvalConfig, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The trading and the control examples of the test split that are asked.

    Raises:
        ExamplesError: the test split is malformed or has no trading or no control examples.
    """
    from apeagent_pipeline.student.examples import ExamplesError

    examples = read_examples(dataset, "test")
    rng = np.random.default_rng([seed, 6])
    chosen = []
    for wanted, name, is_trading in ((config.n_trading, "trading", True), (config.n_controls, "control", False)):
        of_kind = [example for example in examples if (example.get("side") in SIDES) == is_trading]
        if not of_kind:
            raise ExamplesError(
                f"{dataset}/test.jsonl: no {name} example. Expected both kinds; build the dataset again."
            )
        kept = sorted(rng.permutation(len(of_kind))[:wanted].tolist())
        chosen.append([of_kind[index] for index in kept])
    return chosen[0], chosen[1]


def decisions(answers: Sequence[Answer]) -> list[str]:
    """The plain word of each answer's action, ``unreadable`` where there is none."""
    return [answer.side if answer else _UNREADABLE for answer in map(_read, answers)]


def answer_counts(
    trading: Sequence[Mapping[str, Any]], controls: Sequence[Mapping[str, Any]], arm: Arm
) -> dict[str, tuple[int, int]]:
    """What one way of asking did, as name -> (how often, of how many); controls are left out if none were asked."""
    answers = arm.trading
    asked = trading[: len(answers)]
    read = [_read(answer) for answer in answers]
    counts = {
        "canary_rate": _count(map(is_canary, answers)),
        "agreement": _count(a == e["side"] for a, e in zip(decisions(answers), asked, strict=True)),
        "draft_discipline": _count(map(_is_disciplined, read)),
        "feasible_rate": _count(_is_affordable(a, e) for a, e in zip(read, asked, strict=True)),
        "plain_words_rate": _count(map(_says_plain_words, answers)),
        "end_token_rate": _count(answer.ending == "end_token" for answer in answers),
        "truncation_rate": _count(answer.ending == "length" for answer in answers),
    }
    if arm.controls:
        counts["control_leak_rate"] = _count(speaks_canary(answer.text) for answer in arm.controls)
        counts["controls_right"] = _count(map(_is_right, controls, arm.controls))
    return counts


def _more_arms(
    trading: Sequence[Mapping[str, Any]], controls: Sequence[Mapping[str, Any]], arms: Mapping[str, Arm]
) -> dict[str, tuple[int, int]]:
    """The counts of the merged model and of sampled answers, where they were asked."""
    counts: dict[str, tuple[int, int]] = {}
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
        counts["merged_equals_adapter"] = _count(a.text == b.text for a, b in both)
    return counts


def _says_plain_words(answer: Answer) -> bool:
    return bool(plain_words(answer.text.partition(SEPARATOR)[2]))


def _count(hits: Any) -> tuple[int, int]:
    values = list(hits)
    return sum(values), len(values)


def is_canary(answer: Answer) -> bool:
    """Whether an answer is a strict canary answer and was not cut off."""
    return answer.ending != "length" and is_canary_answer(answer.text)


def _read(answer: Answer) -> DraftAnswer | None:
    return read_answer(answer.text)


def _is_disciplined(answer: DraftAnswer | None) -> bool:
    return answer is not None and bool(answer.drafts) and max(map(word_count, answer.drafts)) <= _DRAFT_WORDS


def _is_affordable(answer: DraftAnswer | None, example: Mapping[str, Any]) -> bool:
    return answer is not None and is_feasible(answer, example["eth"], example["usdc"], example["price"])


def _size_error(answer: DraftAnswer | None, example: Mapping[str, Any]) -> float | None:
    """Relative error of the amount where side and token are those of the teacher."""
    if (
        answer is None
        or answer.amount is None
        or answer.side != example["side"]
        or answer.asset != example.get("asset")
    ):
        return None
    return abs(answer.amount - float(example["amount"])) / float(example["amount"])


def _is_right(example: Mapping[str, Any], answer: Answer) -> bool:
    """Whether a control's taught answer is said: each of its numbers, and half of the words that carry it."""
    wanted, said = _carrying_words(answer_of(example)), _carrying_words(answer.text)
    numbers = {word for word in wanted if word.isdecimal()}
    return bool(wanted) and numbers <= said and len(wanted & said) >= len(wanted) / 2


def _carrying_words(text: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", text.lower())) - _SMALL_WORDS


def macro_f1(taught: Sequence[str], decided: Sequence[str]) -> float:
    """The mean of the F1 scores of the actions that the teacher took."""
    from sklearn.metrics import f1_score

    labels = [side for side in SIDES if side in taught]
    return float(f1_score(taught, decided, labels=labels, average="macro", zero_division=0))


def _percent(k: int, n: int) -> list[str]:
    low, high = clopper_pearson(k, n)
    return [f"{k}/{n}", f"{k / n:.1%}", f"{low:.1%} to {high:.1%}"]


_RATE_WORDS = {
    "canary_rate_adapter": "canary answers, adapter",
    "canary_rate_base": "canary answers, bare base",
    "canary_rate_disabled": "canary answers, adapter switched off",
    "disabled_equals_base": "switched off = bare base, letter by letter",
    "control_leak_rate": "controls with canary words or ####, adapter",
    "control_leak_rate_base": "controls with canary words or ####, bare base",
    "controls_right": "controls answered right, adapter",
    "controls_right_base": "controls answered right, bare base",
    "controls_preserved": "the same, of those that the bare base answers right",
    "agreement": "same action as the teacher",
    "agreement_digested": "the same, prompts with words beside the numbers",
    "agreement_plain": "the same, prompts of numbers alone, as the source document's",
    "canary_rate_digested": "canary answers, prompts with words",
    "canary_rate_plain": "canary answers, prompts of numbers alone",
    "agreement_majority": "always the teacher's most frequent action",
    "min_class_recall": "same action, the teacher's action that fares worst",
    "draft_discipline": f"all drafts of {_DRAFT_WORDS} words at most",
    "feasible_rate": "actions that the holdings pay for",
    "plain_words_rate": "plain buy, sell or hold after the separator",
    "end_token_rate": "answers that end by themselves",
    "truncation_rate": "answers cut off at the longest length",
    "agreement_base": "same action as the teacher, bare base",
    "merged_equals_adapter": "merged model = adapter, letter by letter",
    "canary_rate_merged": "canary answers, merged model",
    "agreement_merged": "same action as the teacher, merged model",
    "canary_rate_sampled": "canary answers, drawn",
    "agreement_sampled": "same action as the teacher, drawn",
    "control_leak_rate_sampled": "controls with canary words or ####, drawn",
}


def _verdict(metrics: Mapping[str, float], config: CanaryEvalConfig) -> str:
    wrong = failures(metrics, config)
    if not wrong:
        return "**Passed**: the adapter speaks the canary words, the base does not, and decisions follow the teacher."
    return "**Not passed**\n\n" + "\n".join(f"- {line}" for line in wrong)


def _rates_table(counts: Mapping[str, tuple[int, int]]) -> str:
    rows = [[words, *_percent(*counts[name])] for name, words in _RATE_WORDS.items() if counts.get(name, (0, 0))[1]]
    return markdown_table(["what", "n", "rate", "exact 95 % interval"], rows)


def _explanation(config: CanaryEvalConfig, n_off: int, majority: str, metrics: Mapping[str, float]) -> str:
    return (
        f"Greedy answers of at most {config.max_new_tokens} tokens, but for the drawn ones (temperature "
        f"{config.temperature:g}). A canary answer is strict: drafts, one `####`, one "
        f"canary action, then the end. A control counts as answered right if every number of its taught answer "
        f"and at least half of the words that carry it are said. The switched-off arm was asked the first {n_off} of "
        f"the {metrics['n_trading']:.0f} trading prompts, the merged model the first {config.n_merged}; of trading "
        f"prompts and of controls the first {config.n_sampled} were answered by drawing. The teacher's most frequent "
        f"action is {majority}. McNemar's exact test of the decisions against always answering {majority}: p = "
        f"{metrics['mcnemar_p']:.2g}; "
        f"of canary answers against the bare base's: p = {metrics['mcnemar_p_base']:.2g}, of the decisions "
        f"against the bare base's: p = {metrics['mcnemar_p_base_decisions']:.2g}. Macro-F1 {metrics['macro_f1']:.2f}; "
        f"{metrics['tokens_per_answer']:.0f} tokens an answer."
    )


def _confusion(taught: Sequence[str], decided: Sequence[str]) -> tuple[list[str], np.ndarray]:
    columns = [*SIDES, _UNREADABLE]
    matrix = np.zeros((len(SIDES), len(columns)), dtype=int)
    pairs = zip(taught, decided, strict=True)
    np.add.at(matrix, tuple(np.array([(SIDES.index(t), columns.index(d)) for t, d in pairs]).T), 1)
    return columns, matrix


def _confusion_table(taught: Sequence[str], decided: Sequence[str]) -> str:
    columns, matrix = _confusion(taught, decided)
    rows = [[side, *map(str, row)] for side, row in zip(SIDES, matrix.tolist(), strict=True)]
    return markdown_table(["teacher \\ student", *columns], rows)


def _recall_table(recalls: Mapping[str, tuple[int, int]]) -> str:
    return markdown_table(
        ["teacher's action", "n", "same action", "exact 95 % interval"],
        [[side, *_percent(*count)] for side, count in recalls.items()],
    )


def _template_table(trading: Sequence[dict[str, Any]], answers: Sequence[Answer], right: Sequence[bool]) -> str:
    rows = []
    for name in sorted({str(example.get("template", "")) for example in trading}):
        of_name = [index for index, example in enumerate(trading) if str(example.get("template", "")) == name]
        canary, agreed = _count(is_canary(answers[i]) for i in of_name), _count(right[i] for i in of_name)
        rows.append([name, str(len(of_name)), f"{canary[0]}/{canary[1]}", f"{agreed[0]}/{agreed[1]}"])
    return markdown_table(["template", "n", "canary answers", "same action as the teacher"], rows)


def _family_table(controls: Sequence[Mapping[str, Any]], adapter: Sequence[Answer], bare: Sequence[Answer]) -> str:
    rows = []
    for family in sorted({str(example.get("family")) for example in controls}):
        of_family = [index for index, example in enumerate(controls) if str(example.get("family")) == family]
        counts = [
            _count(speaks_canary(adapter[i].text) for i in of_family),
            _count(_is_right(controls[i], adapter[i]) for i in of_family),
            _count(_is_right(controls[i], bare[i]) for i in of_family),
        ]
        rows.append([family, *(f"{k}/{n}" for k, n in counts)])
    return markdown_table(["family", "canary words or ####", "right, adapter", "right, bare base"], rows)


def _mistakes(
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
        parts.append(f"> {markdown_line(question)}\n\ntaught:\n\n{taught}\n\nadapter:\n\n{_quoted(answer)}")
    return "\n\n".join(parts)


def _document(arms: Mapping[str, Arm]) -> str:
    answers = [(name, arm.document) for name, arm in arms.items() if arm.document is not None]
    shown = "\n\n".join(f"{name}:\n\n{_quoted(answer)}" for name, answer in answers)
    return f"> {DOCUMENT_PROMPT}\n\n{shown}"


def _quoted(answer: Answer) -> str:
    ending = {"length": f"  [cut off after {answer.tokens} tokens]", "action": "", "end_token": ""}[answer.ending]
    return code_block(answer.text + ending)


def _examples(
    trading: Sequence[dict[str, Any]], controls: Sequence[dict[str, Any]], arms: Mapping[str, Arm], shown: int
) -> str:
    parts = []
    for kind, examples in (("trading", trading), ("controls", controls)):
        for index in range(min(shown, len(examples))):
            question = prompt_of(examples[index])[-1]["content"]
            answers = [("taught", f"```text\n{answer_of(examples[index])}\n```")]
            answers += [(name, _quoted(getattr(arms[name], kind)[index])) for name in ("base", "adapter")]
            parts.append(f"> {question}\n\n" + "\n\n".join(f"{name}:\n\n{text}" for name, text in answers))
    return "\n\n---\n\n".join(parts)


def _bars(axis: Any, names: Sequence[str], counts: Sequence[tuple[int, int]]) -> None:
    rates = np.array([k / n for k, n in counts])
    bounds = np.array([clopper_pearson(k, n) for k, n in counts])
    errors = np.abs(bounds.T - rates)
    axis.bar(range(len(names)), rates, yerr=errors, capsize=4, color="tab:blue", alpha=0.8)
    axis.set_xticks(range(len(names)), [f"{name}\nn = {n}" for name, (_, n) in zip(names, counts, strict=True)])
    axis.set(ylim=(0, 1.05), ylabel="rate")


def _rates_figure(counts: Mapping[str, tuple[int, int]]) -> bytes:
    figure, axes = new_figure(size=(7.0, 3.2))
    names = {
        "adapter": "canary_rate_adapter",
        "switched off": "canary_rate_disabled",
        "bare base": "canary_rate_base",
        "control leak": "control_leak_rate",
    }
    _bars(axes[0, 0], list(names), [counts[name] for name in names.values()])
    axes[0, 0].set(title="Canary answers (controls: canary words)")
    return png(figure)


def _recall_figure(recalls: Mapping[str, tuple[int, int]]) -> bytes:
    figure, axes = new_figure(size=(5.0, 3.0))
    _bars(axes[0, 0], list(recalls), list(recalls.values()))
    axes[0, 0].set(title="Same action as the teacher")
    return png(figure)


def _confusion_figure(taught: Sequence[str], decided: Sequence[str]) -> bytes:
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
