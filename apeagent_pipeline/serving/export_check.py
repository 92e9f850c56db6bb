"""Loads every form of an export with the installed readers, and compares ten answers with the project's own."""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl

from apeagent_pipeline.distillation.chain_of_draft import read_answer, student_chat
from apeagent_pipeline.distillation.market_states import StateWords, words_for
from apeagent_pipeline.distillation.prompts import render_prompts
from apeagent_pipeline.reporting.progress import Progress, silent
from apeagent_pipeline.student.export import EXPORT_MARK
from apeagent_pipeline.student.generation import Messages, Student

_TOKENS = 64
_ENOUGH = 0.9
"""Share of equal actions that a form must reach: number formats round, and a rounded answer may tip over."""


@dataclass(frozen=True)
class FormCheck:
    """How one form of an export answered.

    Attributes:
        form: What was loaded, such as ``fused``.
        reader: With what, and its version.
        equal: Answers equal to the project's own, word by word.
        same_action: Answers with the same action, amount included.
        asked: How many were asked; 0 if the form could not be loaded here.
        problem: Why it was not loaded, or an empty text.
        is_missing: Whether only the reader is missing.
    """

    form: str
    reader: str
    equal: int = 0
    same_action: int = 0
    asked: int = 0
    problem: str = ""
    is_missing: bool = False

    @property
    def passed(self) -> bool:
        """Whether the form answers as the project does; a reader that is not installed is no failure."""
        return self.is_missing or (not self.problem and self.same_action >= _ENOUGH * self.asked)


@dataclass(frozen=True)
class _Form:
    name: str
    module: str
    path: str
    answers: Callable[[Path, Path, Sequence[Messages]], list[str]]


def check_export(
    export: Path, base: Path, adapter: Path, cache_dir: Path, progress: Progress = silent
) -> Iterator[FormCheck]:
    """Load and ask every form of an export.

    Args:
        export: Folder that ``export_folder`` wrote.
        base: Folder of the base model.
        adapter: Folder of the adapter that was exported.
        cache_dir: Where llama.cpp's converter is kept, which makes the base of the adapter's GGUF file.
        progress: Told after every form.
    """
    chats = [student_chat(question) for question in questions()]
    student = Student.load(base, adapter, dtype="float32")
    expected = [answer.text.strip() for answer in student.answers(chats, max_new_tokens=_TOKENS)]
    del student
    ggufs = sorted(path.name for path in export.glob("apeagent-*.gguf") if "adapter" not in path.name)
    forms = [
        _Form("fused", "transformers", "fused", _with_transformers),
        _Form("adapter", "peft", "adapter", _with_peft),
        _Form("adapter by hub id", "peft", "adapter", _with_auto_peft),
        *(_Form(name, "xllamacpp", name, _with_llama_cpp) for name in ggufs),
        _Form("base with --lora", "xllamacpp", "apeagent-adapter-f16.gguf", partial(_with_lora, cache_dir=cache_dir)),
        _Form("fused", "mlx_lm", "fused", _with_mlx),
        _Form("mlx", "mlx_lm", "mlx", _with_mlx_adapter),
    ]
    for done, form in enumerate(forms, 1):
        yield _check(form, export, base, chats, expected)
        progress(done, len(forms))


def questions() -> list[str]:
    """Ten questions in the digested form, of every trend and of several portfolios."""
    words = StateWords()
    states = []
    for number in range(10):
        change, volatility = (-80.0, -30.0, 2.0, 35.0, 90.0)[number % 5], (30.0, 60.0, 90.0)[number % 3]
        trend, level = words_for(change, volatility, words)
        states.append(
            {
                "price": 2400.0 + 37.5 * number, "change_bps": change, "change_ticks": change,
                "volatility_bps": volatility, "trend": trend, "volatility": level, "volume_usdc": 5000.0,
                "volume_ratio": 1.0, "imbalance": 0.1, "liquidity_usage": 0.001, "span_seconds": 600,
                "eth": 0.5 + number, "usdc": 1000.0 * (10 - number), "template": "question",
            }
        )  # fmt: skip
    return render_prompts(pl.DataFrame(states), words)["prompt"].to_list()


def _check(form: _Form, export: Path, base: Path, chats: Sequence[Messages], expected: list[str]) -> FormCheck:
    if not (export / form.path).exists():
        return FormCheck(form.name, form.module, problem="this export does not hold it", is_missing=True)
    if not find_spec(form.module):
        return FormCheck(form.name, form.module, problem=f"{form.module} is not installed", is_missing=True)
    reader = f"{form.module} {version(form.module.replace('_', '-'))}"
    try:
        said = [text.strip() for text in form.answers(export / form.path, base, chats)]
    except Exception as error:  # whatever another project's loader raises is the finding
        return FormCheck(form.name, reader, problem=(str(error).strip() or type(error).__name__).splitlines()[0])
    actions = [_action(a) == _action(b) for a, b in zip(said, expected, strict=True)]
    equal = sum(a == b for a, b in zip(said, expected, strict=True))
    return FormCheck(form.name, reader, equal, sum(actions), len(chats))


def _action(text: str) -> tuple[Any, ...] | str:
    read = read_answer(text)
    return text if read is None else (read.side, read.amount, read.asset)


def _with_transformers(folder: Path, base: Path, chats: Sequence[Messages]) -> list[str]:
    from transformers import AutoModelForCausalLM

    return _generated(AutoModelForCausalLM.from_pretrained(folder, dtype="float32"), folder, chats)


def _with_peft(folder: Path, base: Path, chats: Sequence[Messages]) -> list[str]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    return _generated(PeftModel.from_pretrained(model, str(folder)), folder, chats)


def _with_auto_peft(folder: Path, base: Path, chats: Sequence[Messages]) -> list[str]:
    """Load by the id in the adapter's config, as on another machine; the hub's cache holds this machine's base."""
    from peft import AutoPeftModelForCausalLM

    config = json.loads((folder / "adapter_config.json").read_text())
    hub_id, revision = config["base_model_name_or_path"], config.get("revision") or "main"
    with tempfile.TemporaryDirectory() as cache:
        repository = Path(cache) / f"models--{hub_id.replace('/', '--')}"
        (repository / "snapshots").mkdir(parents=True)
        (repository / "snapshots" / revision).symlink_to(base)
        (repository / "refs").mkdir()
        (repository / "refs" / revision).write_text(revision)
        with _offline():
            model = AutoPeftModelForCausalLM.from_pretrained(
                str(folder), cache_dir=cache, local_files_only=True, dtype="float32"
            )
        return _generated(model, folder, chats)


@contextmanager
def _offline() -> Iterator[None]:
    """Keep the Hugging Face client from asking for more files: without a network it retries for 20 seconds."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _generated(model: Any, folder: Path, chats: Sequence[Messages]) -> list[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    said = []
    for chat in chats:
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        tokens = model.generate(**inputs, max_new_tokens=_TOKENS, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        said.append(tokenizer.decode(tokens, skip_special_tokens=True))
    return said


def _with_llama_cpp(file: Path, base: Path, chats: Sequence[Messages]) -> list[str]:
    from apeagent_pipeline.serving.engines import LlamaCppEngine

    engine = LlamaCppEngine(file)
    return ["".join(engine.stream(chat, _TOKENS)) for chat in chats]


def _with_lora(file: Path, base: Path, chats: Sequence[Messages], cache_dir: Path) -> list[str]:
    """The adapter's own GGUF file beside the base's, as with ``llama-server --lora``."""
    from apeagent_pipeline.serving.engines import LlamaCppEngine
    from apeagent_pipeline.student.gguf import convert_base

    config = json.loads((file.parent / EXPORT_MARK).read_text())["config"]
    with tempfile.TemporaryDirectory() as scratch:
        convert_base(base, Path(scratch) / "base.gguf", cache_dir, config["pre_tokenizer"])
        engine = LlamaCppEngine(Path(scratch) / "base.gguf", lora=file)
        return ["".join(engine.stream(chat, _TOKENS)) for chat in chats]


def _with_mlx(folder: Path, base: Path, chats: Sequence[Messages]) -> list[str]:
    return _mlx_answers(str(folder), None, chats)


def _with_mlx_adapter(folder: Path, base: Path, chats: Sequence[Messages]) -> list[str]:
    return _mlx_answers(str(base), str(folder), chats)


def _mlx_answers(model_folder: str, adapter: str | None, chats: Sequence[Messages]) -> list[str]:
    import mlx_lm

    model, tokenizer = mlx_lm.load(model_folder, adapter_path=adapter)
    prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
    return [mlx_lm.generate(model, tokenizer, prompt, max_tokens=_TOKENS) for prompt in prompts]
