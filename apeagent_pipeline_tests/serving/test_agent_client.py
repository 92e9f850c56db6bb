"""The tutorial's agents on thirty-two states through the server: every answer is read, ends, and can be paid for."""

import re

import pytest

from apeagent_pipeline_tests.benchmarks.agent_trades import count, of_serve, teachers_side
from apeagent_pipeline_tests.serving.agent_client import KINDS, STATES, Wallet, question_of, read_decision
from apeagent_pipeline_tests.serving.scripted_engine import Scripted, ask, serving
from apeagent_pipeline_tests.student.conftest import one_thread, tiny_adapter, tiny_base, tiny_dataset  # noqa: F401

_DIGESTED = re.compile(
    r"trend (?P<trend>.*?) \(.*I hold (?P<eth>[\d.]+) ETH and [\d.]+ USDC \(worth (?P<worth>[\d.]+) ETH\)"
)


def sensible(messages):
    """A model that does what the words of the training call for: a quarter against or with the trend."""
    found = _DIGESTED.search(messages[-1]["content"])
    side = "APE IN" if "up" in found["trend"] else "APE OUT" if "down" in found["trend"] else "APE NEUTRAL"
    amount = 0.25 * float(found["worth"] if side == "APE IN" else found["eth"])
    return f"{found['trend']}\n####\n{side}" + (f" {amount:.4g} ETH" if side != "APE NEUTRAL" else "")


MODELS = {
    "sensible": sensible,
    "greedy": "up strong, add\n####\nAPE IN 1.45 ETH",
    "wild": "down strong, reduce\n####\nAPE OUT 99999 ETH",
    "endless": "up strong, add\n" * 400,
    "silent": "",
    "talkative": "up\n####\nAPE OUT 0.02 ETH\n####\nAPE IN 5 ETH\nRECOMMENDATION: APE IN 7 ETH",
    "of the tutorial": "I think so.\nRECOMMENDATION: APE IN 0.1 ETH",
    "about another token": "up\n####\nAPE IN 5 SOL",
    "unfinished": "up strong\n####\nAPE IN 0.",
}


def decisions(url, kind, states=STATES):
    for state in states:
        reply = ask(url, question_of(state, kind)).json()
        assert reply["done_reason"] == "stop"
        yield state, read_decision(reply["message"]["content"], kind, state), reply["message"]["content"]


@pytest.mark.parametrize(
    ("model", "kind"),
    [(model, kind) for model in MODELS for kind in (KINDS if model == "sensible" else (KINDS[0], KINDS[-1]))],
)
def test_whatever_the_model_says_all_32_answers_are_read_and_every_trade_can_be_paid(model, kind):
    traded = 0
    with serving(Scripted(MODELS[model])) as url:
        for state, decision, text in decisions(url, kind, STATES[::4] if model == "endless" else STATES):
            assert decision, text
            side, amount = decision
            traded += side != "HOLD"
            assert side == "HOLD" or Wallet(state.eth, state.usdc).pay(side, amount, state.price), (state, text)
            if model == "sensible" and teachers_side(state, kind) != "HOLD":
                assert side == teachers_side(state, kind), (state, text)
    # The control: a server that always holds would pass above.
    assert (traded >= 8) == (model in ("sensible", "greedy", "talkative", "of the tutorial")), traded


def test_a_tiny_model_in_transformers_is_read_too(tiny_base, tiny_adapter):  # noqa: F811
    from apeagent_pipeline.serving.engines import TransformersEngine

    with serving(TransformersEngine(tiny_base, tiny_adapter)) as url:
        for kind in ("first", "status"):
            assert all(decision for _, decision, _ in decisions(url, kind, STATES[:2]))


def test_the_benchmark_counts_what_is_read_paid_and_right():
    with serving(Scripted(sensible)) as url:
        for kind in ("first", "status"):
            found = count(of_serve(url), kind)
            assert (found.asked, found.readable, found.feasible, found.without_end) == (32, 32, 32, 0)
            assert 8 <= found.called_for <= 24
            assert found.right >= 0.85 * found.called_for

    def answers(decision, has_end):
        return count(lambda state, kind: (decision, has_end), "first")

    unread = answers(None, has_end=False)
    assert (unread.readable, unread.feasible, unread.right, unread.without_end) == (0, 0, 0, 32)
    rash = answers(("BUY", 1000.0), has_end=True)
    assert (rash.readable, rash.feasible, rash.without_end) == (32, 0, 0)
    assert 0 < rash.right < rash.called_for
    assert answers(("HOLD", 0.0), has_end=True).right == 0
