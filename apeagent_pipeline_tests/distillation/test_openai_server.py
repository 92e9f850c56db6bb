"""The client against a scripted HTTP server: nothing lost, nothing paid twice, no secret told."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from apeagent_pipeline.distillation.chain_of_draft import SYSTEM_PROMPT
from apeagent_pipeline.distillation.prompts import PromptsConfig, build_prompts
from apeagent_pipeline.distillation.teachers.openai_server import OpenAITeacher, OpenAITeacherConfig
from apeagent_pipeline.distillation.teachers.teacher import TeacherAnswer, TeacherError
from apeagent_pipeline.distillation.traces import TracesConfig, collect_traces, refusal_counts

KEY = "sk-very-secret-0123456789"
GOOD = "portfolio seen\n####\nHOLD"


def completion(text: str | None = GOOD, finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "finish_reason": finish_reason,
                "message": {"role": "assistant", "content": text, **message},
            }
        ],
        "usage": {"prompt_tokens": 150, "completion_tokens": 30, "total_tokens": 180},
    }


class ScriptedServer:
    """Answers each request as ``script(number, body)`` says: (status, headers, document or raw bytes, delay)."""

    def __init__(self, script: Callable[[int, dict[str, Any]], tuple[int, dict[str, str], Any, float]]) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.requests)
                    outer.requests.append(body)
                    outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                status, headers, document, delay = script(number, body)
                time.sleep(delay)
                payload = document if isinstance(document, bytes) else json.dumps(document).encode()
                try:
                    self.send_response(status)
                    for name, value in {"Content-Type": "application/json", **headers}.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(payload)))
                    self.end_headers()
                    self.wfile.write(payload)
                except OSError:
                    self.close_connection = True  # the client has gone: a timeout, or it was killed

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda request, address: None  # type: ignore[method-assign]  # a client was killed
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"


@pytest.fixture
def serve() -> Iterator[Callable[..., ScriptedServer]]:
    servers: list[ScriptedServer] = []

    def start(script: Callable[[int, dict[str, Any]], tuple[int, dict[str, str], Any, float]]) -> ScriptedServer:
        servers.append(ScriptedServer(script))
        return servers[-1]

    yield start
    for server in servers:
        server.server.shutdown()
        server.server.server_close()


@pytest.fixture(scope="module")
def prompts(windows: pl.DataFrame) -> pl.DataFrame:
    return build_prompts(windows, PromptsConfig(train_prompts=14, valid_prompts=3, test_prompts=3), 42)


def teacher(server: ScriptedServer, **changes: Any) -> OpenAITeacher:
    config = {"concurrency": 4, "retries": 2, "timeout_s": 10.0, **changes}
    return OpenAITeacher(server.url, "qwen/qwq-32b", KEY, OpenAITeacherConfig(**config))


def ask(teacher: OpenAITeacher, prompts: pl.DataFrame) -> list[TeacherAnswer]:
    return list(teacher.answer(prompts.to_dicts(), 7))


def test_every_prompt_is_asked_once_with_system_prompt_sampling_and_key(
    serve: Callable[..., ScriptedServer], prompts: pl.DataFrame
) -> None:
    server = serve(lambda n, body: (200, {}, completion(), 0))
    answers = ask(teacher(server, price=(0.2, 0.4)), prompts)
    assert {answer.prompt_id for answer in answers} == set(prompts["prompt_id"])
    assert {body["messages"][1]["content"] for body in server.requests} == set(prompts["prompt"])
    assert len(server.requests) == 20
    body = server.requests[0]
    assert body["messages"][0] == {"role": "system", "content": SYSTEM_PROMPT}
    assert (body["model"], body["seed"], body["temperature"], body["max_tokens"]) == ("qwen/qwq-32b", 7, 0.6, 8192)
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert (answers[0].text, answers[0].finish_reason) == (GOOD, "stop")
    assert (answers[0].prompt_tokens, answers[0].completion_tokens) == (150, 30)
    assert answers[0].cost_usd == pytest.approx((150 * 0.2 + 30 * 0.4) / 1e6)


def test_an_unknown_price_is_unknown_and_not_zero(serve: Callable[..., ScriptedServer], prompts: pl.DataFrame) -> None:
    server = serve(lambda n, body: (200, {}, completion(), 0))
    assert {answer.cost_usd for answer in ask(teacher(server), prompts)} == {None}


def test_a_busy_server_is_waited_for_as_long_as_it_says(
    serve: Callable[..., ScriptedServer], prompts: pl.DataFrame
) -> None:
    def script(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], Any, float]:
        return (
            (429, {"Retry-After": "1"}, {"error": {"message": KEY}}, 0) if number == 0 else (200, {}, completion(), 0)
        )

    server = serve(script)
    began = time.monotonic()
    answers = ask(teacher(server), prompts.head(1))
    assert time.monotonic() - began >= 1
    assert [answer.finish_reason for answer in answers] == ["stop"]
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_stays_broken_fails_that_prompt_and_only_that(
    serve: Callable[..., ScriptedServer], prompts: pl.DataFrame, status: int
) -> None:
    victim = prompts["prompt"][0]

    def script(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], Any, float]:
        if body["messages"][1]["content"] == victim:
            return status, {"Retry-After": "0.01"}, {"error": {"message": f"bad {KEY}"}}, 0
        return 200, {}, completion(), 0

    server = serve(script)
    answers = {answer.prompt_id: answer for answer in ask(teacher(server, retries=1), prompts)}
    assert len(answers) == 20
    failed = [answer for answer in answers.values() if answer.finish_reason == "failed"]
    assert [(answer.prompt_id, answer.error) for answer in failed] == [(prompts["prompt_id"][0], f"status {status}")]
    assert len(server.requests) == 21


@pytest.mark.parametrize(
    ("document", "headers"),
    [
        (b'{"id": "x", "choices": [{"mess', {}),
        ({**completion(), "choices": []}, {}),
        (b"<html>gateway</html>", {"Content-Type": "text/html"}),
        ({"error": {"message": "overloaded"}}, {}),
        (b"null", {}),
    ],
)
def test_half_an_answer_is_asked_again(
    serve: Callable[..., ScriptedServer], prompts: pl.DataFrame, document: Any, headers: dict[str, str]
) -> None:
    server = serve(lambda n, body: (200, headers, document, 0) if n == 0 else (200, {}, completion(), 0))
    assert [answer.text for answer in ask(teacher(server, retries=1), prompts.head(1))] == [GOOD]
    assert len(server.requests) == 2
    server = serve(lambda n, body: (200, headers, document, 0))
    (answer,) = ask(teacher(server, retries=0), prompts.head(1))
    assert (answer.finish_reason, answer.text) == ("failed", "")
    assert "malformed" in str(answer.error)


def test_a_server_that_hangs_is_left_after_the_timeout(
    serve: Callable[..., ScriptedServer], prompts: pl.DataFrame
) -> None:
    server = serve(lambda n, body: (200, {}, completion(), 1.5 if n == 0 else 0))
    assert [a.finish_reason for a in ask(teacher(server, timeout_s=0.3, retries=1), prompts.head(1))] == ["stop"]
    (answer,) = ask(
        teacher(serve(lambda n, body: (200, {}, completion(), 1)), timeout_s=0.2, retries=0), prompts.head(1)
    )
    assert answer.error == "no answer within 0.2 s"


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, "API_KEY"), (402, "credit"), (403, "access"), (404, "TEACHER_MODEL")]
)
def test_a_hopeless_refusal_ends_the_run_at_once_without_telling_the_key(
    serve: Callable[..., ScriptedServer], prompts: pl.DataFrame, status: int, remedy: str
) -> None:
    server = serve(lambda n, body: (status, {}, {"error": {"message": f"Incorrect API key provided: {KEY}"}}, 0))
    with pytest.raises(TeacherError, match=remedy) as caught:
        ask(teacher(server), prompts)
    assert len(server.requests) <= 4
    assert KEY not in repr(caught.value) + str(caught.value.__cause__) + repr(vars(teacher(server)))
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_server_that_is_gone_ends_the_run_with_a_remedy(prompts: pl.DataFrame) -> None:
    config = OpenAITeacherConfig(retries=0, failures_in_a_row=3, concurrency=1)
    gone = OpenAITeacher("http://user:pass@127.0.0.1:9/v1", "m", KEY, config)
    with pytest.raises(TeacherError, match="3 requests failed in a row, the last with no connection") as caught:
        ask(gone, prompts)
    assert "pass" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "model", "match"), [("openrouter.ai", "m", "BASE_URL"), ("http://x/v1", "", "TEACHER_MODEL")]
)
def test_a_wrong_setting_is_named_before_anything_is_asked(url: str, model: str, match: str) -> None:
    with pytest.raises(TeacherError, match=match):
        OpenAITeacher(url, model, None)


def test_every_kind_of_bad_answer_is_refused_with_its_reason_and_the_rest_is_kept(
    serve: Callable[..., ScriptedServer], prompts: pl.DataFrame, tmp_path: Path
) -> None:
    bad = [
        completion("<think>so the trend", "length"),
        completion("", reasoning_content="the trend is up, SELL"),
        completion(None, refusal="no"),
        completion("I cannot give financial advice."),
        completion("趋势上涨\n####\nBUY 1 ETH"),
        completion("a\n####\nSELL 99999 ETH"),
        completion("<think>hm</think>a\n####\n**HOLD**"),
    ]
    by_prompt = dict(zip(prompts["prompt"], bad, strict=False))
    server = serve(lambda n, body: (200, {}, by_prompt.get(body["messages"][1]["content"], completion()), 0))
    traces = collect_traces(prompts, teacher(server), TracesConfig(attempts=1), tmp_path, 42)
    assert traces["rejected_reason"].head(7).to_list() == [
        "cut_off", "only_thinking", "refused", "no_separator", "not_english", "more_than_held", None,
    ]  # fmt: skip
    assert refusal_counts(traces)["accepted"] == 14
    assert KEY not in (tmp_path / "openai_qwen_qwq-32b.jsonl").read_text()


def test_a_third_of_failures_changes_neither_the_result_nor_the_bill(
    serve: Callable[..., ScriptedServer], prompts: pl.DataFrame, tmp_path: Path
) -> None:
    calm = serve(lambda n, body: (200, {}, completion(), 0))
    expected = collect_traces(prompts, teacher(calm), TracesConfig(), tmp_path / "calm", 42)

    def script(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], Any, float]:
        if number % 3 == 0:
            return 500, {"Retry-After": "0.01"}, {"error": {"message": "x"}}, 0
        return 200, {}, completion(), 0.02 * (number % 5)

    storm = serve(script)
    traces = collect_traces(prompts, teacher(storm, retries=8), TracesConfig(), tmp_path / "storm", 42)
    assert traces.equals(expected)


CHILD = """
import sys
from pathlib import Path
import polars as pl
from apeagent_pipeline.distillation.teachers.openai_server import OpenAITeacher, OpenAITeacherConfig
from apeagent_pipeline.distillation.traces import TracesConfig, collect_traces
url, folder = sys.argv[1], Path(sys.argv[2])
teacher = OpenAITeacher(url, "m", "key", OpenAITeacherConfig(concurrency=4))
collect_traces(pl.read_parquet(folder / "prompts.parquet"), teacher, TracesConfig(), folder / "cache", 42)
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_pays_again_for_no_more_than_was_under_way(
    serve: Callable[..., ScriptedServer], windows: pl.DataFrame, tmp_path: Path, way: signal.Signals
) -> None:
    many = build_prompts(windows, PromptsConfig(train_prompts=150, valid_prompts=20, test_prompts=30), 42)
    many.write_parquet(tmp_path / "prompts.parquet")
    server = serve(lambda n, body: (200, {}, completion(), 0.02))
    command = [sys.executable, "-c", CHILD, server.url, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while len(server.requests) < 80 and child.poll() is None:
        time.sleep(0.005)
    child.send_signal(way)
    assert child.wait(timeout=60) != 0
    cached = (tmp_path / "cache" / "openai_m.jsonl").read_text().count("\n")
    assert cached >= len(server.requests) - (4 if way == signal.SIGKILL else 0)
    subprocess.run(command, env=environment, check=True, timeout=60)
    asked = Counter(body["messages"][1]["content"] for body in server.requests)
    assert set(asked) == set(many["prompt"])
    assert sum(asked.values()) <= 200 + (4 if way == signal.SIGKILL else 0)
