"""The dataset's files as the student reads them: one chat example a line."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apeagent_pipeline.errors import ApeagentError

DOCUMENT_PROMPT = (
    "Given ETH price is $2506.92 with volume of 999.43 and volatility of 0.045, recent price change of 35.7765 ticks, "
    "and I currently hold 3.746 ETH and 9507.14 USDC, what trading action should I take on Uniswap?"
)
"""The prompt of the source document; every report shows the answers to it."""

SPLITS = ("train", "valid", "test")
CONTROL_KINDS = ("control", "near")
"""Kinds of examples in which no trade is asked for: distant ones, and ones in a trading prompt's words."""


class ExamplesError(ApeagentError, ValueError):
    """A dataset file is missing or a line of it is no chat example."""


def read_examples(folder: Path, split: str) -> list[dict[str, Any]]:
    """The examples of one split, in file order.

    Every line is a JSON object with ``messages``: ``{"role", "content"}`` each, the last one the assistant's answer.

    Raises:
        ExamplesError: the file is missing or empty, or a line is malformed (named with its number).
    """
    path = folder / f"{split}.jsonl"
    if not path.is_file():
        raise ExamplesError(f"{path}: no such file. Expected the folder of a distillation dataset with {split}.jsonl.")
    examples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            example = json.loads(line)
            messages = example["messages"]
            well_formed = len(messages) >= 2 and messages[-1]["role"] == "assistant" and messages[-1]["content"].strip()
            well_formed = well_formed and all(
                isinstance(m["content"], str) and isinstance(m["role"], str) for m in messages
            )
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
            well_formed = False
        if not well_formed:
            raise ExamplesError(
                f"{path} line {number}: expected a JSON object with `messages` (role and content each) that end with "
                f"a non-empty assistant answer; found {line[:80]!r}"
            )
        examples.append(example)
    if not examples:
        raise ExamplesError(f"{path}: no examples. Expected at least one; was the dataset built?")
    return examples


def prompt_of(example: Mapping[str, Any]) -> list[dict[str, str]]:
    """The messages before the answer."""
    return [{"role": m["role"], "content": m["content"]} for m in example["messages"][:-1]]


def answer_of(example: Mapping[str, Any]) -> str:
    """The answer that the example teaches."""
    return str(example["messages"][-1]["content"])
