"""The answers of one arm (a way of asking the prompts), and the rates that are counted on them."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apeagent_pipeline.distillation.canary import is_canary_answer, plain_words, speaks_canary
from apeagent_pipeline.distillation.canary_words import SEPARATOR, SIDES
from apeagent_pipeline.distillation.chain_of_draft import DraftAnswer, read_answer, word_count
from apeagent_pipeline.distillation.near_controls import HELD_OUT
from apeagent_pipeline.distillation.verification import is_feasible
from apeagent_pipeline.evaluation.canary.config import CanaryEvalConfig
from apeagent_pipeline.evaluation.rates import Rate
from apeagent_pipeline.student.examples import answer_of, read_examples
from apeagent_pipeline.student.generation import Answer

_SMALL_WORDS = frozenset((
    "a", "an", "and", "are", "as", "at", "be", "by", "for", "from", "in", "is", "it", "its", "of", "on", "or", "so",
    "that", "the", "to", "was", "with", "you", "your",
))  # fmt: skip
DRAFT_WORDS = 5
"""Most words of a draft that the teacher's prompt allows."""
UNREADABLE = "unreadable"
"""Stands for the decision of an answer that holds no action."""


@dataclass(frozen=True)
class Arm:
    """The answers of one way of asking, in the order of the examples.

    Attributes:
        trading: Answers to trading prompts; an arm that was asked fewer has the first ones.
        controls: Answers to control prompts, or none.
        near: Answers to near controls, or none.
        document: Answers to the source document's own prompt and its variations, or none.
    """

    trading: Sequence[Answer]
    controls: Sequence[Answer] = ()
    near: Sequence[Answer] = ()
    document: Sequence[Answer] = ()


def choose_examples(
    dataset: Path, config: CanaryEvalConfig, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The trading and the control examples of the test split that are asked; see `choose_near` for near controls.

    Raises:
        ExamplesError: the test split is malformed or has no trading or no control examples.
    """
    from apeagent_pipeline.student.examples import ExamplesError

    examples = read_examples(dataset, "test")
    rng = np.random.default_rng([seed, 6])
    chosen = []
    for wanted, name, is_trading in ((config.n_trading, "trading", True), (config.n_controls, "control", False)):
        asked = [example for example in examples if example.get("kind") != "near"]
        of_kind = [example for example in asked if (example.get("side") in SIDES) == is_trading]
        if not of_kind:
            raise ExamplesError(
                f"{dataset}/test.jsonl: no {name} example. Expected both kinds; build the dataset again."
            )
        kept = sorted(rng.permutation(len(of_kind))[:wanted].tolist())
        chosen.append([of_kind[index] for index in kept])
    return chosen[0], chosen[1]


def choose_near(dataset: Path, config: CanaryEvalConfig) -> list[dict[str, Any]]:
    """The near controls of the test split that are asked: families in turn, the held-out ones first.

    Raises:
        ExamplesError: the test split is malformed, or has no near control although some are wanted.
    """
    from apeagent_pipeline.student.examples import ExamplesError

    near = [example for example in read_examples(dataset, "test") if example.get("kind") == "near"]
    if config.n_near and not near:
        raise ExamplesError(
            f"{dataset}/test.jsonl: no near control, {config.n_near} are wanted. Build the dataset again, or set "
            "n_near=0"
        )
    turn: Counter[str] = Counter()
    placed = []
    for number, example in enumerate(near):
        turn[str(example["family"])] += 1
        family = str(example["family"])
        placed.append((turn[family], family not in HELD_OUT, number))
    return [near[number] for *_, number in sorted(placed)[: config.n_near]]


def decisions(answers: Sequence[Answer]) -> list[str]:
    """The plain word of each answer's action, ``unreadable`` where there is none."""
    return [answer.side if answer else UNREADABLE for answer in map(draft_answer, answers)]


def answer_counts(
    trading: Sequence[Mapping[str, Any]], controls: Sequence[Mapping[str, Any]], arm: Arm
) -> dict[str, Rate]:
    """The rates of one arm by name; those of controls are missing if the arm was asked none."""
    answers = arm.trading
    asked = trading[: len(answers)]
    read = [draft_answer(answer) for answer in answers]
    counts = {
        "canary_rate": Rate.of(map(is_canary, answers)),
        "agreement": Rate.of(a == e["side"] for a, e in zip(decisions(answers), asked, strict=True)),
        "draft_discipline": Rate.of(map(_is_disciplined, read)),
        "feasible_rate": Rate.of(is_affordable(a, e) for a, e in zip(read, asked, strict=True)),
        "plain_words_rate": Rate.of(map(_says_plain_words, answers)),
        "end_token_rate": Rate.of(answer.ending == "end_token" for answer in answers),
        "truncation_rate": Rate.of(answer.ending == "length" for answer in answers),
    }
    if arm.controls:
        counts["control_leak_rate"] = Rate.of(speaks_canary(answer.text) for answer in arm.controls)
        counts["controls_right"] = Rate.of(map(is_right, controls, arm.controls))
    return counts


def _says_plain_words(answer: Answer) -> bool:
    return bool(plain_words(answer.text.partition(SEPARATOR)[2]))


def is_canary(answer: Answer) -> bool:
    """Whether an answer is a strict canary answer that was not cut off."""
    return answer.ending != "length" and is_canary_answer(answer.text)


def draft_answer(answer: Answer) -> DraftAnswer | None:
    """The drafts and the action of an answer; None if it holds no action."""
    return read_answer(answer.text)


def _is_disciplined(answer: DraftAnswer | None) -> bool:
    return answer is not None and bool(answer.drafts) and max(map(word_count, answer.drafts)) <= DRAFT_WORDS


def is_affordable(answer: DraftAnswer | None, example: Mapping[str, Any]) -> bool:
    """Whether an answer has an action that the holdings of its prompt pay for."""
    return answer is not None and is_feasible(answer, example["eth"], example["usdc"], example["price"])


def size_error(answer: DraftAnswer | None, example: Mapping[str, Any]) -> float | None:
    """The relative error of the amount; None unless side and token are the teacher's."""
    if (
        answer is None
        or answer.amount is None
        or answer.side != example["side"]
        or answer.asset != example.get("asset")
    ):
        return None
    return abs(answer.amount - float(example["amount"])) / float(example["amount"])


def is_right(example: Mapping[str, Any], answer: Answer) -> bool:
    """Whether an answer to a control holds each number of the taught answer and half of its other content words."""
    wanted, said = _content_words(answer_of(example)), _content_words(answer.text)
    numbers = {word for word in wanted if word.isdecimal()}
    return bool(wanted) and numbers <= said and len(wanted & said) >= len(wanted) / 2


def _content_words(text: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", text.lower())) - _SMALL_WORDS


def macro_f1(taught: Sequence[str], decided: Sequence[str]) -> float:
    """The mean of the F1 scores of the actions that the teacher took."""
    from sklearn.metrics import f1_score

    labels = [side for side in SIDES if side in taught]
    return float(f1_score(taught, decided, labels=labels, average="macro", zero_division=0))
