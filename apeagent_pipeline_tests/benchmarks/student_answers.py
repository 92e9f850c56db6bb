"""How fast the student answers, and whether its GGUF says the same when llama.cpp serves it.

Run it after ``apeagent demo`` and ``apeagent export --to DIR``:
``python -m apeagent_pipeline_tests.benchmarks.student_answers --home .apeagent --exported DIR``.
Seconds are CPU seconds of this process, on one thread.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from apeagent_pipeline.settings import SMOLLM2
from apeagent_pipeline.student.base_model import resolve_base_model
from apeagent_pipeline.student.examples import prompt_of, read_examples
from apeagent_pipeline.student.generation import Answer, Student
from apeagent_pipeline_tests.distillation.llama_server import llama_server, served_answers

MAX_NEW_TOKENS = 56
console = Console(width=120)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.process_time()
    result = work()
    return time.process_time() - begun, result


def generated(student: Student, prompts: list[Any], batch: int) -> list[str]:
    """What ``generate`` of transformers says, left-padded, with prompts in the order they come."""
    import torch

    said = []
    for first in range(0, len(prompts), batch):
        texts = [student.render(prompt) for prompt in prompts[first : first + batch]]
        inputs = student.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            out = student.model.generate(
                **inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, eos_token_id=student.end_tokens,
                pad_token_id=student.tokenizer.pad_token_id,
            )  # fmt: skip
        rows = out[:, inputs["input_ids"].shape[1] :]
        said += [student.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    return said


def speed(base: Path, adapter: Path, prompts: list[Any]) -> None:
    table = Table("way", "prompts", "CPU s", "prompts a CPU s", "tokens a CPU s", title="Answers of the adapter")
    few = prompts[:8]

    def row(way: str, prompts: list[Any], seconds: float, tokens: int) -> None:
        rate, speed = len(prompts) / seconds, tokens / seconds
        table.add_row(way, str(len(prompts)), f"{seconds:.1f}", f"{rate:.2f}", f"{speed:.0f}")

    seconds, student = timed(lambda: Student.load(base, adapter))
    console.print(f"Base and adapter loaded in {seconds:.1f} CPU s, {student.model.dtype}")
    bare_seconds, _ = timed(lambda: Student.load(base))
    console.print(f"Base alone, loaded before: {bare_seconds:.1f} CPU s")

    def tokens(answers: list[Answer]) -> int:
        return sum(answer.tokens for answer in answers)

    for dtype in ("bfloat16", "float32"):
        student = Student.load(base, adapter, dtype=dtype)
        answers = student.answers(few, max_new_tokens=MAX_NEW_TOKENS)
        seconds, _ = timed(lambda s=student: [generated(s, [prompt], 1) for prompt in few])
        row(f"generate, one at a time, {dtype}", few, seconds, tokens(answers))
        seconds, _ = timed(lambda s=student: generated(s, prompts[:32], 32))
        row(f"generate, batch of 32, {dtype}", prompts[:32], seconds, 0)
        seconds, answers = timed(lambda s=student: s.answers(prompts, max_new_tokens=MAX_NEW_TOKENS))
        row(f"answers(), batch of 64, {dtype}", prompts, seconds, tokens(answers))
    console.print(table)


def served(base: Path, adapter: Path, exported: Path, prompts: list[Any]) -> None:
    said = {}
    for dtype in ("float32", "bfloat16"):
        answers = Student.load(base, adapter, dtype=dtype).answers(prompts, max_new_tokens=MAX_NEW_TOKENS)
        said[f"transformers, {dtype}"] = [answer.text.strip() for answer in answers]
    for gguf in sorted(exported.glob("apeagent-*.gguf")):
        if "adapter" not in gguf.name:
            with llama_server(gguf) as url:
                said[gguf.name] = [text.strip() for text in served_answers(url, prompts, MAX_NEW_TOKENS)]
    table = Table("", *list(said)[:2], title=f"The same text, of {len(prompts)} prompts")
    for name, texts in said.items():
        same = (sum(a == b for a, b in zip(texts, said[other], strict=True)) for other in list(said)[:2])
        table.add_row(name, *map(str, same))
    console.print(table)


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=Path(".apeagent"))
    parser.add_argument("--exported", type=Path, help="A folder that `apeagent export` wrote")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--only", choices=["speed", "served"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    storage = arguments.home / "storage"
    base = resolve_base_model(SMOLLM2, arguments.home / "cache" / "models")
    examples = read_examples(storage / "distillation_dataset", "test")
    prompts = [prompt_of(example) for example in examples if example["kind"] == "trading"][: arguments.prompts]
    if arguments.only != "served":
        speed(base, storage / "lora_adapter", prompts)
    if arguments.only != "speed" and arguments.exported:
        served(base, storage / "lora_adapter", arguments.exported, prompts)


if __name__ == "__main__":
    main()
