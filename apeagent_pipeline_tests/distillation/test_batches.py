"""Batch endpoints: submitted once, collected by whichever run comes, through the same cache and budgets."""

import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from apeagent_pipeline.distillation.prompts import PromptsConfig, build_prompts
from apeagent_pipeline.distillation.teachers import open_teacher
from apeagent_pipeline.distillation.teachers.batches import BatchTeacher
from apeagent_pipeline.distillation.teachers.openai_server import OpenAITeacher
from apeagent_pipeline.distillation.teachers.server_config import OpenAITeacherConfig
from apeagent_pipeline.distillation.teachers.teacher import TeacherError
from apeagent_pipeline.distillation.traces import TracesConfig, collect_traces
from apeagent_pipeline.settings import Settings
from apeagent_pipeline_tests.distillation.scripted_server import GOOD, completion


class BatchServer:
    """Files and batches in memory; a batch is finished once it was looked at ``looks`` times."""

    def __init__(self, looks: int = 1) -> None:
        self.looks = looks
        self.files: dict[str, bytes] = {}
        self.batches: list[dict[str, Any]] = []
        self.seen: dict[str, int] = {}
        self.refuse: tuple[int, dict[str, Any]] | None = None
        self.errors: dict[str, dict[str, Any]] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def reply(self, status: int, body: Any) -> None:
                payload = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path.endswith("/files"):
                    name = f"file-{len(outer.files)}"
                    outer.files[name] = b"\n".join(line for line in body.splitlines() if line.startswith(b"{"))
                    self.reply(200, {"id": name, "object": "file", "bytes": 1, "created_at": 0, "filename": "x",
                                     "purpose": "batch", "status": "processed"})  # fmt: skip
                elif outer.refuse:
                    self.reply(*outer.refuse)
                else:
                    self.reply(200, outer.submit(json.loads(body)))

            def do_GET(self) -> None:
                if found := re.search(r"/files/([\w-]+)/content", self.path):
                    self.reply(200, outer.files[found[1]])
                elif found := re.search(r"/batches/([\w-]+)", self.path):
                    self.reply(200, outer.look(found[1]))
                else:
                    self.reply(200, {"object": "list", "data": outer.batches[::-1], "has_more": False})

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def submit(self, body: dict[str, Any]) -> dict[str, Any]:
        batch = {**body, "id": f"batch-{len(self.batches)}", "object": "batch", "status": "in_progress",
                 "created_at": int(time.time())}  # fmt: skip
        self.batches.append(batch)
        return batch

    def look(self, name: str) -> dict[str, Any]:
        batch = next(each for each in self.batches if each["id"] == name)
        self.seen[name] = self.seen.get(name, 0) + 1
        if self.seen[name] >= self.looks and batch["status"] == "in_progress":
            self.finish(batch)
        return batch

    def finish(self, batch: dict[str, Any]) -> None:
        lines = []
        for line in self.asked(batch):
            prompt = line["body"]["messages"][1]["content"]
            body = self.errors.get(prompt)
            response = {"status_code": 400, "body": body} if body else {"status_code": 200, "body": completion(GOOD)}
            lines.append(json.dumps({"custom_id": line["custom_id"], "response": response, "error": None}))
        batch["status"], batch["output_file_id"] = "completed", f"out-{batch['id']}"
        self.files[batch["output_file_id"]] = "\n".join(lines).encode()

    def asked(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]

    @property
    def requests(self) -> int:
        return sum(len(self.asked(batch)) for batch in self.batches)


@pytest.fixture
def server() -> Iterator[BatchServer]:
    running = BatchServer()
    yield running
    running.server.shutdown()


@pytest.fixture(scope="module")
def prompts(windows: pl.DataFrame) -> pl.DataFrame:
    return build_prompts(windows, PromptsConfig(train_prompts=14, valid_prompts=3, test_prompts=3), 42)


def teacher(server: BatchServer, poll_s: float = 0.01) -> BatchTeacher:
    config = OpenAITeacherConfig(price=(0.1, 0.2))
    return BatchTeacher(OpenAITeacher(server.url, "m", "key", config), poll_s)


def test_a_batch_answers_every_prompt_and_nothing_is_asked_twice(
    server: BatchServer, prompts: pl.DataFrame, tmp_path: Path
) -> None:
    traces = collect_traces(prompts, teacher(server), TracesConfig(), tmp_path, 42)
    assert traces["rejected_reason"].null_count() == 20 == server.requests
    assert traces["cost_usd"].sum() == pytest.approx(20 * (150 * 0.1 + 30 * 0.2) / 1e6)
    assert collect_traces(prompts, teacher(server), TracesConfig(), tmp_path, 42).equals(traces)
    assert len(server.batches) == 1


def test_a_run_killed_while_it_waits_collects_its_batch_later(
    server: BatchServer, prompts: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.looks = 3

    def killed(seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("apeagent_pipeline.distillation.teachers.batches.time.sleep", killed)
        with pytest.raises(KeyboardInterrupt):
            collect_traces(prompts, teacher(server), TracesConfig(), tmp_path, 42)
    assert len(server.batches) == 1
    assert collect_traces(prompts.head(5), teacher(server), TracesConfig(), tmp_path, 42)["side"].null_count() == 0
    assert collect_traces(prompts, teacher(server), TracesConfig(), tmp_path, 42)["side"].null_count() == 0
    assert (len(server.batches), server.requests) == (1, 20), "finished while nobody waited, and collected all the same"


def test_what_a_batch_could_not_answer_is_refused_or_asked_again(
    server: BatchServer, prompts: pl.DataFrame, tmp_path: Path
) -> None:
    server.errors = {
        prompts["prompt"][0]: {"error": {"code": "content_filter", "message": "filtered"}},
        prompts["prompt"][1]: {"error": {"message": "internal"}},
    }
    traces = collect_traces(prompts, teacher(server), TracesConfig(attempts=2), tmp_path, 42)
    reasons = traces["rejected_reason"].to_list()
    assert reasons[1] == "request_failed"
    assert reasons[2:] == [None] * 18
    again = [line["custom_id"] for batch in server.batches[1:] for line in server.asked(batch)]
    assert len(again) == 2, "the failed one with the same seed, the filtered one with another"


def test_a_budget_bounds_what_is_submitted(server: BatchServer, prompts: pl.DataFrame, tmp_path: Path) -> None:
    collect_traces(prompts, teacher(server), TracesConfig(max_requests=7), tmp_path, 42)
    assert server.requests == 7


def test_a_server_without_batches_is_told(server: BatchServer, prompts: pl.DataFrame, tmp_path: Path) -> None:
    server.refuse = (404, {"error": {"message": "no such route"}})
    with pytest.raises(TeacherError, match="the batch was refused"):
        collect_traces(prompts, teacher(server), TracesConfig(), tmp_path, 42)


def test_the_setting_opens_it_at_half_the_price() -> None:
    settings = Settings(teacher="openai", teacher_batch=True, teacher_model="m", teacher_prices={"m": (1.0, 2.0)})
    opened = open_teacher(settings)
    assert isinstance(opened, BatchTeacher)
    assert opened.server.config.price == (0.5, 1.0)
