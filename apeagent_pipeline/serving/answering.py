"""From a chat to a checked answer: dialect, engine, check, and the answer in the dialect again."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal

from apeagent_pipeline.distillation.answer_check import AnswerStream
from apeagent_pipeline.distillation.chain_of_draft import LONGEST_TRADE
from apeagent_pipeline.serving.dialects import Dialect, read_question, say
from apeagent_pipeline.serving.engines import Engine
from apeagent_pipeline.student.generation import Messages

LONGEST_ANSWER = 1024
USUAL_ANSWER = 256
"""Tokens that an ordinary answer may have, and may have if the client does not say; a trade: `LONGEST_TRADE`."""


@dataclass
class Reply:
    """One answer. Iterate over it for its text; afterwards the other attributes are final.

    Attributes:
        text: All of the text.
        changes: What the check changed, a sentence each.
        refused: Whether a trade was refused.
        translated: Whether the model was asked in other words than the user's.
        finish: ``length`` if an answer without an action was cut off.
        tokens: How many tokens were generated.
    """

    pieces: Generator[str]
    text: str = ""
    changes: tuple[str, ...] = ()
    refused: bool = False
    translated: bool = False
    finish: Literal["stop", "length"] = "stop"
    tokens: int = field(default=0)

    def __iter__(self) -> Generator[str]:
        """The text as it becomes safe to show; closing the iterator stops the generation.

        A piece comes with every token, empty where nothing is safe yet, so that a caller can stop in between.
        """
        with closing(self.pieces):
            for piece in self.pieces:
                self.text += piece
                yield piece

    def whole(self) -> str:
        """The whole text."""
        for _ in self:
            pass
        return self.text

    @property
    def verdict(self) -> str:
        """What the check did, for a header: plain ASCII."""
        what = "refused" if self.refused else "changed" if self.changes else "unchanged"
        return " ".join("; ".join([what, *self.changes]).split()).encode("ascii", "replace").decode()


def answer(
    engine: Engine,
    messages: Messages,
    dialect: Dialect | None = None,
    max_tokens: int | None = None,
    *,
    stops: tuple[str, ...] = (),
) -> Reply:
    """Answer the last question of a chat.

    Args:
        engine: What generates.
        messages: The chat.
        dialect: The form of the answer; None: that of the question.
        max_tokens: Longest answer, as the client wishes.
        stops: Texts that end an answer. They and ``max_tokens`` never cut off a trade.
    """
    question = read_question(messages, dialect)
    is_trade = question.is_translated or question.facts.calls_for_action
    limit = LONGEST_TRADE if is_trade else max(1, min(max_tokens or USUAL_ANSWER, LONGEST_ANSWER))
    reply = Reply(_nothing(), translated=question.is_translated)

    def pieces() -> Generator[str]:
        stream = AnswerStream(question.text, question.facts)
        shown = ""
        with closing(engine.stream(question.messages, limit)) as generated:
            for piece in generated:
                reply.tokens += 1
                safe = stream.feed(piece)
                if question.dialect == "percentage":  # its answer is said in other words, and whole
                    safe = ""
                shown += safe
                yield safe
                if stream.is_complete:
                    break
        stream.finish()
        assert stream.checked is not None
        reply.changes, reply.refused = stream.checked.changes, stream.checked.refused
        if stream.checked.answer is None and reply.tokens >= limit:
            reply.finish = "length"
        yield say(question, stream.checked).removeprefix(shown)

    reply.pieces = pieces() if is_trade or not stops else _until(pieces(), stops, reply)
    return reply


def _until(pieces: Generator[str], stops: tuple[str, ...], reply: Reply) -> Generator[str]:
    """The pieces up to the first stop text; what may be the beginning of one waits."""
    waits, longest = "", max(map(len, stops))
    with closing(pieces):
        for piece in pieces:
            waits += piece
            found = [place for stop in stops if (place := waits.find(stop)) >= 0]
            if found:
                yield waits[: min(found)]
                reply.finish = "stop"
                return
            safe = max(0, len(waits) - longest + 1)
            yield waits[:safe]
            waits = waits[safe:]
    yield waits


def _nothing() -> Generator[str]:
    yield from ()
