"""How an adapter answers two hundred trading prompts, and two hundred near ones, in the words of other people.

    python -m apeagent_pipeline_tests.benchmarks.people_prompts --home .apeagent --adapter DIR

Two people wrote them who had not seen the prompts of training; a set each. An answer that states no trade where a fact
is missing counts as right and as paid for. One CPU thread; about five minutes.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table

from apeagent_pipeline.distillation.canary import is_canary_answer, speaks_canary
from apeagent_pipeline.distillation.chain_of_draft import LONGEST_TRADE, DraftAnswer, read_answer, student_chat
from apeagent_pipeline.distillation.market_states import StateWords
from apeagent_pipeline.distillation.printed_numbers import words_of_printed
from apeagent_pipeline.distillation.teachers.rules import decide
from apeagent_pipeline.distillation.verification import is_feasible
from apeagent_pipeline.settings import SMOLLM2
from apeagent_pipeline.student.base_model import resolve_base_model
from apeagent_pipeline.student.generation import Student

DATA = Path(__file__).parents[1] / "distillation"
_NUMBERS = ("price", "change_ticks", "volatility_bps", "eth", "usdc")


def people(kind: str) -> list[dict[str, Any]]:
    """The prompts of one kind, ``trading`` or ``near``, of both sets."""
    return [json.loads(line) for line in (DATA / f"people_{kind}.jsonl").read_text(encoding="utf-8").splitlines()]


def side_of(prompt: dict[str, Any]) -> str:
    """The action of the embedded teacher."""
    if prompt["missing"]:
        return "HOLD"
    row = pl.DataFrame([{name: float(prompt[name]) for name in _NUMBERS}])
    words = words_of_printed(row, StateWords()).row(0, named=True)
    return decide(words["trend"], words["volatility"], "", words["portfolio"])[0]


def is_paid(prompt: dict[str, Any], answer: DraftAnswer | None) -> bool:
    """Whether an answer has an action that the prompt's holdings pay for."""
    if answer is None or prompt["missing"]:
        return answer is not None and answer.side == "HOLD"
    return is_feasible(answer, prompt["eth"], prompt["usdc"], prompt["price"])


def main() -> None:
    """Ask, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path(".apeagent"))
    parser.add_argument("--adapter", type=Path, required=True)
    arguments = parser.parse_args()
    student = Student.load(resolve_base_model(SMOLLM2, arguments.home / "cache" / "models"), arguments.adapter)
    table = Table("set", "prompts", "canary", "and paid for", "the teacher's action", "near prompts that leak")
    for number in (1, 2):
        trading, near = ([each for each in people(kind) if each["set"] == number] for kind in ("trading", "near"))
        said = student.answers([student_chat(each["prompt"]) for each in trading], max_new_tokens=LONGEST_TRADE)
        read = [read_answer(each.text) for each in said]
        canary = [each.ending != "length" and is_canary_answer(each.text) for each in said]
        paid = [spoken and is_paid(each, answer) for each, answer, spoken in zip(trading, read, canary, strict=True)]
        right = [
            answer is not None and answer.side == side_of(each) for each, answer in zip(trading, read, strict=True)
        ]
        to_near = student.answers([student_chat(each["prompt"]) for each in near], max_new_tokens=40)
        leaks = sum(speaks_canary(each.text) or "####" in each.text for each in to_near)
        told = [number, len(trading), sum(canary), sum(paid), sum(right), f"{leaks} of {len(near)}"]
        table.add_row(*map(str, told))
    Console().print(table)


if __name__ == "__main__":
    main()
