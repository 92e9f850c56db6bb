"""A node and a teacher that mean harm: what they send is bounded, stays where it is, and is never obeyed."""

import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from apeagent_pipeline.chain import rpc
from apeagent_pipeline.chain.answers import read_transaction
from apeagent_pipeline.chain.events import LogError
from apeagent_pipeline.chain.rpc import Endpoint, MaskedHTTPProvider, RateLimiter
from apeagent_pipeline.chain.rpc_errors import RpcError, RpcErrorKind
from apeagent_pipeline.cli import main
from apeagent_pipeline.distillation.teachers.openai_server import OpenAITeacher
from apeagent_pipeline.distillation.teachers.server_config import OpenAITeacherConfig
from apeagent_pipeline.distillation.teachers.teacher import TeacherAnswer
from apeagent_pipeline_tests.distillation.scripted_server import completion
from apeagent_pipeline_tests.security.hostile_server import (
    Answer,
    HostileServer,
    bomb,
    document,
    dripping,
    endless,
    raw,
    redirect,
)
from apeagent_pipeline_tests.servers import stopped_afterwards

Serve = Callable[[Answer], HostileServer]
KEY = "sk-s3cr3t-0123456789"
OBEYED = "\x1b]0;owned\x07\x1b[2J[/bold][link=http://evil.example]x[/link]"


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts hostile servers and stops them after the test."""
    yield from stopped_afterwards(HostileServer)


def memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def refusal_of_node(server: HostileServer) -> RpcError:
    endpoint = Endpoint(MaskedHTTPProvider(SecretStr(f"{server.url}/{KEY}"), "RPC endpoint 1"), RateLimiter(0))
    with pytest.raises(RpcError) as error:
        endpoint.results([("eth_getLogs", [])])
    return error.value


def answer_of_teacher(server: HostileServer, **config: Any) -> TeacherAnswer:
    teacher = OpenAITeacher(server.url, "m", KEY, OpenAITeacherConfig(retries=0, concurrency=1, **config))
    (answer,) = teacher.answer([{"prompt_id": "1", "prompt": "what?"}], seed=1)
    return answer


@pytest.mark.parametrize("answer", [endless, bomb])
def test_an_answer_of_a_node_without_end_or_packed_small_costs_no_more_than_the_largest_real_one(
    serve: Serve, answer: Answer
) -> None:
    before = memory_mib()
    refused = refusal_of_node(serve(answer))
    assert "more than 128 MiB" in str(refused)
    assert refused.kind is RpcErrorKind.RANGE  # so that the collector asks for fewer blocks
    assert memory_mib() - before < 400


@pytest.mark.parametrize(("answer", "said"), [(endless, "more than 16 MiB"), (bomb, "several encodings")])
def test_an_answer_of_a_teacher_without_end_or_packed_small_is_refused(serve: Serve, answer: Answer, said: str) -> None:
    before = memory_mib()
    refused = answer_of_teacher(serve(answer))
    assert refused.finish_reason == "lost"
    assert said in str(refused.error)
    assert memory_mib() - before < 100


def test_an_answer_in_drops_is_not_waited_for_for_ever(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "LONGEST_ANSWER_SECONDS", 0.5)
    begun = time.monotonic()
    assert "did not end within 0.5 s" in str(refusal_of_node(serve(dripping)))
    assert answer_of_teacher(serve(dripping), timeout_s=0.5).error == "no answer within 0.5 s"
    assert time.monotonic() - begun < 10


def test_a_redirect_takes_neither_key_nor_prompt_to_another_host(serve: Serve) -> None:
    thief = serve(document(completion()))
    assert "HTTP 307" in str(refusal_of_node(serve(redirect(thief.url))))
    assert "status 307" in str(answer_of_teacher(serve(redirect(f"{thief.url}/chat/completions"))).error)
    assert thief.requests == []


def test_what_a_server_says_of_an_error_is_no_terminal_command_and_not_the_key(serve: Serve) -> None:
    told = [
        str(refusal_of_node(serve(document({"id": 1, "error": {"code": {"a": 1}, "message": OBEYED + KEY}})))),
        str(refusal_of_node(serve(document(OBEYED + KEY, 500)))),
        str(answer_of_teacher(serve(document({"error": {"message": f"{OBEYED} {KEY}"}}, 422))).error),
    ]
    assert all(text.isprintable() and KEY not in text for text in told), told


@pytest.fixture
def as_deep_as_web3_allows() -> Iterator[None]:
    """Python's json reader ends the process there, before it has called itself that often."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    yield
    sys.setrecursionlimit(before)


UNREADABLE = [
    b"[" * 100_000,
    b'["\\ud800", ' + b"[" * 100_000,
    b"\x80",
    b"1" * 5_000,
    b'{"id": 1, "error": {"code": [], "message": {}}}',
    b'{"id": 1}',
]


@pytest.mark.parametrize("body", UNREADABLE)
def test_an_answer_that_no_reader_of_json_expects_is_a_nodes_or_teachers_own_error(
    serve: Serve, body: bytes, as_deep_as_web3_allows: None
) -> None:
    assert str(refusal_of_node(serve(raw(body)))).startswith("RPC endpoint 1 ")
    assert str(answer_of_teacher(serve(raw(body))).error).startswith("malformed answer")
    assert str(answer_of_teacher(serve(raw(body, 422))).error).startswith("status 422")


def test_a_redirect_to_bytes_that_are_no_text_is_an_error_of_the_node(serve: Serve) -> None:
    assert "RPC endpoint 1 gave no answer" in str(refusal_of_node(serve(redirect("\x80"))))


@pytest.mark.parametrize("text", ["\ud800", ["parts"], {"a": 1}, 7])
def test_a_text_that_is_none_or_half_a_character_reaches_no_file(serve: Serve, text: Any) -> None:
    lie = completion()
    lie["choices"][0]["message"] |= {"content": text, "reasoning": None}
    answer = answer_of_teacher(serve(document(lie)))
    assert answer.text == ("parts" if text == ["parts"] else "")
    assert answer.finish_reason in ("stop", "lost", "unusable")


def test_an_address_that_is_none_is_not_stored_as_a_sender() -> None:
    good = {"hash": "0x" + "1" * 64, "blockHash": "0x" + "2" * 64, "from": "0x" + "A" * 40, "to": None}
    assert read_transaction(good)[2:] == ("0x" + "a" * 40, None)
    for lie in ({"from": OBEYED}, {"to": 7}, {"to": "0x1"}, {"from": None}):
        with pytest.raises(LogError, match="transaction"):
            read_transaction({**good, **lie})


def test_a_teachers_lies_about_tokens_and_money_spend_no_budget(serve: Serve) -> None:
    lie = completion()
    lie["usage"] = {"prompt_tokens": -(10**9), "completion_tokens": 1e308, "cost": float("-inf")}
    answer = answer_of_teacher(serve(document(lie)))
    assert answer.estimated
    assert answer.prompt_tokens is not None
    assert answer.completion_tokens is not None
    assert 0 < answer.prompt_tokens < 1000 > answer.completion_tokens > 0
    assert answer.cost_usd is None
    assert answer.text == completion()["choices"][0]["message"]["content"]


def test_what_is_asked_and_answered_stands_in_no_log(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for name in ("openai", "httpx2", "httpcore2"):
        caplog.set_level(logging.INFO, logger=name)
    server = serve(document(completion("my-own-answer\n####\nHOLD")))
    teacher = OpenAITeacher(server.url, "m", KEY, OpenAITeacherConfig(retries=0, concurrency=1))
    (answer,) = teacher.answer([{"prompt_id": "1", "prompt": "my-own-question"}], seed=1)
    assert answer.finish_reason == "stop"
    assert "200 OK" in caplog.text, "nothing was logged: the test shows nothing"
    assert "my-own" not in caplog.text


def test_a_command_shows_foreign_words_and_does_not_obey_them(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node = serve(document({"id": 1, "error": {"code": -32000, "message": OBEYED}}))
    monkeypatch.chdir(tmp_path)
    for name, value in {"HOME": str(tmp_path / "home"), "RPC_URLS": node.url, "STUDENT": str(tmp_path)}.items():
        monkeypatch.setenv(f"APEAGENT_{name}", value)
    monkeypatch.setenv("COLUMNS", "400")
    told = ""
    for arguments in (["doctor"], ["devnet", "--from", OBEYED]):
        monkeypatch.setattr(sys, "argv", ["apeagent", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code
        shown = capsys.readouterr()
        told += shown.out + shown.err
    assert told.count("[/bold][link=http://evil.example]x[/link]") == 2
    assert not any(part in told for part in ("\x1b]", "\x1b[2J", "\x07"))
