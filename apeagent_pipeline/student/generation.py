"""Generates the student's answers: in batches with or without the adapter, or one answer as a stream.

The batch loop replaces ``generate`` of transformers (5.23), which on a CPU spent half its time on rows that had already
ended and on copying the output layer for every prompt of a batch. This loop computes the shared prefix of all prompts
once, drops rows when they end, and selects the last position with a copying index, so that the output layer is a single
matrix product. Matrix products then take 70 % of the time on a CPU.
"""

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from apeagent_pipeline.distillation.chain_of_draft import STUDENT_SYSTEM_PROMPT
from apeagent_pipeline.errors import ApeagentError
from apeagent_pipeline.reporting.progress import Progress, silent
from apeagent_pipeline.student.base_model import load_base, quiet
from apeagent_pipeline.student.end_of_turn import end_token_ids

Messages = list[dict[str, str]]
Ending = Literal["end_token", "action", "length"]

# An action is complete at the end of its line. Text after it is not part of the answer.
_COMPLETE_ACTION = re.compile(r"####\s*\S[^\n]*\n")


class AdapterError(ApeagentError, ValueError):
    """A folder holds no LoRA adapter, or the adapter of another model."""


@dataclass(frozen=True)
class Answer:
    """One generated answer.

    Attributes:
        text: The generated text without the end token.
        tokens: How many tokens were generated, the end token included.
        ending: ``end_token`` (the model ended by itself), ``action`` (stopped here after a complete action line) or
            ``length`` (cut off at ``max_new_tokens``).
    """

    text: str
    tokens: int
    ending: Ending


class Student:
    """A base model with an optional LoRA adapter."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """A student around a model in memory.

        Args:
            model: Of transformers or, with an adapter on it, of peft.
            tokenizer: Pads left.
        """
        self.model, self.tokenizer = model, tokenizer
        self.has_adapter = hasattr(model, "disable_adapter")
        self._breaks_line: dict[int, bool] = {}  # token -> whether it holds a line break
        self.end_tokens = sorted(end_token_ids(tokenizer))

    @classmethod
    def load(cls, base: Path, adapter: Path | None = None, *, dtype: str = "auto", trainable: bool = False) -> Self:
        """Load the base model of folder ``base``, and attach the adapter of folder ``adapter`` if given.

        Args:
            base: Folder of the base model.
            adapter: Folder of the adapter.
            dtype: As of ``load_base``.
            trainable: As of `attach`.

        Raises:
            BaseModelError: ``base`` is no model folder.
            AdapterError: ``adapter`` is no adapter of this base.
        """
        student = cls(*load_base(base, dtype=dtype))
        if adapter is not None:
            student.attach(adapter, trainable=trainable)
        return student

    def attach(self, adapter: Path, *, trainable: bool = False) -> None:
        """Attach the adapter of a folder to the base model.

        Args:
            adapter: Folder of the adapter.
            trainable: Keep the adapter in float32, so that its small updates are not lost. Otherwise it has the number
                format of the base, and answers take a third less time.

        Raises:
            AdapterError: the folder holds no adapter, or one whose layers the base model does not have.
        """
        from peft import PeftModel
        from safetensors import SafetensorError

        if self.has_adapter:
            raise AdapterError("an adapter is attached already")
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            if not (adapter / name).is_file():
                raise AdapterError(f"{adapter}: no {name}. Expected the folder of a trained LoRA adapter.")
        try:
            with quiet():
                self.model = PeftModel.from_pretrained(
                    self.model, str(adapter), is_trainable=trainable, autocast_adapter_dtype=trainable
                ).eval()
        except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise AdapterError(f"{adapter}: not an adapter of this base model ({reason})") from error
        self.has_adapter = True

    def adapter_off(self) -> AbstractContextManager[Any]:
        """A context in which the model answers without its adapter."""
        return self.model.disable_adapter() if self.has_adapter else nullcontext()

    def merge(self) -> None:
        """Merge the adapter into the base weights, as the export does. In bfloat16 this cannot be undone exactly."""
        if self.has_adapter:
            self.model = self.model.merge_and_unload()
            self.has_adapter = False

    def render(self, messages: Messages) -> str:
        """The text of a chat up to the start of the answer."""
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def answers(
        self,
        prompts: Sequence[Messages],
        *,
        max_new_tokens: int,
        batch_size: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        progress: Progress = silent,
    ) -> list[Answer]:
        """Answers in the order of ``prompts``.

        Prompts are sorted by length, so that batches need little padding. Padding follows the shared prefix.

        Args:
            prompts: One chat each.
            max_new_tokens: Longest answer.
            batch_size: Prompts a batch.
            temperature: 0: greedy; above 0: tokens are sampled at this temperature.
            seed: Of the drawing.
            progress: Called after every batch with the number of answered prompts.
        """
        import torch

        if not prompts:
            return []
        ids = self.tokenizer([self.render(messages) for messages in prompts], add_special_tokens=False)["input_ids"]
        shared = shared_length(ids)
        start = self._forward(torch.tensor([ids[0][:shared]]), None) if shared else None
        rng = torch.Generator(self.model.device).manual_seed(seed)
        order = sorted(range(len(ids)), key=lambda index: (len(ids[index]), index))
        found: dict[int, Answer] = {}
        for first in range(0, len(order), batch_size):
            indices = order[first : first + batch_size]
            batch = [ids[index][shared:] for index in indices]
            said = self._said(
                batch,
                start and start.past_key_values,
                shared,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                rng=rng,
            )
            found.update(zip(indices, map(self._answer, said), strict=True))
            progress(len(found), len(order))
        return [found[index] for index in range(len(ids))]

    def _said(
        self, batch: list[list[int]], start: Any, shared: int, *, max_new_tokens: int, temperature: float, rng: Any
    ) -> list[list[int]]:
        """The answer tokens of each prompt of a batch, the end token included.

        Args:
            batch: Prompts without the shared prefix.
            start: Key-value cache of the shared prefix, for one row; None if there is no shared prefix.
            shared: Tokens of the shared prefix.
            max_new_tokens: Longest answer.
            temperature: 0: the most likely token.
            rng: For the drawing.
        """
        import torch

        width = max(map(len, batch))
        padding = [width - len(ids) for ids in batch]
        rows = [[self.tokenizer.pad_token_id] * pad + ids for pad, ids in zip(padding, batch, strict=True)]
        mask = torch.tensor([[1] * shared + [0] * pad + [1] * (width - pad) for pad in padding])
        cache = copy.deepcopy(start)
        if cache is not None:
            cache.batch_repeat_interleave(len(batch))
        output = self._forward(torch.tensor(rows), cache, mask)
        said: list[list[int]] = [[] for _ in batch]
        open_rows = list(range(len(batch)))
        while True:
            tokens = _next_tokens(output.logits[:, -1], temperature, rng)
            kept = []
            for place, (row, token) in enumerate(zip(open_rows, tokens, strict=True)):
                said[row].append(token)
                if not self._is_done(said[row], max_new_tokens):
                    kept.append(place)
            if not kept:
                return said
            if len(kept) < len(open_rows):
                chosen = torch.tensor(kept)
                output.past_key_values.batch_select_indices(chosen.to(self.model.device))
                open_rows, mask = [open_rows[place] for place in kept], mask[chosen]
            mask = torch.cat([mask, mask.new_ones(len(kept), 1)], dim=1)
            output = self._forward(torch.tensor([[tokens[place]] for place in kept]), output.past_key_values, mask)

    def _forward(self, ids: Any, cache: Any, mask: Any = None) -> Any:
        """The model's output: logits of the last position, and the key-value cache of all positions."""
        import torch

        device = self.model.device
        positions = None
        if mask is not None:
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :].to(device)
        with torch.inference_mode():
            return self.model(
                input_ids=ids.to(device),
                attention_mask=None if mask is None else mask.to(device),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=torch.tensor([-1], device=device),
            )

    def _is_done(self, tokens: list[int], max_new_tokens: int) -> bool:
        token = tokens[-1]
        if token in self.end_tokens or len(tokens) >= max_new_tokens:
            return True
        if token not in self._breaks_line:
            self._breaks_line[token] = "\n" in self.tokenizer.decode([token])
        return self._breaks_line[token] and _COMPLETE_ACTION.search(self.tokenizer.decode(tokens)) is not None

    def stream(self, messages: Messages, *, max_new_tokens: int) -> Iterator[str]:
        """The greedy answer to one chat, piece by piece as it is generated."""
        import torch

        ids = self.tokenizer(self.render(messages), return_tensors="pt", add_special_tokens=False)["input_ids"]
        said, cache, tokens = "", None, []
        for _ in range(max_new_tokens):
            output = self._forward(ids, cache)
            cache = output.past_key_values
            token = int(output.logits[0, -1].argmax())
            if token in self.end_tokens:
                return
            tokens.append(token)
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            if not text.endswith("\ufffd"):  # part of a character: its other bytes follow with the next token
                yield text[len(said) :]
                said = text
            if _COMPLETE_ACTION.search(said):
                return
            ids = torch.tensor([[token]])

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
        if complete:  # nothing after the action line is part of the answer
            text = text[: complete.end()].rstrip("\n")
            return Answer(text, len(self.tokenizer(text + "\n", add_special_tokens=False)["input_ids"]), "action")
        return Answer(text, len(spoken), "length")


def shared_length(ids: Sequence[Sequence[int]]) -> int:
    """The number of tokens that all prompts begin with. At least one token of each prompt remains."""
    shortest, first = min(map(len, ids)) - 1, ids[0]
    return next((n for n in range(shortest) if any(row[n] != first[n] for row in ids)), shortest)


def _next_tokens(logits: Any, temperature: float, rng: Any) -> list[int]:
    import torch

    if temperature == 0:
        return list(logits.argmax(-1).tolist())
    chances = torch.softmax(logits.float() / temperature, dim=-1)
    return list(torch.multinomial(chances, 1, generator=rng)[:, 0].tolist())


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
        BaseModelError, AdapterError: a folder does not hold what it should.
    """
    student = Student.load(base, adapter)
    messages = [{"role": "system", "content": system}] if system is not None else []
    return student.stream([*messages, {"role": "user", "content": prompt}], max_new_tokens=max_new_tokens)
