"""The check of an answer before anybody acts on it: one action line that the stated holdings pay for.

It is plain code and knows no model. A trade is capped at the holdings that the question states if it exceeds them by up
to their double, and refused (the action becomes HOLD) if nothing that the question states can justify it. The checked
text says what was changed, as a line among the drafts, so that whatever reads the action line sees only the action.
"""

import re
from dataclasses import dataclass, replace

import numpy as np

from apeagent_pipeline.distillation.action_line import AnswerError, read_action
from apeagent_pipeline.distillation.canary_words import ANY_CANARY_WORD, CANARY, SEPARATOR
from apeagent_pipeline.distillation.chain_of_draft import DraftAnswer, render_action
from apeagent_pipeline.distillation.portfolios import COST_SHARE, DUST_USDC
from apeagent_pipeline.distillation.stated_facts import StatedFacts, read_facts

_CAPPED_UP_TO = 2.0
"""An amount up to this multiple of the holdings is capped; a larger one was not decided for them."""
_SMALLEST_TRADE_USDC = DUST_USDC / 100
_SEPARATOR_LINE = re.compile(rf"^[ \t]*{SEPARATOR}[ \t]*(.*)$", re.MULTILINE)
_COMPLETE = re.compile(rf"^[ \t]*{SEPARATOR}\s*\S[^\n]*\n", re.MULTILINE)
_ACTS = re.compile(rf"(?:{ANY_CANARY_WORD})|recommendation\s*:|{SEPARATOR}", re.IGNORECASE)


@dataclass(frozen=True)
class CheckedAnswer:
    """An answer after the check.

    Attributes:
        text: What may be shown: drafts, what was changed, separator, one action line; or the text as it was, if it
            holds no action and none was asked for.
        answer: Its action, HOLD where a trade was refused; None if the text holds none.
        changes: What was changed and why, a sentence each; empty if nothing was.
        refused: Whether the model's action became HOLD.
    """

    text: str
    answer: DraftAnswer | None
    changes: tuple[str, ...] = ()
    refused: bool = False


def check_answer(question: str, said: str, facts: StatedFacts | None = None) -> CheckedAnswer:
    """Let through what the question's holdings pay for.

    Args:
        question: What was asked, in whatever words.
        said: What the model said.
        facts: What the question states, if it was read already.
    """
    facts = facts or read_facts(question)
    found = find_action(said)
    if found is None and not facts.calls_for_action and not _ACTS.search(said):
        return CheckedAnswer(said.strip(), None)
    drafts, action, rest = found or (said, "", "")
    kept, changes = _safe_drafts(drafts)
    if rest.strip():
        changes.append("text after the action was removed")
    try:
        if found is None:
            raise AnswerError("no_action", said.strip())
        answer = DraftAnswer(tuple(kept), *read_action(action))
    except AnswerError as error:
        return _refused(kept, [*changes, f"no trade: the answer cannot be read ({error.reason.replace('_', ' ')})"])
    if answer.amount is None:
        return CheckedAnswer(_text(kept, changes, answer), answer, tuple(changes))
    facts = facts.with_copies(drafts)
    if why := _why_not(answer, facts):
        return _refused(kept, [*changes, f"no trade: {why}"])
    most = payable(answer, facts)
    if answer.amount > most * (1 + 1e-9):
        changes.append(f"{_eth(answer.amount)} is more than the holdings pay for, capped at {_eth(most)}")
        answer = replace(answer, amount=most)
    return CheckedAnswer(_text(kept, changes, answer), answer, tuple(changes))


class AnswerStream:
    """The check of an answer while it is generated: drafts pass line by line, the action waits for its check.

    Attributes:
        checked: The checked answer after ``finish``; its text is what ``feed`` and ``finish`` returned together.
        is_complete: Whether the action line has ended, so that nothing more need be generated.
    """

    def __init__(self, question: str, facts: StatedFacts | None = None) -> None:
        """Nothing was said yet."""
        self.checked: CheckedAnswer | None = None
        self.is_complete = False
        self._question, self._facts = question, facts or read_facts(question)
        self._said = self._shown = ""
        self._waits = False

    def feed(self, piece: str) -> str:
        """What may be shown after one more piece of the answer."""
        self._said += piece
        if "\n" not in piece:  # only a whole line is shown, or is an action
            return ""
        self.is_complete = _COMPLETE.search(self._said) is not None
        if self._waits:
            return ""
        *lines, _ = self._said.strip(" \t").split("\n")
        safe = ""
        for line in lines:
            if _may_act(line):
                self._waits = True
                break
            safe += line + "\n"
        new = safe.strip("\n").removeprefix(self._shown)
        self._shown += new
        return new

    def finish(self) -> str:
        """Check the whole answer; the rest of what may be shown."""
        self.checked = check_answer(self._question, self._said, self._facts)
        return self.checked.text.removeprefix(self._shown)


def find_action(said: str) -> tuple[str, str, str] | None:
    """Drafts, action line and what follows it; None if the text holds no line that looks like an action."""
    if separator := _SEPARATOR_LINE.search(said):
        after = (separator[1] + said[separator.end() :]).lstrip("\n ")
        line, _, rest = after.partition("\n")
        return said[: separator.start()], line.strip(), rest
    for line in re.finditer(r"^.*\S.*$", said, re.MULTILINE):
        if read := _trade_or_canary(line[0]):
            return said[: line.start()], read, said[line.end() :]
    return None


def _trade_or_canary(line: str) -> str | None:
    """The line without its blanks if it is a whole action; a plain "hold" is no action without a separator."""
    try:
        action = read_action(line)
    except AnswerError:
        return None
    return line.strip() if action.amount is not None or _ACTS.search(line) else None


def payable(answer: DraftAnswer, facts: StatedFacts) -> float:
    """The most ETH that the stated holdings sell or buy, costs included; rounded down to four significant digits."""
    if answer.side == "SELL":
        return facts.eth or 0.0
    exact = (facts.usdc or 0.0) / (facts.price * (1 + COST_SHARE)) if facts.price else 0.0
    if exact <= 0:
        return 0.0
    step = 10.0 ** (np.floor(np.log10(exact)) - 3)
    return float(f"{np.floor(exact / step + 1e-9) * step:.4g}")


def _why_not(answer: DraftAnswer, facts: StatedFacts) -> str | None:
    """Why a trade must not be made, or None."""
    assert answer.amount is not None
    paid_with = "ETH" if answer.side == "SELL" else "USDC"
    held = facts.eth if answer.side == "SELL" else facts.usdc
    no_price = facts.price == 0 or (facts.price is None and answer.side == "BUY")
    most = payable(answer, facts)
    traded = min(answer.amount, most)
    reasons = (
        (facts.other_pair, f"the question is about {facts.other_pair}, and only ETH-USDC is traded"),
        (answer.asset == "USDC", "an amount of USDC may mean two different trades"),
        (held is None, f"the question does not state a possible holding of {paid_with}"),
        (no_price, "the question does not state a possible price of ETH"),
        (most <= 0, f"no {paid_with} is held"),
        (
            any(np.isclose(answer.amount, other, rtol=1e-6) for other in facts.other_amounts),
            "the amount stands in the question and is no holding",
        ),
        (
            facts.names_whole and answer.amount >= 0.99 * most,
            f"the question asks for all {paid_with}, which is no decision",
        ),
        (answer.amount > _CAPPED_UP_TO * most, f"{_eth(answer.amount)} is far more than the holdings pay for"),
        (facts.price and traded * facts.price < _SMALLEST_TRADE_USDC, "the amount is too small to trade"),
    )
    return next((reason for applies, reason in reasons if applies), None)


def _safe_drafts(text: str) -> tuple[list[str], list[str]]:
    """The drafts without lines that somebody could take for an action, and what was changed."""
    lines = text.strip().split("\n") if text.strip() else []
    kept = [line for line in lines if not _may_act(line)]
    return kept, ["a second action was removed"] if len(kept) < len(lines) else []


def _may_act(line: str) -> bool:
    return _ACTS.search(line) is not None or _trade_or_canary(line) is not None


def _refused(drafts: list[str], changes: list[str]) -> CheckedAnswer:
    answer = DraftAnswer(tuple(drafts), "HOLD")
    return CheckedAnswer(_text(drafts, changes, answer), answer, tuple(changes), refused=True)


def _text(drafts: list[str], changes: list[str], answer: DraftAnswer) -> str:
    told = [f"(checked: {change})" for change in changes]
    return "\n".join([*drafts, *told, SEPARATOR, render_action(answer, CANARY)])


def _eth(amount: float) -> str:
    return f"{np.format_float_positional(amount, trim='-')} ETH"
