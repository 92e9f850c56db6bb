"""A teacher that answers in batches: OpenAI-style batch endpoints, at half the price, within a day.

The server is the memory: a batch carries the digest of what it asks in its metadata, so that a run that was killed
finds its batches again and collects them instead of paying twice. Answers go through the same cache and budgets as
those of single requests.
"""

import hashlib
import io
import json
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from apeagent_pipeline.distillation.teachers.answer_books import AnswerBooks
from apeagent_pipeline.distillation.teachers.openai_server import OpenAITeacher
from apeagent_pipeline.distillation.teachers.server_config import request_body
from apeagent_pipeline.distillation.teachers.server_errors import ServerRefusal, refusal
from apeagent_pipeline.distillation.teachers.server_replies import UnreadableReplyError, reply_of
from apeagent_pipeline.distillation.teachers.teacher import Keep, PromptRow, TeacherAnswer, TeacherError, forget

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types import Batch

_MARK = "apeagent"
_UNDER_WAY = {"validating", "in_progress", "finalizing", "cancelling"}
_LARGEST_BATCH = 10_000
_OLDEST_S = 14 * 86_400


class BatchTeacher:
    """A model on a server with batch endpoints as a ``Teacher``."""

    deterministic = False

    def __init__(self, server: OpenAITeacher, poll_s: float = 60.0) -> None:
        """Nothing is sent yet.

        Args:
            server: The same model, asked by single requests; answers of both share one cache.
            poll_s: Seconds between two looks at the state of a batch.
        """
        self.server = server
        self.name, self.identity, self.limits = server.name, server.identity, server.limits
        self._poll_s = poll_s

    def answer(
        self, prompts: Iterable[PromptRow], seed: int, keep: Keep = forget
    ) -> Generator[TeacherAnswer, None, None]:
        """Collect the batches of earlier runs, submit what they do not hold, and wait for all of them.

        Raises:
            TeacherError: if the server refuses the batch.
        """
        import openai

        rows = {f"{row['prompt_id']}-{seed}": row for row in prompts}
        key = self.server.api_key.get_secret_value() if self.server.api_key else "none"
        client = openai.OpenAI(base_url=self.server.base_url, api_key=key, timeout=self.server.config.timeout_s)
        books = AnswerBooks(self.server.config)
        try:
            waiting = list(self._found(client, set(rows)))
            held = {custom_id for _, ids in waiting for custom_id in ids}
            left = [custom_id for custom_id in rows if custom_id not in held]
            for begin in range(0, len(left), _LARGEST_BATCH):
                ids = left[begin : begin + _LARGEST_BATCH]
                waiting += [(self._submit(client, {each: rows[each] for each in ids}, seed), set(ids))]
            for batch, asked in waiting:
                done = self._finished(client, batch)
                for custom_id, line in self._results(client, done):
                    if custom_id in asked and custom_id in rows:
                        answer = self._read(rows.pop(custom_id), line, books, key)
                        if answer.finish_reason != "failed":
                            keep(answer)
                        yield answer
        except openai.APIStatusError as error:
            told = refusal(error.status_code, error.body, error.response.headers, key)
            raise TeacherError(f"{self.name}: the batch was refused, {told}. {told.remedy}".rstrip(" .")) from None
        except openai.OpenAIError as error:
            raise TeacherError(
                f"{self.name}: the server of the batches cannot be reached ({type(error).__name__}). It continues "
                "with them; run the command again to collect them"
            ) from None
        for row in rows.values():
            yield TeacherAnswer(row["prompt_id"], "", "failed", error="the batch ended without this answer")

    @property
    def _mark(self) -> str:
        parts = [dict(self.identity), dict(self.limits)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def _found(self, client: "OpenAI", wanted: set[str]) -> Iterator[tuple["Batch", set[str]]]:
        """Batches of earlier runs that hold wanted answers, or will."""
        for batch in client.batches.list(limit=100):
            if batch.created_at < time.time() - _OLDEST_S:
                return
            if (batch.metadata or {}).get(_MARK) != self._mark or batch.status == "failed":
                continue
            if batch.status in _UNDER_WAY:
                asked = {line["custom_id"] for line in _lines(client, batch.input_file_id)}
            else:
                asked = {custom_id for custom_id, line in self._results(client, batch) if _was_answered(line)}
            if asked & wanted:
                yield batch, asked & wanted
                wanted = wanted - asked

    def _submit(self, client: "OpenAI", rows: Mapping[str, PromptRow], seed: int) -> "Batch":
        bodies = {
            each: request_body(self.server.model, row["prompt"], seed, self.server.config) for each, row in rows.items()
        }
        lines = (
            json.dumps({"custom_id": each, "method": "POST", "url": "/v1/chat/completions", "body": body}) + "\n"
            for each, body in bodies.items()
        )
        file = client.files.create(file=("prompts.jsonl", io.BytesIO("".join(lines).encode())), purpose="batch")
        # No retries: a repeated request could make, and charge, the same batch twice.
        return client.with_options(max_retries=0).batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={_MARK: self._mark},
        )

    def _finished(self, client: "OpenAI", batch: "Batch") -> "Batch":
        while batch.status in _UNDER_WAY:
            time.sleep(self._poll_s)
            batch = client.batches.retrieve(batch.id)
        if batch.status == "failed":
            problems = batch.errors.data if batch.errors and batch.errors.data else []
            said = "; ".join(str(problem.message) for problem in problems[:3])
            raise TeacherError(f"{self.name}: the server refused the batch: {said[:200]}")
        return batch

    def _results(self, client: "OpenAI", batch: "Batch") -> Iterator[tuple[str, Mapping[str, Any]]]:
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            yield from ((line["custom_id"], line) for line in _lines(client, file))

    def _read(self, row: PromptRow, line: Mapping[str, Any], books: AnswerBooks, key: str) -> TeacherAnswer:
        response = line.get("response") or {}
        body = response.get("body") or {}
        try:
            if response.get("status_code", 200) >= 400 or line.get("error"):
                raise refusal(response.get("status_code", 500), body.get("error") or line.get("error"), {}, key)
            return books.answer(row, reply_of(body), 0.0, key)
        except ServerRefusal as error:
            if error.kind == "refuse_prompt":
                return TeacherAnswer(row["prompt_id"], "", "refused", 0, 0, 0.0, error=str(error))
            return TeacherAnswer(row["prompt_id"], "", "failed", error=str(error))
        except UnreadableReplyError as error:
            return TeacherAnswer(row["prompt_id"], "", "failed", error=str(error))


def _was_answered(line: Mapping[str, Any]) -> bool:
    return not line.get("error") and (line.get("response") or {}).get("status_code", 500) < 400


def _lines(client: "OpenAI", file: str) -> Iterator[dict[str, Any]]:
    for line in client.files.content(file).text.splitlines():
        document = from_json(line) if line.strip() else None
        if isinstance(document, dict) and isinstance(document.get("custom_id"), str):
            yield document
