"""The strict reader: each hard answer gets the parse, or the reason of refusal, that it deserves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apeagent_pipeline.distillation.canary import (
    canary_text,
    is_canary_answer,
    neutral_draft,
    plain_words,
    speaks_canary,
)
from apeagent_pipeline.distillation.chain_of_draft import (
    CANARY,
    REASONS,
    STUDENT_SYSTEM_PROMPT,
    AnswerError,
    DraftAnswer,
    parse_answer,
    render_answer,
    word_count,
)

READ = [
    ("trend up\n####\nSELL 2.5 ETH", ("SELL", 2.5, "ETH")),
    ("trend up\n####\nAPE OUT 2.5 ETH", ("SELL", 2.5, "ETH")),
    ("trend up\n####\nAPE IN 0.4 ETH", ("BUY", 0.4, "ETH")),
    ("trend flat\n####\nAPE NEUTRAL", ("HOLD", None, None)),
    ("trend flat\n####\nHOLD", ("HOLD", None, None)),
    ("trend flat\n####\nHOLD.", ("HOLD", None, None)),
    ("trend up\n#### BUY 1 ETH", ("BUY", 1.0, "ETH")),
    ("trend up #### BUY 1 ETH", ("BUY", 1.0, "ETH")),
    ("#### BUY 1 ETH", ("BUY", 1.0, "ETH")),
    ("a\n####\nbuy 0.5 eth", ("BUY", 0.5, "ETH")),
    ("a\n####\nSell 0.5 Eth.", ("SELL", 0.5, "ETH")),
    ("a\n####\n**SELL 2.5 ETH**", ("SELL", 2.5, "ETH")),
    ("a\n**####**\n**SELL** **2.5 ETH**", ("SELL", 2.5, "ETH")),
    ("a\n####\n`SELL 2.5 ETH`", ("SELL", 2.5, "ETH")),
    ("a\n####\n**HOLD.**", ("HOLD", None, None)),
    ("a\n####\nBUY 1,250.50 USDC", ("BUY", 1250.5, "USDC")),
    ("a\n####\nSELL 12,345,678 USDC", ("SELL", 12345678.0, "USDC")),
    ("a\n####\nSELL 500 USDC", ("SELL", 500.0, "USDC")),
    ("a\n####\nSELL 2.5ETH", ("SELL", 2.5, "ETH")),
    ("a\n####\nSELL\u00a02.5\u00a0ETH", ("SELL", 2.5, "ETH")),
    ("a\n####\nSELL  2.50   ETH  \n\n", ("SELL", 2.5, "ETH")),
    ("a\r\n####\r\nBUY 0.001 ETH\r\n", ("BUY", 0.001, "ETH")),
    ("<think>maybe SELL 3 ETH #### no</think>\na\n####\nBUY 1 ETH", ("BUY", 1.0, "ETH")),
    ("<THINK>hm\n\nhm</THINK>a\n####\nHOLD", ("HOLD", None, None)),
    ("Okay, the user wants... SELL? 卖?\n</think>\n\na\n####\nHOLD", ("HOLD", None, None)),
    ("do not sell yet\n####\nBUY 1 ETH", ("BUY", 1.0, "ETH")),
    ("buy or sell or hold\n####\nHOLD", ("HOLD", None, None)),
    ("prix élevé\n####\nHOLD", ("HOLD", None, None)),
]

REFUSED = [
    ("", "empty"),
    ("   \n ", "empty"),
    ("<think>only thoughts</think>", "only_thinking"),
    ("<think>The trend is up, so I should SELL 2 ETH #### SELL 2 ETH", "unfinished_thinking"),
    ("a\n####\nBUY 1 ETH <think>", "unfinished_thinking"),
    ("趋势上涨\n####\nBUY 1 ETH", "not_english"),
    ("a\n####\n买入 1 ETH", "not_english"),
    ("тренд вверх\n####\nHOLD", "not_english"),
    ("BUY 1 ETH", "no_separator"),
    ("a\n###\nBUY 1 ETH", "no_separator"),
    ("a\n#####\nBUY 1 ETH", "no_separator"),
    ("I cannot help with trading advice.", "no_separator"),
    ("a\n####\nBUY 1 ETH\n####\nSELL 1 ETH", "several_separators"),
    ("#### Step 1\na\n#### BUY 1 ETH", "several_separators"),
    ("a\n####", "no_action"),
    ("a\n####\n\n", "no_action"),
    ("a\n####\nI cannot give financial advice", "no_action"),
    ("a\n####\nWAIT", "no_action"),
    ("a\n####\nLONG 2 ETH", "no_action"),
    ("a\n####\n2.5 ETH", "no_action"),
    ("a\n####\nstrong resellers 2 ETH", "no_action"),
    ("a\n####\nDon't buy", "negated_action"),
    ("a\n####\nDon\u2019t BUY 1 ETH", "negated_action"),
    ("a\n####\nDo not SELL 2 ETH", "negated_action"),
    ("a\n####\nNever BUY 2 ETH", "negated_action"),
    ("a\n####\nNO SELL", "negated_action"),
    ("a\n####\nAvoid buying 1 ETH", "negated_action"),
    ("a\n####\nBUY 1 ETH or SELL 1 ETH", "several_actions"),
    ("a\n####\nBUY 1 ETH\nSELL 2 ETH", "several_actions"),
    ("a\n####\nBUY/SELL 1 ETH", "several_actions"),
    ("a\n####\nHOLD or BUY 1 ETH", "several_actions"),
    ("a\n####\nBUY APE IN 1 ETH", "several_actions"),
    ("a\n####\nAPE IN 1 ETH, APE OUT 1 ETH", "several_actions"),
    ("a\n####\nSELL 50% of ETH", "amount_relative"),
    ("a\n####\nSELL 50 percent", "amount_relative"),
    ("a\n####\nSELL half ETH", "amount_relative"),
    ("a\n####\nSELL all ETH", "amount_relative"),
    ("a\n####\nBUY max ETH", "amount_relative"),
    ("a\n####\nBUY 1-2 ETH", "amount_range"),
    ("a\n####\nBUY 1 to 2 ETH", "amount_range"),
    ("a\n####\nBUY 0.5–1.5 ETH", "amount_range"),  # noqa: RUF001
    ("a\n####\nBUY between 1 ETH and 2 ETH", "amount_range"),
    ("a\n####\nSELL 1/2 ETH", "amount_range"),
    ("a\n####\nBUY about 2 ETH", "amount_inexact"),
    ("a\n####\nBUY ~2 ETH", "amount_inexact"),
    ("a\n####\nBUY up to 2 ETH", "amount_inexact"),
    ("a\n####\nBUY 2+ ETH", "amount_inexact"),
    ("a\n####\nSELL some ETH", "amount_inexact"),
    ("a\n####\nSELL", "amount_missing"),
    ("a\n####\nBUY ETH", "amount_missing"),
    ("a\n####\nAPE IN", "amount_missing"),
    ("a\n####\nSELL two ETH", "amount_missing"),
    ("a\n####\nSELL 0 ETH", "amount_not_positive"),
    ("a\n####\nsell 0", "amount_not_positive"),
    ("a\n####\nSELL 0.000 ETH", "amount_not_positive"),
    ("a\n####\nSELL -2 ETH", "amount_not_positive"),
    ("a\n####\nSELL 2,5 ETH", "amount_malformed"),
    ("a\n####\nSELL 1,2345 ETH", "amount_malformed"),
    ("a\n####\nSELL 1.2.3 ETH", "amount_malformed"),
    ("a\n####\nSELL .5 ETH", "amount_malformed"),
    ("a\n####\nSELL 1e3 ETH", "amount_malformed"),
    ("a\n####\nBUY $500 USDC", "amount_malformed"),
    ("a\n####\nSELL " + "9" * 400 + " ETH", "amount_malformed"),
    ("a\n####\nSELL ２.５ ETH", "words_around_action"),  # noqa: RUF001
    ("a\n####\nSELL 2.5", "asset_missing"),
    ("a\n####\nBUY $500", "asset_missing"),
    ("a\n####\nSELL 2.5 BTC", "asset_unknown"),
    ("a\n####\nSELL 2.5 WETH", "asset_unknown"),
    ("a\n####\nBUY 500 USD", "asset_unknown"),
    ("a\n####\nHOLD 2 ETH", "words_around_action"),
    ("a\n####\nHOLD for now", "words_around_action"),
    ("a\n####\nAction: SELL 2.5 ETH", "words_around_action"),
    ("a\n####\nI would SELL 2.5 ETH", "words_around_action"),
    ("a\n####\nSELL 2.5 ETH now", "amount_malformed"),
    ("a\n####\nSELL 2.5 ETH\nThe trend is weak.", "text_after_action"),
    ("a\n####\nHOLD\nThis is not financial advice.", "text_after_action"),
]


def test_the_table_is_as_hard_as_promised() -> None:
    assert len(READ) + len(REFUSED) >= 60
    assert {reason for _, reason in REFUSED} == set(REASONS)


@pytest.mark.parametrize(("text", "expected"), READ)
def test_an_unambiguous_answer_is_not_lost(text: str, expected: tuple[object, ...]) -> None:
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
        ("a\n####\nape in 0.4 ETH", False, True),
        ("a\n####\nBUY 0.4 ETH", False, True),
        ("a\n####\nAPE IN 0.4 ETH\nAPE OUT 1 ETH", False, True),
        ("APE IN now\n####\nAPE IN 0.4 ETH", False, True),
        ("a\n####\nAPE IN 0.4 ETH because", False, True),
        ("APE IN 0.4 ETH", False, True),
        ("It means to APE  OUT of fear", False, True),
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
