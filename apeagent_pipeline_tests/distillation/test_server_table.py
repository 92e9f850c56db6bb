"""How servers and routers fail, each against an account that bills what it generates.

For every behaviour the table says what must come of it. In all of them the money told is the money spent, and nothing
is sent again after it was generated, except once where the server may have charged without an answer.
"""

import gzip
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from apeagent_pipeline.distillation.prompts import PromptsConfig, build_prompts
from apeagent_pipeline.distillation.teachers.openai_server import OpenAITeacher
from apeagent_pipeline.distillation.teachers.server_config import OpenAITeacherConfig
from apeagent_pipeline.distillation.teachers.teacher import TeacherError
from apeagent_pipeline.distillation.traces import TracesConfig, collect_traces, stored_traces
from apeagent_pipeline_tests.distillation.scripted_server import GOOD, Script, ScriptedServer, completion

COST = 0.001
Sent = tuple[int, dict[str, str], Any, float]
Behaviour = Callable[[int, str, int], Sent | None]
"""Called with the number of the request, the prompt and how often it was asked before; None: a billed good answer."""


@pytest.fixture(scope="module")
def prompts(windows: pl.DataFrame) -> pl.DataFrame:
    return build_prompts(windows, PromptsConfig(train_prompts=30, valid_prompts=5, test_prompts=5), 42)


def billed(text: Any = GOOD, finish_reason: str = "stop", **usage: Any) -> dict[str, Any]:
    document = completion(text, finish_reason)
    document["usage"] = {"prompt_tokens": 150, "completion_tokens": 30, "cost": COST, **usage}
    return document


class Account:
    """A scripted server that bills: ``spent`` is the sum of what its replies cost."""

    def __init__(self, serve: Callable[[Script], ScriptedServer], behaviour: Behaviour) -> None:
        self.spent = 0.0
        self.generated: Counter[str] = Counter()
        self.visits: Counter[str] = Counter()
        lock = threading.Lock()

        def script(number: int, body: dict[str, Any]) -> Sent:
            prompt = body["messages"][1]["content"]
            with lock:
                before = self.visits[prompt]
                self.visits[prompt] += 1
                sent = behaviour(number, prompt, before) or (200, {}, billed(), 0)
                if self.charges(sent):
                    self.spent += COST
                    self.generated[prompt] += 1
            return sent

        self.server = serve(script)

    @staticmethod
    def charges(sent: Sent) -> bool:
        """A reply that carries a usage, or comes after its generation, was charged."""
        return sent[1].get("X-Billed") == "yes" or (isinstance(sent[2], dict) and bool(sent[2].get("usage")))

    def teacher(self, **changes: Any) -> OpenAITeacher:
        config = {"concurrency": 4, "timeout_s": 5.0, "patience_s": 30.0, **changes}
        return OpenAITeacher(self.server.url, "some/model", "key", OpenAITeacherConfig(**config))


BILLED = {"X-Billed": "yes"}
first = 0


def run(account: Account, prompts: pl.DataFrame, folder: Path, **changes: Any) -> pl.DataFrame:
    config = TracesConfig(attempts=1)
    teacher = account.teacher(**changes)
    try:
        return collect_traces(prompts, teacher, config, folder, 42)
    except TeacherError:
        return stored_traces(prompts, teacher, config, folder, 42)


def told(traces: pl.DataFrame) -> float:
    return float(traces["cost_usd"].sum() or 0)


def reasons(traces: pl.DataFrame) -> dict[str, int]:
    return dict(Counter(traces["rejected_reason"].fill_null("accepted")))


def on_some(reply: Callable[[int], Sent | None], times: int = 1) -> Behaviour:
    """The reply to every fifth request, at most so many times a prompt."""
    return lambda number, prompt, before: reply(number) if number % 5 == 0 and before < times else None


def error(status: int, message: str, **more: Any) -> Callable[[int], Sent]:
    return lambda number: (status, more.pop("headers", {}), {"error": {"code": status, "message": message, **more}}, 0)


def inside(status: int, message: str) -> Callable[[int], Sent]:
    document = {**completion(None, "error"), "usage": None}
    document["choices"][0]["error"] = {"code": status, "message": message}
    return lambda number: (200, {}, document, 0)


PARTS = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": GOOD}]
SSE = b"".join(
    b"data: " + json.dumps(piece).encode() + b"\n\n"
    for piece in (
        {"choices": [{"delta": {"role": "assistant", "content": "portfolio seen\n"}}]},
        {"choices": [{"delta": {"content": "####\nHOLD"}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 150, "completion_tokens": 30, "cost": COST}},
    )
)
WHOLE = json.dumps(billed()).encode()


@pytest.mark.parametrize(
    ("behaviour", "again"),
    [
        (on_some(lambda n: (402, {"Retry-After": "0.2"}, {"error": {"message": "spending limit reached"}}, 0)), True),
        (on_some(lambda n: (429, {"Retry-After": "0.2"}, {}, 0)), True),
        (on_some(lambda n: (429, {"retry-after-ms": "200"}, {}, 0)), True),
        (on_some(lambda n: (429, {"x-ratelimit-reset-requests": "200ms"}, {}, 0)), True),
        (on_some(lambda n: (429, {"X-RateLimit-Reset": str(int(time.time() * 1000) + 300)}, {}, 0)), True),
        (on_some(lambda n: (429, {}, {"error": {"message": "Please try again in 0.2s."}}, 0)), True),
        (
            on_some(
                lambda n: (
                    429,
                    {},
                    {"error": {"metadata": {"headers": {"X-RateLimit-Reset": "0.2"}}, "message": ""}},
                    0,
                )
            ),
            True,
        ),
        (on_some(lambda n: (503, {}, b"", 0), times=3), True),
        (on_some(lambda n: (500, {}, {"error": "oops"}, 0)), True),
        (on_some(lambda n: (200, {}, {"error": {"code": 429, "message": "busy"}}, 0)), True),
        (on_some(lambda n: (200, {}, {"error": {"code": 502, "message": "provider failed"}}, 0)), True),
        (on_some(inside(429, "rate limited upstream")), True),
        (on_some(inside(502, "upstream broke off")), True),
        (on_some(lambda n: (200, {"Content-Type": "text/html"}, b"<html>gateway</html>", 0)), True),
        (on_some(lambda n: (529, {}, {"error": {"type": "overloaded_error"}}, 0)), True),
        (on_some(lambda n: (520, {"Content-Type": "text/html"}, b"<html>unknown error</html>", 0)), True),
        (on_some(lambda n: (200, BILLED, b"\n\n   " + WHOLE, 0)), False),
        (on_some(lambda n: (200, BILLED, WHOLE + b"\n\n-- proxied by gate", 0)), False),
        (on_some(lambda n: (200, BILLED, b": PROCESSING\n\n: PROCESSING\n\n" + WHOLE, 0)), False),
        (on_some(lambda n: (200, BILLED, b"\xef\xbb\xbf" + WHOLE, 0)), False),
        (on_some(lambda n: (200, {**BILLED, "Content-Encoding": "gzip"}, gzip.compress(WHOLE), 0)), False),
        (on_some(lambda n: (200, {**BILLED, "Content-Type": "text/event-stream"}, SSE, 0)), False),
        (on_some(lambda n: (200, BILLED, SSE, 0)), False),
        (on_some(lambda n: (200, {}, billed(PARTS), 0)), False),
        (on_some(lambda n: (200, {}, billed(GOOD, None), 0)), False),
    ],
)
def test_a_behaviour_that_is_not_the_end_costs_nothing_and_loses_nothing(
    serve: Callable[..., ScriptedServer], prompts: pl.DataFrame, tmp_path: Path, behaviour: Behaviour, again: bool
) -> None:
    account = Account(serve, behaviour)
    traces = run(account, prompts, tmp_path)
    assert reasons(traces) == {"accepted": 40}
    assert set(account.generated.values()) == {1}
    assert told(traces) == pytest.approx(account.spent)
    assert (len(account.server.requests) > 40) == again


@pytest.mark.parametrize(
    ("status", "document", "says"),
    [
        (402, {"error": {"message": "Insufficient credits. Add more and retry."}}, "no credit left"),
        (402, {"error": {"message": "can only afford 2000, use fewer max_tokens"}}, "APEAGENT_TEACHER_MAX_TOKENS"),
        (404, {"error": {"message": "No endpoints found matching your data policy"}}, "data policy"),
        (404, {"error": {"message": "No endpoints found for some/model."}}, "no such model"),
        (400, {"error": {"message": "some/model is not a valid model ID"}}, "no such model"),
        (400, {"error": {"message": "max_tokens is too large: 8192. At most 4096."}}, "APEAGENT_TEACHER_MAX_TOKENS"),
        (
            400,
            {"error": {"message": "This model's maximum context length is 4096", "type": "invalid_request_error"}},
            "APEAGENT_TEACHER_MAX_TOKENS",
        ),
        (401, {"error": {"message": "No auth credentials found"}}, "refuses the key"),
        (429, {"error": {"code": "insufficient_quota", "message": "You exceeded your current quota"}}, "no credit"),
        (200, {"error": {"code": 402, "message": "Insufficient credits"}}, "no credit left"),
        (200, {"error": {"code": 401, "message": "User not found."}}, "refuses the key"),
    ],
)
def test_a_hopeless_error_ends_the_run_at_once_with_the_servers_words_and_the_setting(
    serve: Callable[..., ScriptedServer],
    prompts: pl.DataFrame,
    tmp_path: Path,
    status: int,
    document: dict[str, Any],
    says: str,
) -> None:
    account = Account(serve, lambda *_: (status, {}, document, 0.05))
    with pytest.raises(TeacherError, match=says) as caught:
        collect_traces(prompts, account.teacher(), TracesConfig(), tmp_path, 42)
    assert document["error"]["message"].split()[0] in str(caught.value)
    assert len(account.server.requests) <= 4
    assert account.spent == 0


@pytest.mark.parametrize(
    "reply",
    [
        error(403, "Your input was flagged", metadata={"reasons": ["violence"], "flagged_input": "..."}),
        error(403, "Request not permitted for this input"),
        error(451, "Unavailable for legal reasons"),
        error(400, "The response was filtered", type="content_filter"),
        lambda n: (200, {}, {"error": {"code": 403, "message": "input requires moderation"}}, 0),
    ],
)
def test_a_moderated_prompt_is_refused_alone(
    serve: Callable[..., ScriptedServer], prompts: pl.DataFrame, tmp_path: Path, reply: Callable[[int], Sent]
) -> None:
    victim = prompts["prompt"][3]
    account = Account(serve, lambda number, prompt, before: reply(number) if prompt == victim else None)
    traces = run(account, prompts, tmp_path)
    assert reasons(traces) == {"accepted": 39, "refused": 1}
    assert account.visits[victim] == 1
    assert len(traces["rejected_detail"][3] or "") > 10
    assert told(traces) == pytest.approx(account.spent)
    run(account, prompts, tmp_path)
    assert account.visits[victim] == 1, "a refused prompt is not asked for again by itself"


@pytest.mark.parametrize(
    "document",
    [
        billed("half an", "error"),
        {**billed(), "choices": []},
        billed(17),
        {**billed(None, "error"), "error": {"code": 502, "message": "the provider failed after generation"}},
    ],
)
def test_an_answer_that_was_paid_but_cannot_be_used_is_kept_once_with_its_reason(
    serve: Callable[..., ScriptedServer], prompts: pl.DataFrame, tmp_path: Path, document: dict[str, Any]
) -> None:
    account = Account(serve, lambda number, prompt, before: (200, {}, document, 0) if number % 4 == 0 else None)
    traces = run(account, prompts, tmp_path)
    assert len(account.server.requests) == 40 == sum(account.generated.values())
    assert reasons(traces) == {"accepted": 30, "unusable": 10}
    assert told(traces) == pytest.approx(account.spent)
    run(account, prompts, tmp_path)
    assert len(account.server.requests) == 40


@pytest.mark.parametrize(
    "reply",
    [
        lambda n: (200, BILLED, WHOLE, 1.6),  # later than the timeout
        lambda n: (524, BILLED, {"error": {"message": "A timeout occurred"}}, 0),
        lambda n: (504, BILLED, b"", 0),
        lambda n: (499, BILLED, {"error": {"message": "client closed request"}}, 0),
        lambda n: (200, BILLED, WHOLE[:-20], 0),
        lambda n: (200, BILLED, [SSE[:60], None], 0),
    ],
)
def test_what_may_have_been_paid_is_told_and_sent_again_once(
    serve: Callable[..., ScriptedServer], prompts: pl.DataFrame, tmp_path: Path, reply: Callable[[int], Sent]
) -> None:
    late = set(prompts["prompt"][10:16])
    hopeless = prompts["prompt"][20]

    def behaviour(number: int, prompt: str, before: int) -> Sent | None:
        return reply(number) if prompt == hopeless or (prompt in late and before == 0) else None

    account = Account(serve, behaviour)
    traces = run(account, prompts, tmp_path, timeout_s=1.0)
    assert reasons(traces) == {"accepted": 39, "no_answer": 1}
    assert account.visits[hopeless] == 2
    assert traces["lost_requests"].sum() == 8
    assert told(traces) == pytest.approx(account.spent, rel=0.05)
    run(account, prompts, tmp_path, timeout_s=1.0)
    assert len(account.server.requests) == 47, "not by another run either"


def test_a_budget_counts_what_may_have_been_paid(
    serve: Callable[..., ScriptedServer], prompts: pl.DataFrame, tmp_path: Path
) -> None:
    account = Account(serve, lambda number, prompt, before: (200, BILLED, WHOLE, 1.6) if number % 2 else None)
    config = TracesConfig(attempts=1, max_requests=10)
    collect_traces(prompts, account.teacher(timeout_s=1.0), config, tmp_path, 42)
    assert 10 <= len(account.server.requests) <= 10 + 2 * 4


def test_a_missing_usage_is_estimated_and_marked(
    serve: Callable[..., ScriptedServer], prompts: pl.DataFrame, tmp_path: Path
) -> None:
    silent = {**billed(), "usage": None}
    account = Account(serve, lambda n, p, b: (200, BILLED, json.dumps(silent).encode(), 0) if n == 20 else None)
    config = TracesConfig(attempts=1, max_cost_usd=1.0, max_total_tokens=10**6)
    traces = collect_traces(prompts, account.teacher(), config, tmp_path, 42)
    assert reasons(traces) == {"accepted": 40}
    assert traces["estimated"].sum() == 1
    assert told(traces) == pytest.approx(account.spent, rel=0.05)


def test_what_the_users_own_key_pays_upstream_counts_against_the_budget(
    serve: Callable[..., ScriptedServer], prompts: pl.DataFrame, tmp_path: Path
) -> None:
    own_key = billed(cost=0, is_byok=True, cost_details={"upstream_inference_cost": COST})
    account = Account(serve, lambda *_: (200, {}, own_key, 0.02))
    traces = collect_traces(prompts, account.teacher(), TracesConfig(max_cost_usd=10 * COST), tmp_path, 42)
    assert told(traces) == pytest.approx(account.spent)
    assert 10 <= len(account.server.requests) <= 14
    routed = billed(is_byok=False, cost_details={"upstream_inference_cost": COST})
    account = Account(serve, lambda *_: (200, {}, routed, 0))
    assert told(run(account, prompts, tmp_path / "routed")) == pytest.approx(account.spent)


@pytest.mark.parametrize("name", ["model_length", "max_tokens", "MAX_TOKENS", "length"])
def test_an_answer_cut_off_under_any_name_is_asked_again_only_with_more_room(
    serve: Callable[..., ScriptedServer], prompts: pl.DataFrame, tmp_path: Path, name: str
) -> None:
    account = Account(serve, lambda n, p, b: (200, {}, billed("<think>so", name), 0) if b == 0 and n < 5 else None)
    traces = run(account, prompts, tmp_path)
    assert reasons(traces) == {"accepted": 35, "cut_off": 5}
    run(account, prompts, tmp_path)
    assert len(account.server.requests) == 40
    assert reasons(run(account, prompts, tmp_path, max_tokens=16000)) == {"accepted": 40}
    assert len(account.server.requests) == 45


def test_who_answered_is_kept_and_a_changed_model_is_seen(
    serve: Callable[..., ScriptedServer], prompts: pl.DataFrame, tmp_path: Path
) -> None:
    def behaviour(number: int, prompt: str, before: int) -> Sent:
        return 200, {}, {**billed(), "model": "m-0725" if number < 30 else "m-0901", "provider": "Groq"}, 0

    traces = run(Account(serve, behaviour), prompts, tmp_path)
    assert Counter(traces["answered_by"]) == {"m-0725 at Groq": 30, "m-0901 at Groq": 10}


def test_a_wrong_address_is_told_after_a_few_replies(
    serve: Callable[..., ScriptedServer], prompts: pl.DataFrame, tmp_path: Path
) -> None:
    account = Account(serve, lambda *_: (200, {"Content-Type": "text/html"}, b"<!doctype html><p>Welcome", 0))
    with pytest.raises(TeacherError, match=r"a web page; check APEAGENT_TEACHER_BASE_URL"):
        collect_traces(prompts, account.teacher(), TracesConfig(), tmp_path, 42)
    assert len(account.server.requests) <= 16


@pytest.mark.parametrize(("key", "what"), [('"sk-1"', "a quote"), ("sk-1\n", "a line break"), ("sk 1", "a blank")])
def test_a_key_that_was_copied_wrongly_is_told_before_anything_is_sent(key: str, what: str) -> None:
    with pytest.raises(TeacherError, match=f"the key holds {what}") as caught:
        OpenAITeacher("http://127.0.0.1:9/v1", "m", key)
    assert "sk" not in str(caught.value)


def stream_of(text: str, pause: float = 0.0, usage: bool = True) -> list[Any]:
    pieces: list[Any] = []
    for word in text.split(" "):
        pieces += [b"data: " + json.dumps({"choices": [{"delta": {"content": word + " "}}]}).encode() + b"\n\n", pause]
    end = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    pieces += [b"data: " + json.dumps(end).encode() + b"\n\n"]
    if usage:
        told = {"choices": [], "usage": {"prompt_tokens": 150, "completion_tokens": 30, "cost": COST}}
        pieces += [b"data: " + json.dumps(told).encode() + b"\n\n"]
    return [*pieces, b"data: [DONE]\n\n"]


def test_a_slow_stream_is_no_timeout(
    serve: Callable[..., ScriptedServer], prompts: pl.DataFrame, tmp_path: Path
) -> None:
    slow = "<think>the price moves up a bit</think>portfolio seen\n####\nHOLD"
    account = Account(serve, lambda *_: (200, BILLED, stream_of(slow, 0.15), 0))
    traces = run(account, prompts.head(4), tmp_path, stream=True, timeout_s=0.7)
    assert reasons(traces) == {"accepted": 4}
    assert account.server.requests[0]["stream"] is True
    assert account.server.requests[0]["stream_options"] == {"include_usage": True}
    assert told(traces) == pytest.approx(account.spent)


def test_a_stream_that_stops_costs_what_was_written_and_is_asked_again_once(
    serve: Callable[..., ScriptedServer], prompts: pl.DataFrame, tmp_path: Path
) -> None:
    broken = [*stream_of("<think>up and up", 0, usage=False)[:-2], None]
    account = Account(serve, lambda n, p, before: (200, {}, broken if before == 0 else stream_of(GOOD), 0))
    traces = run(account, prompts.head(3), tmp_path, stream=True, price=(0.0, 1e6))
    assert reasons(traces) == {"accepted": 3}
    assert traces["lost_requests"].to_list() == [1, 1, 1]
    assert all(30 < tokens < 40 for tokens in traces["completion_tokens"])


def test_an_enforced_form_is_asked_for_and_read(
    serve: Callable[..., ScriptedServer], prompts: pl.DataFrame, tmp_path: Path
) -> None:
    form = json.dumps({"drafts": ["portfolio seen", "wait"], "action": "HOLD"})
    account = Account(serve, lambda *_: (200, {}, billed(form), 0))
    traces = run(account, prompts, tmp_path, structured=True)
    assert reasons(traces) == {"accepted": 40}
    assert traces["drafts"][0].to_list() == ["portfolio seen", "wait"]
    assert account.server.requests[0]["response_format"]["type"] == "json_schema"
    unable = Account(serve, lambda *_: (400, {}, {"error": {"message": "response_format is not supported"}}, 0))
    with pytest.raises(TeacherError, match="APEAGENT_TEACHER_STRUCTURED"):
        collect_traces(prompts, unable.teacher(structured=True), TracesConfig(), tmp_path / "unable", 42)
