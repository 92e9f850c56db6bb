"""Facts put together in words, pairs, JSON and tables say what they must, and nothing else."""

import json
import re
from string import Formatter

import numpy as np
import pytest

from apeagent_pipeline.distillation.wordings import (
    FACTS,
    MESSAGES,
    NEEDED,
    QUESTIONS,
    UNSEEN_QUESTIONS,
    change_in_words,
    compose,
)

PLACES = {
    "price": "price",
    "vol": "volatility",
    "change": "change",
    "distance": "change",
    "eth": "eth",
    "usdc": "usdc",
    "volume": "volume",
}
"""Which fact a place tells."""


def told(facts: str) -> list[str]:
    """The facts that a text tells, in order."""
    places = [place.removesuffix("_bare") for _, place, _, _ in Formatter().parse(facts) if place]
    return [PLACES[place] for place in places if place in PLACES]


@pytest.mark.parametrize("missing", ["", *NEEDED])
@pytest.mark.parametrize("varied", [False, True])
def test_every_fact_is_told_once_but_the_missing_one(missing: str, varied: bool) -> None:
    rng = np.random.default_rng(5)
    needed = {*NEEDED, "eth", "usdc"} - {"holdings", missing} - ({"eth", "usdc"} if missing == "holdings" else set())
    for _ in range(400):
        facts, *_ = compose(rng, missing, varied=varied)
        found = told(facts)
        assert len(found) == len(set(found)), facts
        assert set(found) - {"volume"} == needed, facts


def test_a_direction_or_a_sign_stands_with_every_distance() -> None:
    messages = [message.facts for missing in ("", *NEEDED) for message in MESSAGES[missing]]
    for wording in [*FACTS["change"], *messages]:
        assert ("{distance}" not in wording) or re.search(r"\{(direction|went|sign)\}", wording), wording
    words = change_in_words("-12.5", np.random.default_rng(0))
    assert (words["direction"], words["sign"], words["distance"]) == ("down", "minus", "12.5")
    assert change_in_words("+3", np.random.default_rng(0))["distance"] == "3"


def test_json_can_be_read_and_tables_have_as_many_names_as_values() -> None:
    rng = np.random.default_rng(2)
    texts = [
        re.sub(r"\{\w+\}", "7", facts.replace("{vol_unit}", "bps")) for facts, *_ in (compose(rng) for _ in range(1500))
    ]
    found = [text[text.index("{") :] for text in texts if "{{" in text]
    assert len(found) > 20
    for text in found:
        read = json.loads(text.replace("{{", "{").replace("}}", "}"))
        assert set(read.values()) == {7}
    tables = [[line for line in text.splitlines() if line.startswith("| ")] for text in texts if "| ---" in text]
    assert len(tables) > 20
    for lines in tables:
        assert len({line.count("|") for line in lines}) == 1


def test_questions_and_messages_kept_for_the_test_split_are_asked_there_alone() -> None:
    rng = np.random.default_rng(1)
    asked = {compose(rng) for _ in range(6000)}
    unseen = {compose(rng, unseen=True) for _ in range(6000)}
    messages = set(MESSAGES[""])
    assert {each.question for each in asked - messages} == set(QUESTIONS)
    assert set(UNSEEN_QUESTIONS) < {each.question for each in unseen}
    assert messages < asked | unseen
    assert (asked & messages).isdisjoint(unseen)
    assert 0.05 < len(unseen & messages) / len(messages) < 0.15


def test_a_message_has_places_for_numbers_alone() -> None:
    """A digit of the market that a writer left in a message would be the same in every prompt made of it."""
    for missing in ("", *NEEDED):
        for message in MESSAGES[missing]:
            assert told(message.question) == [], message
            assert not re.search(r"\d\s*(?:%|ticks?|bps|ETH|USDC)", message.facts + message.question), message
