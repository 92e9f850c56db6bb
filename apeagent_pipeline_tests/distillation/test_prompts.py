"""Prompts: what they ask, whether the numbers in them are right, and whether train and test are apart."""

import math
import re
from collections.abc import Callable

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apeagent_pipeline.distillation.chain_of_draft import STUDENT_SYSTEM_PROMPT
from apeagent_pipeline.distillation.market_states import TRENDS, VOLATILITIES, StateWords, market_states
from apeagent_pipeline.distillation.portfolios import COST_SHARE, PORTFOLIOS, affordable_eth
from apeagent_pipeline.distillation.prompts import (
    PROMPTS_SCHEMA,
    PromptsConfig,
    build_prompts,
    render_prompts,
)
from apeagent_pipeline.distillation.templates import AGENT_SYSTEM_PROMPTS, TEMPLATES
from apeagent_pipeline.distillation.wordings import NEEDED

CONFIG = PromptsConfig(train_prompts=1200, test_prompts=300, prompts_per_window=6)


@pytest.fixture(scope="module")
def prompts(windows: pl.DataFrame) -> pl.DataFrame:
    return build_prompts(windows, CONFIG, 42)


def test_a_market_state_is_what_its_window_says(window_factory: Callable[..., pl.DataFrame]) -> None:
    one = window_factory(1).with_columns(
        price=pl.Series([2500.0] * 23 + [2525.0]),
        tick_change=pl.Series([0] * 24),
        volume_usdc=pl.Series([100.0] * 24),
        volume_ma=pl.Series([50.0] * 24),
        side=pl.Series(["BUY"] * 18 + ["SELL"] * 6),
        seconds_since_previous=pl.Series([10] * 24),
        liquidity_usage=pl.Series([0.002] * 24),
    )
    state = market_states(one, StateWords()).row(0, named=True)
    assert state["price"] == 2525
    assert state["change_bps"] == pytest.approx(100)
    assert state["change_ticks"] == pytest.approx(math.log(1.01) / math.log(1.0001))
    assert state["volatility_bps"] == pytest.approx(math.log(1.01) * 1e4)
    assert (state["volume_usdc"], state["volume_ratio"], state["imbalance"]) == (2400, 2, 0.5)
    assert (state["liquidity_usage"], state["span_seconds"]) == (pytest.approx(0.002), 240)
    assert (state["trend"], state["volatility"]) == ("up weak", "normal")


def test_the_change_includes_the_first_swap_of_the_window(window_factory: Callable[..., pl.DataFrame]) -> None:
    one = window_factory(1).with_columns(price=pl.lit(2500.0), tick_change=pl.Series([-100] + [0] * 23))
    state = market_states(one, StateWords()).row(0, named=True)
    assert state["change_ticks"] == pytest.approx(-100)
    assert state["trend"] == "down weak"


def test_a_trend_is_a_move_beyond_the_volatility_and_the_cost_of_two_trades(
    window_factory: Callable[..., pl.DataFrame],
) -> None:
    def trend(*ticks: int) -> str:
        moves = pl.Series([0] * (24 - len(ticks)) + list(ticks))
        price = 2500 * 1.0001 ** moves.cum_sum()
        return str(
            market_states(window_factory(1).with_columns(price=price, tick_change=moves), StateWords())["trend"][0]
        )

    assert (trend(25), trend(30, -10)) == ("up weak", "flat"), "20 of them, and a volatility of 32"
    assert trend(15) == "flat", "a purchase and a sale cost 20 basis points"
    assert (trend(*[10] * 3), trend(*[10] * 4), trend(*[-10] * 4)) == ("up weak", "up strong", "down strong")


def test_a_market_that_stands_still_is_flat(window_factory: Callable[..., pl.DataFrame]) -> None:
    still = window_factory(1).with_columns(
        price=pl.lit(2500.0), tick_change=pl.lit(None, pl.Int64), volume_usdc=pl.lit(0.0)
    )
    state = market_states(still, StateWords()).row(0, named=True)
    assert (state["trend"], state["volatility"], state["imbalance"]) == ("flat", "calm", 0)


def test_the_sentence_of_the_source_document_is_asked_word_for_word() -> None:
    state = pl.DataFrame(
        {
            "price": [2506.92],
            "volume_usdc": [999.43],
            "volatility_bps": [450.0],
            "change_ticks": [35.7765],
            "change_bps": [35.84],
            "volume_ratio": [1.0],
            "imbalance": [0.0],
            "liquidity_usage": [0.001],
            "span_seconds": [100],
            "eth": [3.746],
            "usdc": [9507.14],
            "trend": ["flat"],
            "volatility": ["high"],
            "template": ["document"],
        }
    )
    assert render_prompts(state, StateWords())["prompt"][0] == (
        "Given ETH price is $2506.92 with volume of 999.43 and volatility of 0.0450, recent price change of 35.7765 "
        "ticks, and I currently hold 3.746 ETH and 9507.14 USDC, what trading action should I take on Uniswap?"
    )


def test_prompts_have_the_promised_columns_numbers_and_no_gaps(prompts: pl.DataFrame) -> None:
    assert prompts.schema == pl.Schema(PROMPTS_SCHEMA)
    assert dict(prompts["split"].value_counts().iter_rows()) == {"train": 1200, "valid": 70, "test": 300}
    assert prompts.null_count().sum_horizontal()[0] == 0
    assert prompts["prompt_id"].is_unique().all()
    assert prompts["prompt"].is_unique().all()


def test_every_market_state_and_portfolio_is_asked_about(prompts: pl.DataFrame) -> None:
    train = prompts.filter(split="train")
    for column, words, share in (
        ("trend", TRENDS, 0.1),
        ("volatility", VOLATILITIES, 0.15),
        ("portfolio", PORTFOLIOS, 0.03),
    ):
        counts = dict(train[column].value_counts().iter_rows())
        assert min(counts.get(word, 0) for word in words) >= share * train.height, counts
    assert train.filter((pl.col("usdc") == 0) & (pl.col("eth") > 0)).height > 0
    assert train.filter((pl.col("eth") == 0) & (pl.col("usdc") > 0)).height > 0


def test_digested_prompts_show_the_words_and_the_others_do_not(prompts: pl.DataFrame) -> None:
    digested = prompts.filter((pl.col("rendering") == "digested") & (pl.col("dressing") != "typing errors"))
    text = pl.col("prompt").str.to_lowercase()
    for word in ("trend", "volatility", "portfolio"):
        said = pl.format(f"{word} {{}}", pl.col(word)).str.to_lowercase()
        assert digested.select(text.str.contains(said, literal=True)).to_series().all()
    others = prompts.filter(pl.col("rendering") != "digested")
    words = "|".join(["trend (?:up|down|flat)", *(f"portfolio {word}" for word in PORTFOLIOS), "strong", "weak"])
    assert not others["prompt"].str.contains(words).any()


def test_numbers_alone_are_the_main_form_of_every_split(prompts: pl.DataFrame) -> None:
    for _, part in prompts.group_by("split"):
        shares = dict(part["rendering"].value_counts(normalize=True).iter_rows())
        assert shares["plain"] + shares["agent"] >= 0.5, shares
        assert shares["digested"] >= 0.15, shares


def _numbers(text: str) -> list[float]:
    return [float(found.replace(",", "")) for found in re.findall(r"\d[\d,]*(?:\.\d+)?", text)]


def test_what_a_prompt_of_numbers_alone_is_judged_by_can_be_read_from_it(prompts: pl.DataFrame) -> None:
    """Price, change, volatility (in one of its units) and holdings of the row are the printed ones."""
    alone = prompts.filter(pl.col("rendering").is_in(["plain", "agent"]))
    for row in alone.iter_rows(named=True):
        shown = _numbers(row["facts"])
        unit = 10.0 if row["rendering"] == "agent" else 1.0
        change = abs(row["change_ticks"]) / unit
        assert any(abs(change - number) < 1e-6 for number in shown), row
        scales = (100.0,) if row["rendering"] == "agent" else (1e4, 100.0, 1.0)
        assert any(abs(row["volatility_bps"] - number * scale) < 1e-5 for number in shown for scale in scales), row
        for name in ("price", "eth", "usdc"):
            is_said_to_be_none = row[name] == 0 and f"no {name.upper()}" in row["facts"]
            assert is_said_to_be_none or any(abs(row[name] - number) < 1e-9 for number in shown), (name, row["facts"])


def test_volatility_is_written_as_people_write_it(prompts: pl.DataFrame) -> None:
    facts = prompts.filter(rendering="plain")["facts"]
    for pattern in (
        r"volatility (?:of |is |was )?0\.0[1-9]\d\b",
        r"0\.00\d{2}\b",
        r"0\.\d{3,6}\b",
        r"\d ?%",
        r"\d %",
        r"\d bps",
        r"\$\d,\d{3}",
        r"\n",
    ):
        assert facts.str.contains(pattern).sum() >= 5, pattern


def test_the_agents_sentence_has_its_units_its_layout_and_its_own_system_message_or_none(prompts: pl.DataFrame) -> None:
    agent = prompts.filter(rendering="agent")
    assert agent["prompt"].str.contains("\n {12}").all()
    assert agent["prompt"].str.contains(r"\d\.\d ETH").all()
    assert {"", STUDENT_SYSTEM_PROMPT} < set(agent["system"])
    assert agent["prompt"].str.contains("Previous trades").any()
    assert not agent["facts"].str.contains("Previous trades").any(), "the history follows the question"
    assert AGENT_SYSTEM_PROMPTS[-1] not in set(agent.filter(pl.col("split") != "test")["system"])


def test_an_incomplete_prompt_names_the_fact_that_it_lacks(prompts: pl.DataFrame) -> None:
    incomplete = prompts.filter(rendering="incomplete")
    assert set(incomplete["missing"]) == set(NEEDED)
    assert set(prompts.filter(pl.col("rendering") != "incomplete")["missing"]) == {""}


def test_a_hidden_instruction_changes_nothing_but_the_text(prompts: pl.DataFrame) -> None:
    asked = prompts.filter(dressing="hidden instruction")
    assert 0.02 < asked.height / prompts.height < 0.15
    for row in asked.iter_rows(named=True):
        assert row["facts"].strip() in row["prompt"]
        assert row["question"] in row["prompt"]
        assert len(row["prompt"]) > len(row["facts"] + row["question"])


def test_a_wording_held_out_is_never_seen_in_training_and_every_other_one_is(prompts: pl.DataFrame) -> None:
    train = set(prompts.filter(pl.col("split") != "test")["template"])
    assert train == {template.name for template in TEMPLATES if not template.held_out}
    assert set(prompts.filter(split="test")["template"]) == {template.name for template in TEMPLATES}


def test_the_splits_are_apart_in_time_by_more_than_a_window(prompts: pl.DataFrame) -> None:
    blocks = prompts.with_columns(block=pl.col("condition_id").str.head(12).cast(pl.Int64))
    ends = {name: (part["block"].min(), part["block"].max()) for (name,), part in blocks.group_by("split")}
    span_blocks = prompts["span_seconds"].median() / 2  # type: ignore[operator]
    assert ends["train"][1] + span_blocks < ends["valid"][0]  # type: ignore[operator]
    assert ends["valid"][1] + span_blocks < ends["test"][0]  # type: ignore[operator]


def test_same_seed_same_prompts_and_another_seed_others(windows: pl.DataFrame, prompts: pl.DataFrame) -> None:
    assert build_prompts(windows.sample(fraction=1, shuffle=True, seed=1), CONFIG, 42).equals(prompts)
    assert not build_prompts(windows, CONFIG, 43).equals(prompts)


def test_asking_for_more_prompts_keeps_those_already_paid_for(windows: pl.DataFrame, prompts: pl.DataFrame) -> None:
    more = build_prompts(windows, CONFIG.model_copy(update={"test_prompts": 400, "train_prompts": 1210}), 42)
    assert set(prompts["prompt_id"]) <= set(more["prompt_id"])


def test_too_few_windows_are_told_with_numbers_and_remedy(window_factory: Callable[..., pl.DataFrame]) -> None:
    with pytest.raises(
        ValueError, match=r"windows of the train split give \d+ prompts, 1200 are wanted: sample at least \d+"
    ):
        build_prompts(window_factory(60), CONFIG, 0)
    with pytest.raises(ValueError, match="distinct conditions cannot be split"):
        build_prompts(window_factory(2), PromptsConfig(), 0)
    with pytest.raises(ValueError, match="lower gap_windows"):
        build_prompts(window_factory(60), PromptsConfig(gap_windows=1e5), 0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: w.drop("price", "side"), r"lack the columns \['price', 'side'\]"),
        (lambda w: w.head(0), "there are no windows"),
        (lambda w: w.with_columns(price=pl.lit(float("nan"))), "no usable price"),
        (lambda w: w.with_columns(price=pl.lit(0.0)), "price 0.0"),
        (lambda w: w.with_columns(volume_usdc=pl.lit(None, pl.Float64)), "volume None"),
        (lambda w: w.with_columns(condition_id=pl.lit("25350999-12")), "not of the form"),
    ],
)
def test_unusable_windows_are_refused_by_name(
    windows: pl.DataFrame, spoil: Callable[[pl.DataFrame], pl.DataFrame], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_prompts(spoil(windows), PromptsConfig(), 0)


def test_a_wrong_configuration_is_refused() -> None:
    with pytest.raises(ValueError, match="leave room for test"):
        PromptsConfig(train_share=0.8, valid_share=0.3)
    with pytest.raises(ValueError, match="calm_below_bps"):
        PromptsConfig(calm_below_bps=200.0)


@given(usdc=st.floats(0.01, 1e9), price=st.floats(1, 1e5))
@settings(max_examples=200)
def test_the_eth_a_prompt_calls_affordable_can_be_paid(usdc: float, price: float) -> None:
    shown = pl.select(affordable_eth(pl.lit(usdc), pl.lit(price))).item()
    assert shown * price * (1 + COST_SHARE) <= usdc * (1 + 1e-12)
    assert shown * price * (1 + COST_SHARE) >= usdc * 0.998
