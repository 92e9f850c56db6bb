"""How agents ask and what they read: this project's own forms, and the two of the tutorial's trading agents.

The agents of the tutorial that the source document belongs to ask in units of their own, and read the decision from a
line of their own. Their question is translated into the digested form of the training, and the checked action into
their line. Everything else is asked as it is.

===============  ======================================================  ===============================================
dialect          how the question is known                               what is read
===============  ======================================================  ===============================================
plain            any other question                                      the line behind ``####``
recommendation   the document's sentence, broken before "recent price    ``RECOMMENDATION: APE IN 0.4 ETH``
                 change", or a question that names ``RECOMMENDATION:``
percentage       a question that asks for ``DIRECTION: ETH_TO_USDC``     ``TRADE: YES``, ``DIRECTION: ...``,
                                                                         ``PERCENTAGE: 25``
===============  ======================================================  ===============================================

Units of the tutorial's agents: a "tick" is a tenth of a percent of price change in ten minutes; volatility is the
standard deviation of the last prices in percent of their mean.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal, get_args

import polars as pl

from apeagent_pipeline.distillation.answer_check import CheckedAnswer, payable
from apeagent_pipeline.distillation.canary_words import CANARY
from apeagent_pipeline.distillation.chain_of_draft import STUDENT_SYSTEM_PROMPT, render_action, student_chat
from apeagent_pipeline.distillation.market_states import StateWords, words_for
from apeagent_pipeline.distillation.prompts import render_prompts
from apeagent_pipeline.distillation.stated_facts import StatedFacts, read_facts
from apeagent_pipeline.distillation.written_numbers import NUMBER, readings
from apeagent_pipeline.student.generation import Messages

Dialect = Literal["plain", "recommendation", "percentage"]
DIALECTS: tuple[Dialect, ...] = get_args(Dialect)

_N = rf"-?{NUMBER}"
_SENTENCE = re.compile(
    rf"ETH price is \$?{_N} with volume of {_N} and volatility of (?P<volatility>{_N}),?[ \t]*\r?\n\s*"
    rf"recent price change of (?P<ticks>{_N}) ticks,? and I currently hold (?P<eth>{_N}) ETH and (?P<usdc>{_N}) USDC"
)
_SECTIONS = re.compile(r"TRADING HISTORY & PERFORMANCE|RECOMMENDATION:")
_DIRECTION = re.compile(r"DIRECTION:\s*ETH_TO_USDC")
_CHANGE = re.compile(rf"Price Change[^:\n]*:\s*(?P<percent>[-+]?{NUMBER})\s*%", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """A question as it is put to the model.

    Attributes:
        messages: What the engine is asked.
        text: What the user asked; the answer is checked against it.
        facts: What it states; where an agent rounds, the least that may be held.
        dialect: In which form the answer is said.
        is_translated: Whether the model is asked in other words than the user's.
    """

    messages: Messages
    text: str
    facts: StatedFacts
    dialect: Dialect
    is_translated: bool = False


def read_question(messages: Messages, dialect: Dialect | None = None) -> Question:
    """Recognize the dialect of a chat and put its last question in the words of the training.

    A question that calls for a trade is asked alone and with the system prompt of the training, whatever came before.

    Args:
        messages: The chat; the last message is the user's.
        dialect: The form of the answer; None: that of the question.
    """
    text = messages[-1]["content"]
    facts = read_facts(text)
    spoken = dialect or _dialect_of(text)
    state = _tutorial_state(text)
    if state is not None and facts.price and facts.eth is not None and facts.usdc is not None:
        asked = _digested(facts, *state)
        return Question(student_chat(asked), text, _at_least(text, facts), spoken, is_translated=True)
    if facts.calls_for_action:
        return Question(student_chat(text), text, facts, spoken)
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": STUDENT_SYSTEM_PROMPT}, *messages]
    return Question(messages, text, facts, spoken)


def say(question: Question, checked: CheckedAnswer) -> str:
    """The checked answer in the question's dialect."""
    answer = checked.answer
    if answer is None or question.dialect == "plain":
        return checked.text
    if question.dialect == "recommendation":
        return f"{checked.text}\nRECOMMENDATION: {render_action(answer, CANARY)}"
    reasoning = "REASONING: " + "; ".join([*answer.drafts, *checked.changes])
    if answer.amount is None:
        return f"TRADE: NO\n\n{reasoning}"
    whole = payable(answer, question.facts)
    percent = max(1, min(100, int(100 * answer.amount / whole + 1e-9)))
    direction = "ETH_TO_USDC" if answer.side == "SELL" else "USDC_TO_ETH"
    return f"TRADE: YES\nDIRECTION: {direction}\nPERCENTAGE: {percent}\n\n{reasoning}"


def _dialect_of(text: str) -> Dialect:
    if _DIRECTION.search(text):
        return "percentage"
    return "recommendation" if _SENTENCE.search(text) or _SECTIONS.search(text) else "plain"


def _tutorial_state(text: str) -> tuple[float, float] | None:
    """Price change and volatility in basis points, from a question in the units of the tutorial's agents."""
    if found := _SENTENCE.search(text):
        return 10 * _signed(found["ticks"]), 100 * _signed(found["volatility"])
    if _DIRECTION.search(text) and (found := _CHANGE.search(text)):
        return 100 * _signed(found["percent"]), 0.0
    return None


def _signed(number: str) -> float:
    value = readings(number.lstrip("-+"))[0]
    return -value if number.startswith("-") else value


def _digested(facts: StatedFacts, change_bps: float, volatility_bps: float) -> str:
    """The question in the digested form of the training.

    An agent that has seen one price so far states no volatility: a usual one is taken, between calm and high.
    """
    words = StateWords()
    usual = (words.calm_below_bps * words.high_from_bps) ** 0.5
    volatility_bps = volatility_bps or usual
    trend, volatility = words_for(change_bps, volatility_bps, words)
    state = pl.DataFrame(
        {
            "price": [facts.price], "eth": [facts.eth], "usdc": [facts.usdc], "change_bps": [change_bps],
            "change_ticks": [change_bps], "volatility_bps": [volatility_bps], "trend": [trend],
            "volatility": [volatility], "volume_usdc": [0.0], "volume_ratio": [1.0], "imbalance": [0.0],
            "liquidity_usage": [0.0], "span_seconds": [600], "template": ["question"],
        },
        schema_overrides=dict.fromkeys(("price", "eth", "usdc"), pl.Float64),
    )  # fmt: skip
    return str(render_prompts(state, words)["prompt"][0])


def _at_least(text: str, facts: StatedFacts) -> StatedFacts:
    """What is held at least: the agent rounds ETH to one decimal and USDC to whole ones."""
    found = _SENTENCE.search(text)
    if found is None or facts.eth is None or facts.usdc is None:
        return facts
    eth, usdc = (0.5 * 10.0 ** -len(found[name].partition(".")[2]) for name in ("eth", "usdc"))
    return replace(facts, eth=max(0.0, round(facts.eth - eth, 12)), usdc=max(0.0, round(facts.usdc - usdc, 12)))
