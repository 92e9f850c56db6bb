"""A client that speaks as the tutorial's agents do, against ``apeagent serve`` and against plain llama.cpp.

    python -m apeagent_pipeline_tests.benchmarks.agent_trades apeagent-f16.gguf

The client is ``serving/agent_client.py``: four kinds of questions, thirty-two states each, and the agents' own ways of
reading a decision. llama.cpp's own server is asked twice: in the agent's words, and in the words of the training, as
``apeagent serve`` puts them; there the action line is read. A trade is right if it has the side of the embedded
teacher. One CPU thread; about ten minutes.
"""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

import requests
from rich.console import Console
from rich.table import Table

from apeagent_pipeline.distillation.chain_of_draft import LONGEST_TRADE, read_answer
from apeagent_pipeline.distillation.market_states import StateWords
from apeagent_pipeline.serving.dialects import read_question
from apeagent_pipeline.student.generation import Messages
from apeagent_pipeline_tests.benchmarks.people_prompts import side_of
from apeagent_pipeline_tests.benchmarks.serving_speed import LLAMA, SERVE, started
from apeagent_pipeline_tests.serving.agent_client import KINDS, STATES, State, Wallet, question_of, read_decision

Decision = tuple[str, float] | None
Ask = Callable[[State, str], tuple[Decision, bool]]
"""From a state and a kind of question to the decision that is read, and whether the answer ended by itself."""


@dataclass
class Counts:
    """How the answers to one kind of questions were.

    Attributes:
        asked: How many there were.
        readable: Those in which the agent finds a decision.
        feasible: Those whose trade, if any, its wallet can pay.
        called_for: States in which the teacher trades.
        right: Of those, answers that trade to the same side.
        without_end: Answers that were cut off.
    """

    asked: int = 0
    readable: int = 0
    feasible: int = 0
    called_for: int = 0
    right: int = 0
    without_end: int = 0


def count(ask: Ask, kind: str, states: Iterable[State] = STATES) -> Counts:
    """Ask about every state."""
    counts = Counts()
    for state in states:
        decision, has_end = ask(state, kind)
        side, amount = decision or ("", 0.0)
        counts.asked += 1
        counts.without_end += not has_end
        counts.readable += decision is not None
        counts.feasible += side == "HOLD" or (
            decision is not None and Wallet(state.eth, state.usdc).pay(side, amount, state.price)
        )
        wanted = teachers_side(state, kind)
        counts.called_for += wanted != "HOLD"
        counts.right += wanted != "HOLD" and side == wanted
    return counts


def teachers_side(state: State, kind: str) -> str:
    """What the embedded teacher does with what the question states: the stateful agent rounds its holdings."""
    words = StateWords()
    usual = (words.calm_below_bps * words.high_from_bps) ** 0.5
    volatility = 0.0 if kind == "status" else 100 * state.volatility
    held = (state.eth, state.usdc) if kind == "status" else (round(state.eth, 1), float(round(state.usdc)))
    return side_of(
        {
            "missing": [], "price": state.price, "change_ticks": 10 * state.ticks,
            "volatility_bps": volatility or usual, "eth": held[0], "usdc": held[1],
        }
    )  # fmt: skip


def of_serve(url: str) -> Ask:
    """The agent's question to ``apeagent serve``, over Ollama's interface as the agent does."""

    def ask(state: State, kind: str) -> tuple[Decision, bool]:
        chat = [{"role": "user", "content": question_of(state, kind)}]
        body = {"model": "apeagent", "stream": False, "messages": chat}
        reply = requests.post(f"{url}/api/chat", json=body, timeout=600).json()
        return read_decision(reply["message"]["content"], kind, state), reply["done_reason"] == "stop"

    return ask


def of_llama(url: str, translated: bool) -> Ask:
    """The question to llama.cpp's own server, in the agent's words or in those of the training."""

    def ask(state: State, kind: str) -> tuple[Decision, bool]:
        chat: Messages = [{"role": "user", "content": question_of(state, kind)}]
        if translated:
            chat = read_question(chat).messages
        body = {"messages": chat, "max_tokens": LONGEST_TRADE, "temperature": 0, "repeat_penalty": 1.0}
        reply = requests.post(f"{url}/v1/chat/completions", json=body, timeout=600).json()["choices"][0]
        text, has_end = reply["message"]["content"], reply["finish_reason"] == "stop"
        if not translated:
            return read_decision(text, kind, state), has_end
        answer = read_answer(text)
        return answer and (answer.side, answer.amount or 0.0), has_end

    return ask


def main() -> None:
    """Ask, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path, help="a merged model that `apeagent export` wrote")
    parser.add_argument("--states", type=int, default=len(STATES))
    given = parser.parse_args()
    states = STATES[:: len(STATES) // given.states][: given.states]
    columns = ("asked", "question", "of", "readable", "feasible", "call for a trade", "right", "without an end")
    console, table = Console(width=120), Table(*columns)
    with started("llama.cpp", LLAMA, given.gguf) as llama, started("apeagent serve", SERVE, given.gguf) as serve:
        ways = {
            "apeagent serve": of_serve(serve.url),
            "llama.cpp, words of the training": of_llama(llama.url, translated=True),
            "llama.cpp, the agent's words": of_llama(llama.url, translated=False),
        }
        for way, ask in ways.items():
            for kind in KINDS:
                cells = [way, kind, *map(str, astuple(count(ask, kind, states)))]
                table.add_row(*cells)
                console.print(*cells)
    console.print(table)


if __name__ == "__main__":
    main()
