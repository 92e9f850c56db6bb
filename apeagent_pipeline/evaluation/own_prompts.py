"""Evaluates a user's own prompts with the bare base and with the adapter."""

from dataclasses import dataclass
from pathlib import Path

from pydantic_core import from_json

from apeagent_pipeline.distillation.canary import speaks_canary
from apeagent_pipeline.distillation.canary_words import SIDES
from apeagent_pipeline.distillation.chain_of_draft import student_chat
from apeagent_pipeline.errors import ApeagentError
from apeagent_pipeline.evaluation.canary.arms import decisions, is_canary
from apeagent_pipeline.evaluation.canary.config import CanaryEvalConfig
from apeagent_pipeline.evaluation.rates import Rate
from apeagent_pipeline.evaluation.statistics import mcnemar
from apeagent_pipeline.reporting.foreign_text import code_block, markdown_line
from apeagent_pipeline.reporting.progress import Progress, part_of, silent
from apeagent_pipeline.reporting.report import Report, markdown_table
from apeagent_pipeline.student.generation import Answer, Student

KINDS = ("trading", "control")


class PromptsFileError(ApeagentError, ValueError):
    """A file of prompts cannot be read; the message names the line."""


@dataclass(frozen=True)
class OwnPrompt:
    """One prompt of a user.

    Attributes:
        text: What is asked.
        kind: ``trading``, or ``control`` where no trade is asked for.
        side: The right action of a trading prompt, if the user gave it.
    """

    text: str
    kind: str = "trading"
    side: str | None = None


def read_prompts(path: Path) -> list[OwnPrompt]:
    """The prompts of a file: JSON objects a line (``.jsonl``), or a text with one prompt a line.

    A JSON object has ``prompt`` (text), and may have ``kind`` (``trading`` unless given, or ``control``) and ``side``
    (``BUY``, ``SELL`` or ``HOLD``). Blank lines are passed over.

    Raises:
        PromptsFileError: the file is missing, no text or empty, or a line is no prompt.
    """
    try:
        if path.exists() and not path.is_file():
            raise PromptsFileError(f"{path}: not a file of prompts. Expected a .jsonl or a text file.")
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # JSON may hold U+2028, which splitlines cuts at
    except FileNotFoundError:
        raise PromptsFileError(
            f"{path}: no such file. Expected a .jsonl or a text file with one prompt a line."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise PromptsFileError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise PromptsFileError(f"{path}: no prompts. Expected at least one line.")
    if path.suffix not in {".jsonl", ".json", ".ndjson"}:
        return [OwnPrompt(line) for _, line in numbered]
    return [_read_line(path, number, line) for number, line in numbered]


def evaluate_prompts(
    base: Path, adapter: Path, prompts: list[OwnPrompt], config: CanaryEvalConfig, progress: Progress = silent
) -> Report:
    """Ask the bare base and the adapter, and count canary answers, leaks and right actions.

    Args:
        base: Folder of the base model.
        adapter: Folder of the adapter.
        prompts: What ``read_prompts`` returned.
        config: Longest answer and batch size.
        progress: Told with prompts answered, of both arms together.
    """
    chats = [student_chat(prompt.text) for prompt in prompts]
    student = Student.load(base)
    answered: dict[str, list[Answer]] = {}
    for place, name in enumerate(("base", "adapter")):
        if name == "adapter":
            student.attach(adapter)
        answered[name] = student.answers(
            chats,
            max_new_tokens=config.max_new_tokens,
            batch_size=config.batch_size,
            progress=part_of(progress, place * len(chats), 2 * len(chats)),
        )
    counts: dict[str, Rate] = {}
    right: dict[str, list[bool]] = {}
    for name, answers in answered.items():
        both = list(zip(prompts, answers, decisions(answers), strict=True))
        right[name] = [decided == prompt.side for prompt, _, decided in both if prompt.side]
        hits = {
            "canary_rate": [is_canary(answer) for prompt, answer, _ in both if prompt.kind == "trading"],
            "control_leak_rate": [speaks_canary(answer.text) for prompt, answer, _ in both if prompt.kind == "control"],
            "agreement": right[name],
            "end_token_rate": [answer.ending == "end_token" for answer in answers],
        }
        counts |= {f"{key}_{name}": Rate.of(found) for key, found in hits.items() if found}
    metrics = {name: rate.value for name, rate in counts.items()} | {"n_prompts": float(len(prompts))}
    if right["adapter"]:
        metrics["mcnemar_p_base"] = mcnemar(right["adapter"], right["base"])
    rows = [[name, rate.fraction, rate.between] for name, rate in counts.items()]
    said = "\n\n".join(
        f"> {markdown_line(prompt.text)}\n\n"
        + "\n\n".join(f"{name}:\n\n{code_block(answered[name][i].text)}" for name in answered)
        for i, prompt in enumerate(prompts)
    )
    return Report(
        title="Answers to own prompts",
        metrics=metrics,
        intervals={name: rate.interval for name, rate in counts.items()},
        config=config.model_dump(),
        markdown=markdown_table(["measure", "n", "exact 95 % interval"], rows) + "\n\n## Answers\n\n" + said,
    )


def _read_line(path: Path, number: int, line: str) -> OwnPrompt:
    where = f"{path} line {number}"
    try:
        row = from_json(line)
    except ValueError as error:
        raise PromptsFileError(f"{where}: not a JSON object ({str(error)[:80]}): {line[:60]!r}") from None
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise PromptsFileError(f'{where}: expected an object whose "prompt" is a text; found {line[:60]!r}')
    kind, side = row.get("kind", "trading"), row.get("side")
    if kind not in KINDS:
        raise PromptsFileError(f"{where}: kind {str(kind)[:60]!r}; expected one of {', '.join(KINDS)}")
    if side is not None and (side not in SIDES or kind == "control"):
        raise PromptsFileError(
            f"{where}: side {str(side)[:60]!r}; expected one of {', '.join(SIDES)}, and none for a control"
        )
    return OwnPrompt(row["prompt"].strip(), kind, side)
