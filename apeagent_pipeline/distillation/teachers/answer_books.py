"""What an answer cost: as the server tells it, or estimated from the answers before."""

from dataclasses import dataclass, field

from apeagent_pipeline.distillation.chain_of_draft import SYSTEM_PROMPT
from apeagent_pipeline.distillation.teachers.server_config import OpenAITeacherConfig, chain_of_draft_text
from apeagent_pipeline.distillation.teachers.server_errors import refusal
from apeagent_pipeline.distillation.teachers.server_replies import Reply, StreamedText
from apeagent_pipeline.distillation.teachers.teacher import PromptRow, TeacherAnswer
from apeagent_pipeline.distillation.token_guess import token_guess

_TYPICAL_ANSWER_TOKENS = 2000


@dataclass
class _Measured:
    """What answers took so far, to estimate what a server does not tell."""

    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    priced: int = 0

    def add(self, reply: Reply) -> None:
        if reply.prompt_tokens is not None and reply.completion_tokens is not None:
            self.answers += 1
            self.prompt_tokens += reply.prompt_tokens
            self.completion_tokens += reply.completion_tokens
            if reply.cost_usd is not None:
                self.priced += reply.prompt_tokens + reply.completion_tokens
                self.cost_usd += reply.cost_usd

    def read(self, prompt: str) -> int:
        if self.answers:
            return round(self.prompt_tokens / self.answers)
        return token_guess(SYSTEM_PROMPT) + token_guess(prompt)

    def written(self, most: int) -> int:
        if self.answers:
            return round(self.completion_tokens / self.answers)
        return min(most, _TYPICAL_ANSWER_TOKENS)

    def cost(self, tokens: int) -> float | None:
        return self.cost_usd * tokens / self.priced if self.priced else None


@dataclass
class AnswerBooks:
    """Turns replies into answers with their cost."""

    config: OpenAITeacherConfig
    measured: _Measured = field(default_factory=_Measured)

    def answer(self, row: PromptRow, reply: Reply, seconds: float, key: str) -> TeacherAnswer:
        """The answer in a reply. A generated answer is one, whether it can be used or not.

        Raises:
            ServerRefusal: if the reply holds an error and nothing was generated.
        """
        is_broken = reply.error is not None or reply.finish_reason == "broken"
        said = reply.text or reply.reasoning
        if is_broken and not reply.was_generated:
            raise refusal(502, reply.error, {}, key)
        if not said and reply.finish_reason == "unknown" and not reply.was_generated and not reply.unreadable:
            raise refusal(502, "an empty answer", {}, key)
        error = reply.unreadable
        if is_broken:
            error = str(refusal(502, reply.error or "the server broke off", {}, key))
        elif not reply.is_whole:
            error = "the stream broke off"
        text = chain_of_draft_text(reply.text or "") if self.config.structured else reply.text or ""
        estimated = reply.prompt_tokens is None or reply.completion_tokens is None
        if not estimated:
            self.measured.add(reply)
        read = self.measured.read(row["prompt"]) if reply.prompt_tokens is None else reply.prompt_tokens
        written = reply.completion_tokens
        if written is None:
            written = token_guess((reply.text or "") + (reply.reasoning or ""))
        return TeacherAnswer(
            row["prompt_id"],
            "" if error else text,
            "unusable" if error else reply.finish_reason,
            read,
            written,
            self._cost(read, written) if reply.cost_usd is None else reply.cost_usd,
            seconds,
            error=error,
            reasoning=reply.reasoning,
            model=reply.model,
            provider=reply.provider,
            estimated=estimated,
        )

    def _cost(self, read: int, written: int) -> float | None:
        if self.config.price:
            return (read * self.config.price[0] + written * self.config.price[1]) / 1e6
        return self.measured.cost(read + written)

    def lost(self, row: PromptRow, why: str, seconds: float, streamed: StreamedText | None = None) -> TeacherAnswer:
        """A request that the server may have charged: what was written until it broke off, or a usual answer."""
        read = self.measured.read(row["prompt"])
        written = self.measured.written(self.config.max_tokens)
        if streamed and streamed.written:
            written = token_guess("".join(streamed.text + streamed.reasoning))
        cost = self._cost(read, written)
        return TeacherAnswer(row["prompt_id"], "", "lost", read, written, cost, seconds, error=why, estimated=True)
