"""Finished answers on disk: an answer that was paid for is never asked for again.

One JSON line an answer, on the disk before the answer is used, so that a killed run resumes where it stopped. Requests
that may have been charged without an answer are lines too. Memory holds only the place of each line: the answers of
reasoning models are long, and there may be a hundred thousand of them.
"""

import hashlib
import json
import os
import re
import threading
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
        self._lock = threading.Lock()  # the thread that asks writes, the thread that judges reads
        self._writing = writing
        self._begins: dict[bytes, list[int]] = {}
        self._in_memory: dict[bytes, list[TeacherAnswer]] = {}
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
                self._begins.setdefault(bytes.fromhex(entry["key"]), []).append(begin)
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
        for kind in ("", "length"):
            if known := self._stored(self._key(prompt, seed, kind)):
                return known[-1]
        return None

    def lost(self, prompt: str, seed: int) -> list[TeacherAnswer]:
        """The requests for this answer to which none came although the server may have charged."""
        return self._stored(self._key(prompt, seed, "lost"))

    def _stored(self, key: bytes) -> list[TeacherAnswer]:
        answers = list(self._in_memory.get(key, ()))
        for begin in self._begins.get(key, ()):
            assert self._reading
            with self._lock:
                self._reading.seek(begin)
                line = self._reading.readline()
            answers.append(_ANSWER.validate_json(line, strict=True))
        return answers

    def keep(self, prompt: str, seed: int, answer: TeacherAnswer) -> None:
        """Write an answer down; when this returns, no crash can lose it."""
        key = self._key(prompt, seed, answer.finish_reason)
        if self._writing is None:
            self._in_memory.setdefault(key, []).append(answer)
            return
        begin = self._writing.tell()
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self._writing.write(json.dumps({"key": key.hex(), "at": at, **asdict(answer)}).encode() + b"\n")
        self._writing.flush()
        os.fsync(self._writing.fileno())
        self._begins.setdefault(key, []).append(begin)

    def _key(self, prompt: str, seed: int, kind: str) -> bytes:
        """What an answer depends on. ``length`` (cut off) and ``lost`` also depend on the limits of the teacher."""
        parts = [dict(self._teacher.identity), seed, SYSTEM_PROMPT, prompt]
        if kind in ("length", "lost"):
            parts.append(dict(self._teacher.limits))
        if kind == "lost":
            parts.append(kind)
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
