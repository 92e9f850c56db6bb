"""A token costs no change of threads in the server, and a line is still shown as soon as it is whole."""

import json
import threading

import pytest
import requests

from apeagent_pipeline.serving import engines, server
from apeagent_pipeline.serving.engines import LlamaCppEngine
from apeagent_pipeline_tests.serving.scripted_engine import Scripted, serving

CHAT = [{"role": "user", "content": "Tell me a story."}]
OPENAI, OLLAMA = "/v1/chat/completions", "/api/chat"


class Told:
    """llama.cpp's server as the engine uses it: says tokens, and may wait before one."""

    def __init__(self, tokens, waits_before=None):
        self.tokens, self.waits_before = tokens, waits_before
        self.go_on, self.said = threading.Event(), 0

    def handle_chat_completions(self, request, take):
        for number, token in enumerate(self.tokens):
            if number == self.waits_before:
                assert self.go_on.wait(20)
            self.said += 1
            if take({"choices": [{"delta": {"content": token}}]}):
                return


def engine_of(told):
    engine = LlamaCppEngine.__new__(LlamaCppEngine)
    engine._server = told
    return engine


def handed_over(monkeypatch, words, path, stream):
    """How often an answer of so many words changed the thread in the server."""
    calls = []

    async def counted(work, *arguments, **more):
        calls.append(work)
        return await run_in_threadpool(work, *arguments, **more)

    run_in_threadpool = server.run_in_threadpool
    body = {"messages": CHAT, "stream": stream, "max_tokens": 1000}
    with monkeypatch.context() as patched, serving(Scripted("word" * words)) as url:
        patched.setattr(server, "run_in_threadpool", counted)
        assert "word" * words in requests.post(url + path, json=body, timeout=20).text
    return len(calls)


@pytest.mark.parametrize("path", [OPENAI, OLLAMA])
@pytest.mark.parametrize("stream", [False, True])
def test_a_long_answer_changes_the_thread_no_oftener_than_a_short_one(monkeypatch, path, stream):
    assert handed_over(monkeypatch, 5, path, stream) == handed_over(monkeypatch, 500, path, stream)


def test_the_tokens_of_llama_cpp_change_the_thread_in_batches(monkeypatch):
    passed = []

    class Counted(engines.queue.Queue):
        def put(self, item, *arguments, **more):
            passed.append(item)
            super().put(item, *arguments, **more)

    monkeypatch.setattr(engines.queue, "Queue", Counted)
    tokens = ["a ", "b ", "c\n", *["word "] * 100]
    assert list(engine_of(Told(tokens)).stream(CHAT, 200)) == tokens
    assert len(passed) < len(tokens) / 5
    assert passed[0] == ["a ", "b ", "c\n"]


def test_a_whole_line_is_streamed_while_llama_cpp_is_still_at_the_next():
    told = Told(["It was ", "late.\n", "Then ", "day ", "came."], waits_before=2)
    with serving(engine_of(told)) as url:
        reply = requests.post(url + OLLAMA, json={"messages": CHAT}, stream=True, timeout=20)
        lines = reply.iter_lines()
        assert json.loads(next(lines))["message"]["content"] == "It was late."
        told.go_on.set()
        assert json.loads([*lines][-1])["done"]


def test_a_reader_that_has_enough_stops_llama_cpp():
    told = Told(["line\n"] * 100, waits_before=8)
    stream = engine_of(told).stream(CHAT, 100)
    assert next(stream) == "line\n"
    stream.close()
    told.go_on.set()
    for thread in threading.enumerate():
        if thread.daemon and thread.name.endswith("(generate)"):
            thread.join(20)
    assert told.said == 9
