"""What the number format of the GGUF file costs: decisions, size and speed, on one CPU thread.

    python -m apeagent_pipeline_tests.benchmarks.gguf_formats --home .apeagent ADAPTER=EXPORTED ...

Each pair is the folder of an adapter and one that ``apeagent export`` wrote from it. Half of the prompts are those of
the dataset's test split, half those that two people wrote who had not seen it. The project's own answers are those of
base and adapter in float32. An action is the same if side, amount and token are; a line if every character is.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from apeagent_pipeline.distillation.chain_of_draft import read_answer, student_chat
from apeagent_pipeline.serving.engines import LlamaCppEngine
from apeagent_pipeline.settings import SMOLLM2
from apeagent_pipeline.student.base_model import resolve_base_model
from apeagent_pipeline.student.examples import prompt_of, read_examples
from apeagent_pipeline.student.generation import Messages, Student
from apeagent_pipeline_tests.benchmarks.people_prompts import people

_TOKENS = 104
_NOTHING = "", None, None


def prompts(dataset: Path, number: int) -> list[Messages]:
    """Trading prompts, from the whole of both sets."""
    examples = [prompt_of(each) for each in read_examples(dataset, "test") if each["kind"] == "trading"]
    written = [student_chat(each["prompt"]) for each in people("trading")]
    return [
        chat
        for chats, share in ((examples, number // 2), (written, number - number // 2))
        for chat in chats[:: max(1, len(chats) // share)][:share]
    ]


def action(text: str) -> tuple[Any, ...]:
    """Side, amount and token of an answer."""
    read = read_answer(text)
    return _NOTHING if read is None else (read.side, read.amount, read.asset)


def answers(gguf: Path, chats: Sequence[Messages]) -> tuple[list[str], float]:
    """The likeliest answers of llama.cpp, and CPU seconds of this process for them."""
    engine = LlamaCppEngine(gguf, 1)
    "".join(engine.stream(chats[0], 1))  # warm
    begun = time.process_time()
    said = ["".join(engine.stream(chat, _TOKENS)).strip() for chat in chats]
    return said, time.process_time() - begun


def row(name: str, gguf: Path, student: Student, chats: Sequence[Messages], own: Sequence[str]) -> list[str]:
    """One line of the table."""
    said, seconds = answers(gguf, chats)
    pairs = list(zip(said, own, strict=True))
    sides = sum(action(a)[0] == action(b)[0] for a, b in pairs)
    tokens = sum(len(ids) + 1 for ids in student.tokenizer(said, add_special_tokens=False)["input_ids"])
    counts = [sides, sum(action(a) == action(b) for a, b in pairs), sum(a == b for a, b in pairs)]
    return [
        name, gguf.stem.removeprefix("apeagent-"), f"{gguf.stat().st_size / 1e6:.0f}", str(len(chats)),
        *map(str, counts), f"{tokens / seconds:.1f}",
    ]  # fmt: skip


def main() -> None:
    """Ask every file, and print the table."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", metavar="ADAPTER=EXPORTED")
    parser.add_argument("--home", type=Path, default=Path(".apeagent"))
    parser.add_argument("--prompts", type=int, default=40)
    given = parser.parse_args()
    torch.set_num_threads(1)
    base = resolve_base_model(SMOLLM2, given.home / "cache" / "models")
    chats = prompts(given.home / "storage" / "distillation_dataset", given.prompts)
    columns = ("adapter", "format", "MB", "prompts", "same side", "same action", "same line", "tokens a CPU s")
    console, table = Console(width=120), Table(*columns, title="Beside the project's own answers in float32")
    for pair in given.pairs:
        adapter, exported = map(Path, pair.split("="))
        student = Student.load(base, adapter, dtype="float32")
        own = [answer.text.strip() for answer in student.answers(chats, max_new_tokens=_TOKENS)]
        for gguf in sorted(exported.glob("apeagent-*.gguf")):
            if "adapter" not in gguf.name:
                table.add_row(*(cells := row(adapter.name, gguf, student, chats, own)))
                console.print(*cells)
    console.print(table)


if __name__ == "__main__":
    main()
