"""The client against a scripted HTTP server: nothing lost, nothing paid twice, no secret told."""

import hashlib
import itertools
import json
import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from apeagent_pipeline.artifacts.manifest import parquet_bytes
from apeagent_pipeline.distillation.chain_of_draft import SYSTEM_PROMPT, render_answer
from apeagent_pipeline.distillation.prompts import PromptsConfig, build_prompts
from apeagent_pipeline.distillation.teachers.openai_server import OpenAITeacher
from apeagent_pipeline.distillation.teachers.rules import rules_answer
from apeagent_pipeline.distillation.teachers.server_config import OpenAITeacherConfig
from apeagent_pipeline.distillation.teachers.teacher import TeacherAnswer, TeacherError
from apeagent_pipeline.distillation.traces import TracesConfig, collect_traces, refusal_counts
from apeagent_pipeline.distillation.traces_report import answer_counts, teaching_report
from apeagent_pipeline_tests.distillation.scripted_server import GOOD, Script, ScriptedServer, completion

KEY = "sk-very-secret-0123456789"


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
        ({**completion(), "choices": [], "usage": None}, {}),
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
    assert (answer.finish_reason, answer.text) == (
        "lost" if isinstance(document, bytes) and b"mess" in document else "failed",
        "",
    )
    assert "malformed" in str(answer.error) or answer.error == "status 502"


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
        completion("<think>hm</think>portfolio seen\n####\n**HOLD**"),
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


def test_a_rate_limit_and_a_busy_server_hold_back_every_request(
    serve: Callable[[Script], ScriptedServer], prompts: pl.DataFrame
) -> None:
    arrivals: list[float] = []

    def script(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], Any, float]:
        arrivals.append(time.monotonic())
        if number == 3:
            return 429, {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=2))}, {}, 0
        return 200, {}, completion(), 0

    answers = ask(teacher(serve(script), requests_per_minute=1200), prompts)
    assert {answer.finish_reason for answer in answers} == {"stop"}
    gaps = sorted(later - earlier for earlier, later in itertools.pairwise(arrivals))
    assert gaps[-1] >= 0.9, "a date names whole seconds, so two seconds ahead are at least one"
    assert sum(gaps[:-1]) >= 0.7, "twenty-one requests of twenty a second"


def test_a_server_busy_for_longer_than_anyone_waits_fails_the_request_at_once(
    serve: Callable[[Script], ScriptedServer], prompts: pl.DataFrame
) -> None:
    server = serve(lambda n, body: (429, {"Retry-After": "3600"}, {}, 0))
    began = time.monotonic()
    assert [answer.error for answer in ask(teacher(server), prompts.head(1))] == ["status 429"]
    assert time.monotonic() - began < 2


def test_a_server_that_knows_no_seeds_is_asked_without(
    serve: Callable[[Script], ScriptedServer], prompts: pl.DataFrame
) -> None:
    def script(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], Any, float]:
        if "seed" in body:
            return 422, {}, {"error": {"message": "unknown parameter: seed"}}, 0
        return 200, {}, completion(), 0

    server = serve(script)
    assert {answer.finish_reason for answer in ask(teacher(server), prompts)} == {"stop"}
    assert sum("seed" in body for body in server.requests) <= 4


def test_what_a_server_dislikes_about_a_request_is_told_and_not_asked_again(
    serve: Callable[[Script], ScriptedServer], prompts: pl.DataFrame
) -> None:
    words = f"max_tokens is above 4096 for key {KEY} and {KEY[:9]}***"
    server = serve(lambda n, body: (400, {}, {"error": {"message": words}}, 0))
    (answer,) = ask(teacher(server), prompts.head(1))
    assert "max_tokens is above 4096" in str(answer.error)
    assert "secret" not in str(answer.error)
    assert KEY[:9] not in str(answer.error)
    assert len(server.requests) == 1


def test_the_key_is_in_no_log_whatever_is_logged(
    serve: Callable[[Script], ScriptedServer],
    prompts: pl.DataFrame,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_LOG", "debug")
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx", "httpcore", "httpx2", "httpcore2"):
        caplog.set_level(logging.DEBUG, logger=name)
    server = serve(lambda n, body: (500, {}, {"error": KEY}, 0) if n == 0 else (200, {}, completion(), 0))
    asked = teacher(server)
    traces = collect_traces(prompts, asked, TracesConfig(), tmp_path, 42)
    assert "chat/completions" in caplog.text, "nothing was logged: the test shows nothing"
    files = "".join(path.read_text() for path in tmp_path.iterdir())
    shown = [repr(asked), repr(vars(asked)), repr(asked.identity), traces.write_json(), teaching_report(traces), files]
    assert KEY not in caplog.text + "".join(shown)


def test_thinking_kept_apart_is_kept_but_not_taken_for_an_answer(
    serve: Callable[[Script], ScriptedServer], prompts: pl.DataFrame, tmp_path: Path
) -> None:
    thought = "SELL? no\n####\nSELL 1 ETH"
    server = serve(
        lambda n, body: (200, {}, completion(GOOD, **{("reasoning", "reasoning_content")[n % 2]: thought}), 0)
    )
    traces = collect_traces(prompts, teacher(server), TracesConfig(), tmp_path, 42)
    assert set(traces["side"]) == {"HOLD"}
    kept = [json.loads(line) for line in (tmp_path / "openai_qwen_qwq-32b.jsonl").read_text().splitlines()]
    assert {line["reasoning"] for line in kept} == {thought}


def storm(calm: dict[tuple[str, int], Any]) -> tuple[Script, Counter[tuple[str, int]]]:
    """A script with every fault before the answer of ``calm``, and how often it delivered each answer."""
    faults = [
        (429, {"Retry-After": "0.05"}, {"error": {"message": "slow down"}}, 0),
        (429, {}, {"error": {"message": "slow down"}}, 0),
        (500, {}, {"error": {"message": "oops"}}, 0),
        (503, {"Retry-After": "0"}, b"", 0),
        (200, {}, b'{"id": "x", "choices": [{"mess', 0),
        (200, {}, {**completion(), "choices": [], "usage": None}, 0),
        (200, {"Content-Type": "text/html"}, b"<html>gateway</html>", 0),
        (200, {}, {**completion(None, "error"), "usage": None}, 0),
        (200, {}, completion(), 2.5),  # later than the timeout
    ]
    delivered: Counter[tuple[str, int]] = Counter()
    visits: Counter[tuple[str, int]] = Counter()
    charged: Counter[tuple[str, int]] = Counter()

    def script(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], Any, float]:
        key = (body["messages"][1]["content"], body["seed"])
        chance = random.Random(f"{key}{visits[key]}")
        visits[key] += 1
        if chance.random() < 0.3:
            fault = chance.choice(faults)
            if fault not in (faults[4], faults[8]) or not charged[key]:  # twice, and the prompt is given up
                charged[key] += fault in (faults[4], faults[8])
                return fault
        delivered[key] += 1
        return 200, {}, calm[key], 0.01 * chance.random()

    return script, delivered


def test_no_fault_loses_an_answer_pays_twice_or_changes_the_data_version(
    serve: Callable[[Script], ScriptedServer], windows: pl.DataFrame, tmp_path: Path
) -> None:
    prompts = build_prompts(windows, PromptsConfig(train_prompts=80, valid_prompts=10, test_prompts=10), 42)
    malformed = [
        completion("<think>so the trend", "length"),
        completion("", reasoning="the trend is up"),
        completion(None, refusal="I cannot advise"),
        completion("趋势上涨\n####\nBUY 1 ETH"),
        completion("flat\n####\nHOLD or BUY 1 ETH"),
    ]
    answers = {}
    for row in prompts.to_dicts():
        for seed in (42, 42 + 7919):
            chance = random.Random(f"{row['prompt_id']}{seed}")
            good = completion(render_answer(rules_answer(row)))
            answers[row["prompt"], seed] = chance.choice(malformed) if chance.random() < 0.2 else good
    config = TracesConfig(attempts=2)
    calm = collect_traces(
        prompts, teacher(serve(lambda n, b: (200, {}, answers[b["messages"][1]["content"], b["seed"]], 0))), config,
        tmp_path / "calm", 42,
    )  # fmt: skip
    assert 0 < 100 - refusal_counts(calm)["accepted"] < 10
    assert {"cut_off", "only_thinking", "refused", "not_english", "several_actions"} <= set(answer_counts(calm))
    script, delivered = storm(answers)
    patient = teacher(serve(script), concurrency=32, retries=8, timeout_s=2)  # a busy machine is slow too
    stormy = collect_traces(prompts, patient, config, tmp_path / "storm", 42)
    books = ["prompt_tokens", "completion_tokens", "cost_usd", "lost_requests", "estimated"]
    versions = [hashlib.sha256(parquet_bytes(traces.drop(books))).digest() for traces in (stormy, calm)]
    assert versions[0] == versions[1]
    assert stormy["lost_requests"].sum() > 0 == calm["lost_requests"].sum()
    assert set(delivered.values()) == {1}
    assert sum(delivered.values()) == calm["attempts"].sum()


@pytest.mark.parametrize(
    ("budget", "requests"), [({"max_requests": 7}, 7), ({"max_total_tokens": 1000}, 6), ({"max_cost_usd": 0.0002}, 5)]
)
def test_a_budget_is_exceeded_by_no_more_than_was_under_way(
    serve: Callable[[Script], ScriptedServer],
    prompts: pl.DataFrame,
    tmp_path: Path,
    budget: dict[str, Any],
    requests: int,
) -> None:
    server = serve(lambda n, body: (200, {}, completion(), 0.02))  # 180 tokens, 42 millionths of a dollar
    asked = teacher(server, concurrency=3, price=(0.2, 0.4))
    traces = collect_traces(prompts, asked, TracesConfig(**budget), tmp_path, 42)
    assert requests <= len(server.requests) <= requests + 2
    assert refusal_counts(traces) == {"not_asked": 20 - len(server.requests), "accepted": len(server.requests)}


def test_a_money_budget_that_cannot_be_kept_ends_the_run_with_the_remedy(
    serve: Callable[[Script], ScriptedServer], prompts: pl.DataFrame, tmp_path: Path
) -> None:
    server = serve(lambda n, body: (200, {}, completion(), 0.02))
    with pytest.raises(TeacherError, match=r"price of this model is unknown\. Set APEAGENT_TEACHER_PRICES"):
        collect_traces(prompts, teacher(server), TracesConfig(max_cost_usd=1.0), tmp_path, 42)
    assert len(server.requests) <= 8
    charged = {**completion(), "usage": {"prompt_tokens": 150, "completion_tokens": 30, "cost": 0.01}}
    told = serve(lambda n, body: (200, {}, charged, 0.02))
    traces = collect_traces(prompts, teacher(told), TracesConfig(max_cost_usd=0.05), tmp_path / "told", 42)
    assert 5 <= len(told.requests) <= 8
    assert traces["cost_usd"].sum() == pytest.approx(0.01 * len(told.requests))


def test_more_room_asks_again_for_what_was_cut_off_and_nothing_else(
    serve: Callable[[Script], ScriptedServer], prompts: pl.DataFrame, tmp_path: Path
) -> None:
    long = set(prompts["prompt"].head(3))

    def script(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], Any, float]:
        cut = body["messages"][1]["content"] in long and body["max_tokens"] < 4096
        return 200, {}, completion("<think>hm", "length") if cut else completion(), 0

    server = serve(script)
    config = TracesConfig(attempts=1)
    narrow = collect_traces(prompts, teacher(server, max_tokens=1024), config, tmp_path, 42)
    assert refusal_counts(narrow) == {"accepted": 17, "cut_off": 3}
    wide = collect_traces(prompts, teacher(server, max_tokens=4096), config, tmp_path, 42)
    assert refusal_counts(wide) == {"accepted": 20}
    assert len(server.requests) == 23
