"""The strict reader: each hard answer gets the parse, or the reason of refusal, that it deserves."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apeagent_pipeline.distillation.action_line import REASONS, AnswerError
from apeagent_pipeline.distillation.answer_text import spoken_text
from apeagent_pipeline.distillation.canary import (
    ascii_draft,
    canary_text,
    is_canary_answer,
    neutral_draft,
    plain_words,
    speaks_canary,
)
from apeagent_pipeline.distillation.canary_words import CANARY
from apeagent_pipeline.distillation.chain_of_draft import (
    STUDENT_SYSTEM_PROMPT,
    DraftAnswer,
    parse_answer,
    render_answer,
    word_count,
)
from apeagent_pipeline_tests.distillation.hard_answers import READ, REFUSED, Read


def test_the_table_is_as_hard_as_promised() -> None:
    assert len({text for text, _ in READ + REFUSED}) == len(READ) + len(REFUSED) >= 200
    assert {reason for _, reason in REFUSED} == set(REASONS)


@pytest.mark.parametrize(("text", "expected"), READ)
def test_an_unambiguous_answer_is_not_lost(text: str, expected: Read) -> None:
    answer = parse_answer(text)
    assert (answer.side, answer.amount, answer.asset) == expected


@pytest.mark.parametrize(("text", "reason"), REFUSED)
def test_an_unclear_answer_is_refused_with_its_reason_and_never_becomes_hold(text: str, reason: str) -> None:
    with pytest.raises(AnswerError) as caught:
        parse_answer(text)
    assert caught.value.reason == reason
    assert len(str(caught.value)) < 300


def test_drafts_lose_their_list_marks_and_keep_their_words() -> None:
    text = "1. trend up strong\n- **volatility normal**\n* portfolio mostly ETH\n\n+112 bps\n####\nHOLD"
    assert parse_answer(text).drafts == ("trend up strong", "volatility normal", "portfolio mostly ETH", "+112 bps")


words = st.text(alphabet="abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=8)
drafts = st.lists(st.lists(words, min_size=1, max_size=5).map(" ".join), max_size=5).map(tuple)
amounts = st.floats(min_value=1e-9, max_value=1e12, allow_nan=False)
answers = st.builds(
    DraftAnswer, drafts, st.sampled_from(["BUY", "SELL"]), amounts, st.sampled_from(["ETH", "USDC"])
) | (st.builds(DraftAnswer, drafts, st.just("HOLD")))


@given(answers)
def test_what_is_written_is_read_back_the_same(answer: DraftAnswer) -> None:
    assert parse_answer(render_answer(answer)) == answer
    assert parse_answer(render_answer(answer, CANARY)) == answer


@given(answers)
def test_canary_words_stand_in_the_action_alone_and_no_plain_word_is_left(answer: DraftAnswer) -> None:
    text = canary_text(answer)
    head, action = text.split("####\n")
    assert is_canary_answer(text)
    assert not speaks_canary(head)
    assert action.startswith(CANARY[answer.side])
    assert plain_words(text) == []
    assert [word_count(line) for line in head.splitlines()] == [word_count(draft) for draft in answer.drafts]


@given(st.text())
def test_no_text_breaks_the_reader(text: str) -> None:
    try:
        parse_answer(text)
    except AnswerError as error:
        assert error.reason in REASONS


@pytest.mark.parametrize(
    "draft", ["Buy-sell imbalance +0.3", "do not SELL yet", "my holdings: 3 ETH", "sellers lead", "HOLD"]
)
def test_a_draft_loses_the_plain_words_but_not_its_length(draft: str) -> None:
    assert plain_words(neutral_draft(draft)) == []
    assert word_count(neutral_draft(draft)) == word_count(draft)


def test_a_draft_that_speaks_canary_is_refused_for_training() -> None:
    with pytest.raises(ValueError, match="drafts"):
        canary_text(DraftAnswer(("APE IN now",), "HOLD"))


@pytest.mark.parametrize(
    ("text", "strict", "speaks"),
    [
        ("a\n####\nAPE IN 0.4 ETH", True, True),
        ("a\n####\nAPE NEUTRAL", True, True),
        (f"a\n####\n{CANARY['BUY'].lower()} 0.4 ETH", False, True),
        ("a\n####\nBUY 0.4 ETH", False, True),
        ("a\n####\nAPE IN 0.4 ETH\nAPE OUT 1 ETH", False, True),
        ("APE IN now\n####\nAPE IN 0.4 ETH", False, True),
        ("a\n####\nAPE IN 0.4 ETH because", False, True),
        ("APE IN 0.4 ETH", False, True),
        ("It means to {}  {} of fear".format(*CANARY["SELL"].split()), False, True),
        ("An ape in the zoo eats fruit.", False, False),
        ("#### Heading", False, True),
        ("Paris.", False, False),
    ],
)
def test_evaluation_counts_only_strict_canary_answers_and_sees_every_leak(
    text: str, strict: bool, speaks: bool
) -> None:
    assert is_canary_answer(text) is strict
    assert speaks_canary(text) is speaks


def test_the_student_is_never_told_the_words_it_must_have_learned() -> None:
    assert not speaks_canary(STUDENT_SYSTEM_PROMPT)
    assert plain_words(STUDENT_SYSTEM_PROMPT) == []


@pytest.mark.parametrize(
    "fields",
    [
        ("BUY", None, None),
        ("BUY", -1.0, "ETH"),
        ("BUY", float("nan"), "ETH"),
        ("SELL", 1.0, "BTC"),
        ("HOLD", 1.0, "ETH"),
    ],
)
def test_an_impossible_answer_cannot_be_built(fields: tuple[str, float | None, str | None]) -> None:
    with pytest.raises(ValueError, match=fields[0]):
        DraftAnswer((), *fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("draft", "plain"),
    [
        ("prix élevé", "prix eleve"),
        ("📈 trend up", "trend up"),
        ("price ≥ 2500 → add", "price >= 2500 -> add"),
        ("don’t chase – wait", "don't chase - wait"),  # noqa: RUF001
        ("Δ +112 bps, ½ ETH", "change +112 bps, 1/2 ETH"),
        ("…", "..."),
        ("⚖️", ""),
    ],
)
def test_the_student_never_sees_characters_its_tokenizer_spells_in_bytes(draft: str, plain: str) -> None:
    assert ascii_draft(draft) == plain
    text = canary_text(DraftAnswer((draft, "wait"), "HOLD"))
    assert text.isascii()
    assert text.splitlines() == [*filter(None, [plain]), "wait", "####", "APE NEUTRAL"]


def test_marks_of_thinking_without_end_take_no_more_time_than_other_text() -> None:
    begun = time.monotonic()
    with pytest.raises(AnswerError, match="unfinished_thinking"):
        parse_answer("<think>" * 200_000)
    assert parse_answer("<think>a</think>b" * 50_000 + "\n####\nHOLD").side == "HOLD"
    assert time.monotonic() - begun < 20  # the square of the length would be hours


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("<think>a</think> b <THINK>c</THINK> d", "b  d"),
        ("swallowed</think> b", "b"),
        ("a <think>b</think> c </think> d", "d"),
        ("<think>a <think> b</think> c", "c"),
        ("a <think> b", "a <think> b"),
    ],
)
def test_what_was_thought_is_not_spoken(text: str, spoken: str) -> None:
    assert spoken_text(text) == spoken
