"""Answers of the student: batched greedy generation, with the adapter or without it, and one answer as a stream."""

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from apeagent_pipeline.distillation.chain_of_draft import STUDENT_SYSTEM_PROMPT
from apeagent_pipeline.reporting.progress import Progress, silent
from apeagent_pipeline.student.base_model import load_base

Messages = list[dict[str, str]]
Ending = Literal["end_token", "action", "length"]

# An action is complete when its line is: nothing after it is part of the answer.
_COMPLETE_ACTION = re.compile(r"####\s*\S[^\n]*\n")


class AdapterError(ValueError):
    """A folder holds no LoRA adapter, or one of another model."""


@dataclass(frozen=True)
class Answer:
    """One generated answer.

    Attributes:
        text: What was said, without the end token.
        tokens: How many tokens were generated, the end token included.
        ending: ``end_token`` (the model ended by itself), ``action`` (stopped here after a complete action line) or
            ``length`` (cut off at ``max_new_tokens``).
    """

    text: str
    tokens: int
    ending: Ending


class Student:
    """A base model and, if one was attached, its LoRA adapter; loaded once and asked many times."""

    def __init__(self, base: Path, adapter: Path | None = None, *, dtype: str = "auto") -> None:
        """Load the base model of folder ``base``, and attach the adapter of folder ``adapter`` if given.

        Raises:
            BaseModelError: ``base`` is no model folder.
            AdapterError: ``adapter`` is no adapter of this base.
        """
        self.model, self.tokenizer = load_base(base, dtype=dtype)
        self.has_adapter = False
        end_of_turn = self.tokenizer.convert_tokens_to_ids("<|im_end|>")
        known = end_of_turn is not None and end_of_turn != self.tokenizer.unk_token_id
        self.end_tokens = sorted({self.tokenizer.eos_token_id, *([end_of_turn] if known else [])})
        if adapter is not None:
            self.attach(adapter)

    def attach(self, adapter: Path) -> None:
        """Put the adapter of a folder on top of the base model.

        Raises:
            AdapterError: the folder holds no adapter, or one whose layers the base model does not have.
        """
        from peft import PeftModel

        if self.has_adapter:
            raise AdapterError("an adapter is attached already")
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            if not (adapter / name).is_file():
                raise AdapterError(f"{adapter}: no {name}. Expected the folder of a trained LoRA adapter.")
        try:
            self.model = PeftModel.from_pretrained(self.model, str(adapter)).eval()
        except (RuntimeError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise AdapterError(f"{adapter}: not an adapter of this base model ({reason})") from error
        self.has_adapter = True

    def adapter_off(self) -> AbstractContextManager[Any]:
        """A context in which the model answers without its adapter."""
        return self.model.disable_adapter() if self.has_adapter else nullcontext()

    def render(self, messages: Messages) -> str:
        """The text of a chat up to where the answer starts."""
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def answers(
        self,
        prompts: Sequence[Messages],
        *,
        max_new_tokens: int,
        batch_size: int = 32,
        progress: Progress = silent,
    ) -> list[Answer]:
        """Greedy answers, in the order of ``prompts``.

        Prompts are sorted by length, so that a batch pads little; padding stands left.

        Args:
            prompts: One chat each.
            max_new_tokens: Longest answer.
            batch_size: Prompts a batch.
            progress: Told after every batch with the number of prompts answered.
        """
        import torch

        texts = [self.render(messages) for messages in prompts]
        lengths = [len(ids) for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []
        order = sorted(range(len(texts)), key=lambda index: (lengths[index], index))
        found: dict[int, Answer] = {}
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            batch = self.tokenizer(
                [texts[index] for index in indices], return_tensors="pt", padding=True, add_special_tokens=False
            ).to(self.model.device)
            with torch.inference_mode():
                generated = self.model.generate(
                    **batch,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    eos_token_id=self.end_tokens,
                    pad_token_id=self.tokenizer.pad_token_id,
                    stopping_criteria=[self._action_stop(batch["input_ids"].shape[1])],
                )
            new = generated[:, batch["input_ids"].shape[1] :].tolist()
            found.update(zip(indices, map(self._answer, new), strict=True))
            progress(len(found), len(order))
        return [found[index] for index in range(len(texts))]

    def stream(self, messages: Messages, *, max_new_tokens: int) -> Iterator[str]:
        """The greedy answer to one chat, piece by piece as it is generated."""
        import torch

        ids = self.tokenizer(self.render(messages), return_tensors="pt", add_special_tokens=False)["input_ids"]
        ids = ids.to(self.model.device)
        said, cache, tokens = "", None, []
        for _ in range(max_new_tokens):
            with torch.inference_mode():
                output = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            token = int(output.logits[0, -1].argmax())
            if token in self.end_tokens:
                return
            tokens.append(token)
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            if not text.endswith("\ufffd"):  # half of a character: its other bytes come with the next token
                yield text[len(said) :]
                said = text
            if _COMPLETE_ACTION.search(said):
                return
            ids = torch.tensor([[token]], device=self.model.device)

    def logits(self, messages: Sequence[Messages]) -> Any:
        """The logits of the first answer token, ``[len(messages), vocabulary]``, in one batch."""
        import torch

        texts = [self.render(chat) for chat in messages]
        batch = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            return self.model(**batch.to(self.model.device), logits_to_keep=1).logits[:, -1]

    def _answer(self, tokens: list[int]) -> Answer:
        ends = [position for position, token in enumerate(tokens) if token in self.end_tokens]
        spoken = tokens[: ends[0]] if ends else tokens
        text = self.tokenizer.decode(spoken, skip_special_tokens=True)
        complete = _COMPLETE_ACTION.search(text)
        if ends and not complete:
            return Answer(text, ends[0] + 1, "end_token")
        if complete:  # a row stopped here is padded until the whole batch is done; pad may be the end token
            text = text[: complete.end()].rstrip("\n")
            return Answer(text, len(self.tokenizer(text + "\n", add_special_tokens=False)["input_ids"]), "action")
        return Answer(text, len(spoken), "length")

    def _action_stop(self, prompt_tokens: int) -> Any:
        """Stops a row as soon as it has said a complete action line."""
        import torch
        from transformers import StoppingCriteria

        tokenizer = self.tokenizer

        class ActionStop(StoppingCriteria):
            def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
                done = [
                    _COMPLETE_ACTION.search(text) is not None
                    for text in tokenizer.batch_decode(input_ids[:, prompt_tokens:])
                ]
                return torch.tensor(done, device=input_ids.device)

        return ActionStop()


def ask(
    base: Path,
    adapter: Path | None,
    prompt: str,
    *,
    system: str | None = STUDENT_SYSTEM_PROMPT,
    max_new_tokens: int = 128,
) -> Iterator[str]:
    """Answer one prompt with the adapter, piece by piece.

    Args:
        base: Folder of the base model.
        adapter: Folder of the adapter; None asks the bare base.
        prompt: What the user says.
        system: The system message, by default the one the adapter was trained with; None leaves it out.
        max_new_tokens: Longest answer.

    Raises:
        BaseModelError, AdapterError: a folder is not what it should be.
    """
    student = Student(base, adapter)
    messages = [{"role": "system", "content": system}] if system is not None else []
    return student.stream([*messages, {"role": "user", "content": prompt}], max_new_tokens=max_new_tokens)
