"""Requests as every kind of client writes them: answered, or refused in the interface's own form."""

import json
import socket
import threading
import time

import pytest
import requests

from apeagent_pipeline.serving.engines import EngineError
from apeagent_pipeline_tests.serving.scripted_engine import Scripted, serving

PLAIN = "ETH price $2500. I hold 2.5 ETH and 900 USDC. Which trading action should I take?"
CHAT = [{"role": "user", "content": PLAIN}]
OPENAI, OLLAMA = "/v1/chat/completions", "/api/chat"
TOOL = {"type": "function", "function": {"name": "swap", "parameters": {"type": "object", "properties": {}}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def said(path, found):
    """The text of an answer."""
    body = found.json()
    return body["choices"][0]["message"]["content"] if path == OPENAI else body["message"]["content"]


def told(path, found):
    """The message of a refusal; the form of each interface is checked on the way."""
    error = found.json()["error"]
    if path == OLLAMA:
        assert isinstance(error, str)
        return error
    assert set(error) == {"message", "type", "param", "code"}
    return error["message"]


ANSWERED = (
    {"max_tokens": None, "stream": False, "stop": None, "n": None, "tools": None, "response_format": None},
    {"options": None, "model": None, "stream_options": None, "format": None, "logprobs": None, "tool_choice": None},
    {"tools": [], "response_format": {"type": "text"}, "format": "", "logprobs": False, "n": 1, "modalities": ["text"]},
    {"tools": [TOOL], "tool_choice": "none"},
    {"stop": "APE"}, {"stop": ["0", "\n", "####"]}, {"options": {"stop": ["APE"], "num_predict": 1}},
    {"functions": None, "max_tokens": 10**400}, {"max_tokens": 1},
    {"max_tokens": -1}, {"max_completion_tokens": 2}, {"options": {"num_predict": -2}},
    {"options": {"num_predict": "many", "temperature": None}},
    {"temperature": 2, "top_p": 0, "seed": 7, "presence_penalty": 2, "logit_bias": {"1": -100}, "user": "me"},
    {"keep_alive": "5m", "think": False, "raw": True, "template": "x", "unknown": {"a": [1]}, "model": "gpt-99"},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": PLAIN}, {"type": "text", "text": None}]}]},
    {"messages": [{"role": "developer", "content": None}, {"role": "assistant", "content": None}, *CHAT]},
    {"messages": [{"role": "user", "content": PLAIN, "images": [], "name": "bob", "tool_calls": None}]},
)  # fmt: skip
REFUSED = (
    ({"tools": [TOOL]}, "tools"),
    ({"tools": [TOOL], "tool_choice": "required"}, "tools"),
    ({"functions": [{"name": "swap"}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "JSON"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}}, "JSON"),
    ({"format": "json"}, "JSON"),
    ({"format": {"type": "object"}}, "JSON"),
    ({"n": 2}, "n=2"),
    ({"n": 0}, "n=0"),
    ({"n": "many"}, "n:"),
    ({"logprobs": True}, "logprobs"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": PLAIN}, IMAGE]}]}, "image_url"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "last message"),
    ({"messages": [{"role": "user", "content": PLAIN, "images": ["AAAA"]}]}, "images"),
    ({"messages": [{"role": "user", "content": None}]}, "last message"),
    ({"messages": [{"role": "user"}]}, "last message"),
    ({"messages": [{"role": "user", "content": {"text": PLAIN}}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": ["a"]}]}, "messages.0.content"),
    ({"messages": [*CHAT, {"role": "tool", "tool_call_id": "1", "content": "5"}]}, "messages.1.role"),
    ({"messages": [*CHAT, {"role": "assistant", "content": "APE IN"}]}, "last message"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [None]}, "messages.0"),
    ({"messages": [{"role": "user", "content": "I hold 1 ETH, " * 9_000}]}, "characters"),
    ({"model": 5}, "model"),
    ({"stop": 5}, "stop"),
    ({"max_tokens": "many"}, "max_tokens"),
    ({"stream": "perhaps"}, "stream"),
    ({"options": [1]}, "options"),
)


@pytest.fixture(scope="module")
def url():
    with serving(Scripted()) as url:
        yield url


@pytest.mark.parametrize("path", [OPENAI, OLLAMA])
def test_fields_that_clients_always_send_change_no_trade(url, path):
    for fields in ANSWERED:
        found = requests.post(url + path, json={"messages": CHAT, "stream": False, **fields}, timeout=20)
        assert found.status_code == 200, (fields, found.text)
        assert said(path, found) == "up strong, add\n####\nAPE IN 0.1 ETH", fields


@pytest.mark.parametrize("path", [OPENAI, OLLAMA])
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_not_given_is_refused_and_named(url, path, stream):
    for fields, named in REFUSED:
        found = requests.post(url + path, json={"messages": CHAT, "stream": stream, **fields}, timeout=20)
        assert found.status_code == 400, (fields, found.text)
        assert named in told(path, found), fields
        assert "Traceback" not in found.text


@pytest.mark.parametrize("path", [OPENAI, OLLAMA])
@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"null", b'"a"', b"{", b"\xff\xfe", b"[" * 100_000,
     b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
     b'{"messages": ' + b"[" * 5_000 + b"]" * 5_000 + b"}", b"a=1&b=2", b'{"max_tokens": NaN, "messages": []}'],
)  # fmt: skip
def test_a_body_that_is_no_request_is_refused(url, path, body):
    found = requests.post(url + path, data=body, timeout=20)
    assert found.status_code == 400
    assert told(path, found)


def test_other_paths_and_methods_are_refused_in_the_interfaces_form(url):
    for method, path, status in (
        ("GET", OPENAI, 405), ("POST", "/v1/models", 405), ("POST", "/v1/embeddings", 404), ("GET", OLLAMA, 405),
        ("POST", "/v1/responses", 404), ("POST", "/api/generate", 404), ("DELETE", "/api/delete", 404),
    ):  # fmt: skip
        found = requests.request(method, url + path, json={}, timeout=20)
        assert found.status_code == status
        assert path in told(OLLAMA if path.startswith("/api") else OPENAI, found)


def test_openais_client_gets_its_own_errors_and_the_usage_of_a_stream(url):
    from openai import BadRequestError, OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    with pytest.raises(BadRequestError, match="does not support tools"):
        client.chat.completions.create(model="apeagent", messages=CHAT, tools=[TOOL])
    with pytest.raises(BadRequestError, match="not JSON"):
        client.chat.completions.create(model="apeagent", messages=CHAT, response_format={"type": "json_object"})
    *_, before, last = client.chat.completions.create(
        model="apeagent", messages=CHAT, stream=True, stream_options={"include_usage": True}
    )
    assert before.choices[0].finish_reason == "stop"
    assert not last.choices
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens > last.usage.prompt_tokens


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("stop", "left"), [("gone", "one two three. "), (["zzz", "three"], "one two "), ("one", "")])
def test_a_stop_text_ends_an_ordinary_answer_before_it(stop, left, stream):
    body = {"messages": [{"role": "user", "content": "Tell me a story."}], "stop": stop, "stream": stream}
    with serving(Scripted("one two three. gone and more")) as url:
        found = requests.post(url + OLLAMA, json=body, timeout=20)
    lines = [json.loads(line) for line in found.text.splitlines()]
    assert "".join(line["message"]["content"] for line in lines) == left
    assert lines[-1]["done_reason"] == "stop"


class Endless:
    """An engine that is busy until it is closed, and answers one question at a time."""

    name = "endless"

    def __init__(self, piece):
        self.piece = piece
        self.turn, self.began, self.freed = threading.Lock(), threading.Event(), threading.Event()

    def stream(self, messages, max_new_tokens):
        with self.turn:
            try:
                while True:
                    self.began.set()
                    time.sleep(0.01)
                    yield self.piece
            finally:
                self.freed.set()


@pytest.mark.parametrize("path", [OPENAI, OLLAMA])
@pytest.mark.parametrize(("stream", "piece"), [(False, "word "), (True, "word "), (True, "line\n")])
def test_a_client_that_goes_away_frees_the_engine_for_the_next(path, stream, piece):
    engine = Endless(piece)
    body = json.dumps({"messages": [{"role": "user", "content": "Tell me a story."}], "stream": stream}).encode()
    with serving(engine) as url:
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            assert engine.began.wait(10)
            assert not stream or client.recv(100)
        assert engine.freed.wait(10)
        assert engine.turn.acquire(timeout=5)
        # A client that goes away before its request is whole disturbs nobody either.
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 500\r\n\r\n{{".encode())
        assert requests.get(f"{url}/api/version", timeout=10).ok


class Failing:
    """An engine that fails after some words."""

    name = "failing"

    def __init__(self, error, words=1):
        self.error, self.words = error, words

    def stream(self, messages, max_new_tokens):
        yield from ["word\n"] * self.words
        raise self.error


@pytest.mark.parametrize("path", [OPENAI, OLLAMA])
def test_an_engine_that_fails_is_told_in_the_interfaces_form(path):
    body = {"messages": [{"role": "user", "content": "Tell me a story."}]}
    for error, shown in (
        (EngineError("llama.cpp: out of memory"), "out of memory"),
        (RuntimeError("secret"), "RuntimeError"),
    ):
        with serving(Failing(error, words=0)) as url:
            for stream in (False, True):
                found = requests.post(url + path, json={**body, "stream": stream}, timeout=20)
                assert found.status_code == (400 if isinstance(error, EngineError) else 500)
                assert shown in told(path, found)
        with serving(Failing(error, words=3)) as url:
            found = requests.post(url + path, json={**body, "stream": True}, timeout=20)
        *_, last = filter(None, found.text.splitlines())
        told_last = json.loads(last.removeprefix("data: "))["error"]
        assert shown in (told_last if path == OLLAMA else told_last["message"])
        assert "secret" not in found.text
