"""Killed and interrupted runs: nothing that was paid for is lost, nothing is paid for twice.

The children are forked from one process that has the libraries loaded, because twenty starts of Python would take most
of the time.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from apeagent_pipeline.distillation.prompts import PromptsConfig, build_prompts
from apeagent_pipeline_tests.distillation.scripted_server import Script, ScriptedServer, completion

CONCURRENCY = 16
BROKEN = b'{"id": "x", "choices": [{"mess'

NURSERY = """
import os, sys
from pathlib import Path
import openai.resources.chat.completions, polars as pl, rich.markdown, rich.progress, typer
from apeagent_pipeline.cli.teach import _ask_teacher
from apeagent_pipeline.distillation.teaching import Teaching
from apeagent_pipeline.defs.profiles import TeachingConfig
from apeagent_pipeline.distillation.teachers.openai_server import OpenAITeacher
from apeagent_pipeline.distillation.teachers.server_config import OpenAITeacherConfig

def child(url, folder):
    out = os.open(folder / "out.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    teacher = OpenAITeacher(url, "m", "key", OpenAITeacherConfig(concurrency=16, timeout_s=2))
    prompts = pl.read_parquet(folder / "prompts.parquet")
    try:
        _ask_teacher(Teaching(prompts, teacher, TeachingConfig(), folder / "cache", 42, 8192, None))
    except typer.Exit as done:
        return done.exit_code
    return 0

for line in sys.stdin:
    url, folder = line.split()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = child(url, Path(folder))
        finally:
            sys.stdout.flush()
            os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Nursery:
    """Starts `apeagent teach` as it is after its imports, in a process of its own."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, server: ScriptedServer, folder: Path) -> int:
        assert self.process.stdin
        self.process.stdin.write(f"{server.url} {folder}\n")
        self.process.stdin.flush()
        return self._read()

    def wait(self) -> int:
        return self._read()

    def _read(self) -> int:
        assert self.process.stdout
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    running = Nursery()
    yield running
    running.process.communicate(timeout=30)


def kept(folder: Path) -> list[str]:
    """Keys of the whole lines of the cache."""
    path = folder / "cache" / "openai_m.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["key"] for line in lines if line.endswith(b"\n")]


def books(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of the cache, with how many generations each stands for."""
    path = folder / "cache" / "openai_m.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    entries = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return [{**entry, "cost": int(entry["finish_reason"] != "refused")} for entry in entries]


def seen(server: ScriptedServer) -> int:
    """How many requests the server has got, once those in its sockets are read too."""
    before = -1
    while before != len(server.requests):
        before = len(server.requests)
        time.sleep(0.05)
    return before


@pytest.mark.slow
def test_twenty_kills_in_a_thousand_requests_cost_no_more_than_was_under_way(
    serve: Callable[[Script], ScriptedServer], windows: pl.DataFrame, nursery: Nursery, tmp_path: Path
) -> None:
    many = build_prompts(windows, PromptsConfig(train_prompts=700, valid_prompts=100, test_prompts=200), 42)
    many.write_parquet(tmp_path / "prompts.parquet")
    chance = random.Random(20)
    server = serve(lambda n, body: (200, {}, completion(), 0.003 * (n % 4)))
    lost = []
    for point in sorted(chance.sample(range(1000), 20)):
        pid = nursery.start(server, tmp_path)
        deadline = time.monotonic() + 30
        while len(server.requests) < point + sum(lost) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.02))
        os.kill(pid, signal.SIGKILL)
        assert nursery.wait() == -signal.SIGKILL
        lost.append(seen(server) - len(kept(tmp_path)) - sum(lost))
    nursery.start(server, tmp_path)
    assert nursery.wait() == 0
    assert max(lost) <= CONCURRENCY
    assert sum(lost) > 0, "no kill hit a request under way: the test shows nothing"
    assert len(server.requests) == 1000 + sum(lost)
    assert len(set(kept(tmp_path))) == len(kept(tmp_path)) == 1000
    asked = Counter(body["messages"][1]["content"] for body in server.requests)
    assert set(asked) == set(many["prompt"])


FAULTS: list[tuple[int, dict[str, str], Any, float]] = [
    (429, {"Retry-After": "0.05"}, {"error": {"message": "slow down"}}, 0),
    (503, {}, b"", 0),
    (402, {"Retry-After": "0.05"}, {"error": {"message": "spending limit"}}, 0),
    (200, {}, {"error": {"code": 502, "message": "provider failed"}}, 0),
    (200, {"Content-Type": "text/html"}, b"<html>gateway</html>", 0),
    (200, {}, BROKEN, 0),  # from here on generated and billed
    (524, {}, {"error": {"message": "timed out"}}, 0),
    (200, {}, {**completion(), "choices": []}, 0),
]


@pytest.mark.slow
def test_ten_kills_among_faults_of_every_kind_lose_no_prompt_and_pay_for_no_answer_twice(
    serve: Callable[[Script], ScriptedServer], windows: pl.DataFrame, nursery: Nursery, tmp_path: Path
) -> None:
    prompts = build_prompts(windows, PromptsConfig(train_prompts=400, valid_prompts=40, test_prompts=60), 42)
    prompts.write_parquet(tmp_path / "prompts.parquet")
    moderated = set(prompts["prompt"][::10])
    visits: Counter[tuple[str, int]] = Counter()
    faults_met: Counter[int] = Counter()
    billed: list[str] = []
    answered: Counter[tuple[str, int]] = Counter()

    def script(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], Any, float]:
        key = (body["messages"][1]["content"], body["seed"])
        visits[key] += 1
        if key[0] in moderated:
            return 403, {}, {"error": {"message": "flagged by moderation"}}, 0
        chance = random.Random(f"{key}{visits[key]}")
        kind = chance.randrange(10)
        is_first = visits[key] == 1 and body["seed"] == 42
        # A prompt is given up after two answers that cannot be read, for each may have been paid: so at most one.
        if kind < len(FAULTS) and (kind < 4 or (kind == 4 and visits[key] == 1) or is_first) and visits[key] < 6:
            faults_met[kind] += 1
            billed.extend([key[0]] * (kind >= 5))
            return FAULTS[kind]
        billed.append(key[0])
        answered[key] += 1
        return 200, {}, completion(), 0.002 * (number % 5)

    server = serve(script)
    lost = []
    chance = random.Random(10)
    for kill in range(10):
        pid = nursery.start(server, tmp_path)
        deadline = time.monotonic() + 20
        while len(server.requests) < (kill + 1) * 60 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.02))
        os.kill(pid, signal.SIGKILL)
        assert nursery.wait() == -signal.SIGKILL
        seen(server)
        lost.append(len(billed) - sum(entry["cost"] for entry in books(tmp_path)))
    nursery.start(server, tmp_path)
    assert nursery.wait() == 0
    assert set(faults_met) == set(range(len(FAULTS)))
    in_flight = [later - earlier for earlier, later in zip([0, *lost], lost, strict=False)]
    assert max(in_flight) <= CONCURRENCY
    known = sum(entry["cost"] for entry in books(tmp_path))
    assert known <= len(billed) <= known + sum(in_flight)
    good = {prompt for prompt, _ in answered}
    assert good == set(prompts["prompt"]) - moderated, "every prompt that can be answered was answered"
    again = sum(answered.values()) - len(good)
    assert again <= sum(in_flight), "an answer is generated again only where a kill hit it under way"
    assert all(visits[prompt, 42] == 1 for prompt in moderated) or sum(in_flight) > 0


@pytest.mark.slow
@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_is_under_way_shows_what_it_has_and_goes_on(
    serve: Callable[[Script], ScriptedServer],
    windows: pl.DataFrame,
    nursery: Nursery,
    tmp_path: Path,
    way: signal.Signals,
) -> None:
    many = build_prompts(windows, PromptsConfig(train_prompts=150, valid_prompts=20, test_prompts=30), 42)
    many.write_parquet(tmp_path / "prompts.parquet")
    server = serve(lambda n, body: (200, {}, completion(), 0.1))
    pid = nursery.start(server, tmp_path)
    while len(server.requests) < 60:
        time.sleep(0.005)
    os.kill(pid, way)
    assert nursery.wait() == 130
    interrupted = len(server.requests)
    assert 60 <= interrupted < 200
    assert len(kept(tmp_path)) == interrupted
    told = (tmp_path / "out.txt").read_text()
    assert "open requests are finished and their answers kept" in told
    assert "not_asked" in told
    assert "Run the same command to continue" in told
    nursery.start(server, tmp_path)
    assert nursery.wait() == 0
    assert len(server.requests) == 200
    assert {body["messages"][1]["content"] for body in server.requests} == set(many["prompt"])
