"""Finished answers on disk: what was paid for once is never asked again.

One JSON line an answer, on the disk before the answer is used, so that a killed run goes on where it stopped. In memory
is only where each line begins: the answers of reasoning models are long, and there may be a hundred thousand of them.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout
from pydantic import TypeAdapter
from pydantic_core import from_json

from apeagent_pipeline.distillation.chain_of_draft import SYSTEM_PROMPT
from apeagent_pipeline.distillation.teachers.teacher import Teacher, TeacherAnswer, TeacherError

_ANSWER = TypeAdapter(TeacherAnswer)


class AnswerCache:
    """The finished answers of one teacher, by prompt and seed."""

    def __init__(self, teacher: Teacher, reading: BinaryIO | None = None, writing: BinaryIO | None = None) -> None:
        """Index what is there.

        Args:
            teacher: Whose answers they are.
            reading: The file; None: answers are kept in memory alone, as those of a teacher that costs nothing.
            writing: The file opened for appending; None: nothing will be kept.

        Raises:
            ValueError: if a line is not a cached answer.
        """
        self._teacher = teacher
        self._reading = reading
        self._writing = writing
        self._begins: dict[bytes, int] = {}
        self._in_memory: dict[bytes, TeacherAnswer] = {}
        self.answered_today: list[TeacherAnswer] = []
        """Answers that were kept since midnight UTC."""
        begin, today = 0, str(datetime.now(UTC).date())
        for number, line in enumerate(reading or (), start=1):
            # A run killed while writing leaves half a line at the end; that answer was never used.
            if not line.endswith(b"\n"):
                break
            try:
                entry = from_json(line)
                answer = _ANSWER.validate_json(line, strict=True)
                self._begins[bytes.fromhex(entry["key"])] = begin
                if str(entry.get("at", "")).startswith(today):
                    self.answered_today.append(answer)
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{getattr(reading, 'name', 'cache')} line {number} is not a cached answer: {line[:60]!r}; remove "
                    f"that line (its answer will be asked again)"
                ) from None
            begin += len(line)
        if writing:
            writing.truncate(begin)
            writing.seek(begin)

    def get(self, prompt: str, seed: int) -> TeacherAnswer | None:
        """The answer to a prompt asked with a seed, or None if it was not asked, or cut off in less room."""
        for cut_off in (False, True):
            key = self._key(prompt, seed, cut_off)
            if key in self._in_memory:
                return self._in_memory[key]
            if self._reading and key in self._begins:
                self._reading.seek(self._begins[key])
                return _ANSWER.validate_json(self._reading.readline(), strict=True)
        return None

    def keep(self, prompt: str, seed: int, answer: TeacherAnswer) -> None:
        """Write an answer down; when this returns, no crash can lose it."""
        key = self._key(prompt, seed, cut_off=answer.finish_reason == "length")
        if self._writing is None:
            self._in_memory[key] = answer
            return
        begin = self._writing.tell()
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self._writing.write(json.dumps({"key": key.hex(), "at": at, **asdict(answer)}).encode() + b"\n")
        self._writing.flush()
        os.fsync(self._writing.fileno())
        self._begins[key] = begin

    def _key(self, prompt: str, seed: int, cut_off: bool) -> bytes:
        """What an answer depends on, and so what it is paid for."""
        parts = [dict(self._teacher.identity), seed, SYSTEM_PROMPT, prompt]
        if cut_off:
            parts.append(dict(self._teacher.limits))
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()


@contextmanager
def open_cache(folder: Path, teacher: Teacher, *, read_only: bool = False) -> Iterator[AnswerCache]:
    """The cache of a teacher.

    Args:
        folder: Where the caches are; nothing is written there for a deterministic teacher.
        teacher: Whose answers.
        read_only: Only look, also while another run is asking.

    Raises:
        TeacherError: if another run is asking the same teacher.
        ValueError: if the file holds a line that is not a cached answer.
    """
    path = folder / (re.sub(r"[^A-Za-z0-9.-]+", "_", teacher.name) + ".jsonl")
    if teacher.deterministic or (read_only and not path.exists()):
        yield AnswerCache(teacher)
        return
    with ExitStack() as stack:
        writing = None
        if not read_only:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(FileLock(f"{path}.lock", timeout=0))
            except Timeout:
                raise TeacherError(
                    f"another run is asking {teacher.name} and writes {path}; wait for it to end"
                ) from None
            path.touch()
            writing = stack.enter_context(path.open("r+b"))
        yield AnswerCache(teacher, stack.enter_context(path.open("rb")), writing)
