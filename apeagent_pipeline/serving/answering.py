"""From a chat to a checked answer: dialect, engine, check, and the answer in the dialect again."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from apeagent_pipeline.distillation.answer_check import AnswerStream
from apeagent_pipeline.serving.dialects import Dialect, read_question, say
from apeagent_pipeline.serving.engines import Engine
from apeagent_pipeline.student.generation import Messages

LONGEST_TRADE = 128
LONGEST_ANSWER = 1024
USUAL_ANSWER = 256
"""Tokens that an answer may have: one that is a trade, any, and any if the client does not say."""


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

    pieces: Iterator[str]
    text: str = ""
    changes: tuple[str, ...] = ()
    refused: bool = False
    translated: bool = False
    finish: Literal["stop", "length"] = "stop"
    tokens: int = field(default=0)

    def __iter__(self) -> Iterator[str]:
        """The text as it becomes safe to show."""
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
        return "; ".join([what, *self.changes]).encode("ascii", "replace").decode()


def answer(
    engine: Engine, messages: Messages, dialect: Dialect | None = None, max_tokens: int | None = None
) -> Reply:  # fmt: skip
    """Answer the last question of a chat.

    Args:
        engine: What generates.
        messages: The chat.
        dialect: The form of the answer; None: that of the question.
        max_tokens: Longest answer, as the client wishes. A trade is never cut off by it.
    """
    question = read_question(messages, dialect)
    is_trade = question.is_translated or question.facts.calls_for_action
    limit = LONGEST_TRADE if is_trade else max(1, min(max_tokens or USUAL_ANSWER, LONGEST_ANSWER))
    reply = Reply(iter(()), translated=question.is_translated)

    def pieces() -> Iterator[str]:
        stream = AnswerStream(question.text, question.facts)
        shown = ""
        generated = engine.stream(question.messages, limit)
        for piece in generated:
            reply.tokens += 1
            safe = stream.feed(piece)
            if safe and question.dialect != "percentage":
                shown += safe
                yield safe
            if stream.is_complete:
                break
        if hasattr(generated, "close"):
            generated.close()
        stream.finish()
        assert stream.checked is not None
        reply.changes, reply.refused = stream.checked.changes, stream.checked.refused
        if stream.checked.answer is None and reply.tokens >= limit:
            reply.finish = "length"
        yield say(question, stream.checked).removeprefix(shown)

    reply.pieces = pieces()
    return reply
