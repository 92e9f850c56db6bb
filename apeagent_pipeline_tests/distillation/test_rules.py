"""The embedded teacher: the policy it documents, trades it can pay for, and drafts that say what the prompt says."""

import itertools
import re
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from apeagent_pipeline.distillation.chain_of_draft import DraftAnswer, parse_answer, render_answer
from apeagent_pipeline.distillation.market_states import CONFIRMATIONS, TRENDS, VOLATILITIES, StateWords
from apeagent_pipeline.distillation.portfolios import PORTFOLIOS, affordable_eth, lot_of
from apeagent_pipeline.distillation.printed_numbers import (
    BASIS_POINTS,
    cut_off,
    one_digit,
    token_text,
    words_of_printed,
)
from apeagent_pipeline.distillation.prompts import PromptsConfig, build_prompts
from apeagent_pipeline.distillation.teachers.rules import (
    SHARES,
    RulesTeacher,
    decide,
    plans,
    rules_answer,
    two_digits_of,
)
from apeagent_pipeline.distillation.traces import TracesConfig
from apeagent_pipeline.distillation.verification import is_feasible, verify
from apeagent_pipeline.distillation.wordings import NEEDED


def test_the_policy_follows_the_trend_within_its_inventory() -> None:
    assert decide("up strong", "calm", "", "balanced") == ("BUY", Decimal("0.1"))
    assert decide("up weak", "normal", "", "mostly USDC") == ("BUY", Decimal("0.05"))
    assert decide("up strong", "high", "", "balanced") == ("BUY", Decimal("0.01"))
    assert decide("up strong", "calm", "", "mostly ETH") == ("BUY", Decimal("0.05"))
    assert decide("up strong", "high", "", "mostly ETH") == ("BUY", Decimal("0.01"))
    assert decide("up weak", "calm", "confirmed", "balanced") == ("BUY", Decimal("0.1"))
    assert decide("up weak", "calm", "volume thin", "balanced") == ("BUY", Decimal("0.05"))
    assert decide("down weak", "calm", "flow mixed", "mostly USDC") == ("SELL", Decimal("0.01"))
    assert decide("down strong", "calm", "", "all ETH") == ("SELL", Decimal("0.1"))
    for words in (
        ("up strong", "normal", "", "dust"),
        ("up strong", "normal", "confirmed", "all ETH"),
        ("flat", "calm", "confirmed", "all USDC"),
        ("down strong", "normal", "", "all USDC"),
    ):
        assert decide(*words) == ("HOLD", Decimal(0))
    with pytest.raises(ValueError, match="unknown word 'sideways'"):
        decide("sideways", "calm", "", "balanced")


def test_up_and_down_are_mirror_images() -> None:
    mirror = {"all ETH": "all USDC", "mostly ETH": "mostly USDC", "mostly USDC": "mostly ETH", "all USDC": "all ETH"}
    for volatility, confirmation, portfolio in itertools.product(VOLATILITIES, CONFIRMATIONS, PORTFOLIOS):
        side, share = decide("up weak", volatility, confirmation, portfolio)
        mirrored = decide("down weak", volatility, confirmation, mirror.get(portfolio, portfolio))
        assert (side.replace("BUY", "SELL"), share) == mirrored


def test_no_word_makes_a_trade_larger_than_a_better_word() -> None:
    """Higher volatility, doubts about the trend and more of the wanted token never make a trade larger."""
    worse = (VOLATILITIES, ("confirmed", "volume thin"), ("mostly USDC", "balanced", "mostly ETH", "all ETH", "dust"))
    for words in itertools.product(*worse):
        share = decide("up weak", *words)[1]
        for place, order in enumerate(worse):
            for next_word in order[order.index(words[place]) + 1 :]:
                changed = (*words[:place], next_word, *words[place + 1 :])
                assert decide("up weak", *changed)[1] <= share


holdings = st.floats(1e-6, 1e6)


def printed(**numbers: Any) -> dict[str, Any]:
    """A row of a prompt of numbers alone, as ``build_prompts`` makes it."""
    row = {"price": 2500.0, "change_ticks": -31.5, "volatility_bps": 21.7, "eth": 0.6081, "usdc": 1300.4, **numbers}
    row["change_bps"] = row["change_ticks"]
    worked = words_of_printed(pl.DataFrame([row]), StateWords()).with_columns(
        affordable_eth=affordable_eth(pl.col("usdc"), pl.col("price")),
        copied_change=pl.lit(cut_off(token_text(row["change_ticks"]), 0)),
        copied_volatility=pl.lit(BASIS_POINTS.copy(token_text(row["volatility_bps"]))),
    )
    asked = {"prompt_id": "1", "rendering": "plain", "missing": "", "confirmation": ""}
    return {**asked, **worked.row(0, named=True)}


def test_a_draft_on_numbers_alone_works_out_what_is_compared() -> None:
    answer = rules_answer(printed())
    assert answer.drafts == (
        "volatility 21bps, change -31",
        "2500, 1,300 USDC, 0.6 ETH",
        "-31 vs 21, down, reduce",
        "21 calm, reduce tenth",
        "1.3k at 2.5k makes 0.5",
        "0.6 vs 0.5",
        "balanced, reduce tenth",
        "tenth of 0.6, lot 0.05",
    )
    assert (answer.side, answer.amount) == ("SELL", 0.05)
    bought = rules_answer(printed(change_ticks=31.5))
    assert (bought.drafts[-1], bought.amount) == ("tenth of 0.5, lot 0.05", 0.05)
    rough = rules_answer(printed(change_ticks=1079.0, volatility_bps=459.0, price=3498.9, usdc=0.0))
    assert rough.drafts[1] == "3498, 0 USDC, 0.6 ETH", "whole numbers where they are copied"
    assert rough.drafts[2] == "+1079 vs 459, up, add", "the digits that are copied"
    assert rough.drafts[4] == "0k at 3.4k makes 0"
    assert rules_answer(printed(usdc=5.97)).drafts[4] == "0.0059k at 2.5k makes 0.0025"
    ended = rules_answer(printed(change_ticks=-9.0)).drafts[2:]
    assert ended == ("-9 vs 21, flat, wait",), "nothing more to decide"


def test_decimals_that_are_not_compared_never_decide() -> None:
    """At an edge the printed whole numbers decide, whatever decimals stand behind them."""
    assert rules_answer(printed(change_ticks=21.0, volatility_bps=21.0)).drafts[2] == "+21 vs 21, up, add"
    assert rules_answer(printed(change_ticks=21.0, volatility_bps=21.9)).drafts[2] == "+21 vs 21, up, add"
    assert rules_answer(printed(change_ticks=20.99, volatility_bps=21.0)).drafts[2] == "+20 vs 21, flat, wait"
    assert rules_answer(printed(volatility_bps=29.99)).drafts[3].startswith("29 calm")
    assert rules_answer(printed(volatility_bps=30.0)).drafts[3].startswith("30 normal")


def test_a_move_that_does_not_pay_a_purchase_and_a_sale_is_flat() -> None:
    assert rules_answer(printed(change_ticks=19.9, volatility_bps=5.0)).side == "HOLD"
    assert rules_answer(printed(change_ticks=20.0, volatility_bps=5.0)).side == "BUY"


@given(st.floats(1e-9, 1e9))
def test_a_quotient_has_few_digits_and_is_at_most_a_seventh_away(exact: float) -> None:
    rough = pl.select(one_digit(pl.lit(exact))).item()
    assert rough == pytest.approx(exact, rel=0.143)
    mantissa, _ = f"{rough:e}".split("e")
    assert float(mantissa) in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)


@given(change=st.floats(-20_000, 20_000), volatility=st.floats(0, 20_000), eth=holdings, usdc=holdings)
@settings(max_examples=60, deadline=None)
def test_the_lines_of_a_worked_draft_follow_from_one_another(
    change: float, volatility: float, eth: float, usdc: float
) -> None:
    row = printed(change_ticks=change, volatility_bps=volatility, eth=eth, usdc=round(usdc, 2))
    assume(eth * 2500 + usdc >= 100)
    _, facts, trend, *rest = rules_answer(row).drafts
    compared, _, trend = trend.partition(", ")
    signed, whole = map(int, compared.split(" vs "))
    is_flat = abs(signed) < max(whole, 20)
    assert trend == ("flat, wait" if is_flat else "up, add" if signed > 0 else "down, reduce")
    assert bool(rest) != is_flat
    if is_flat:
        return
    level, bought, weighed, *_ = rest
    assert level.startswith(f"{whole} {'calm' if whole < 30 else 'normal' if whole < 100 else 'high'}, ")
    price, cash, owned = (float(word) for word in facts.replace(",", "").split() if word not in ("USDC", "ETH"))
    spent, at, buys = (float(word.rstrip("k")) * (1000 if "k" in word else 1) for word in bought.split()[::2])
    assert (price, at) == (2500, 2500)
    assert cash == pytest.approx(usdc, rel=0.1, abs=0.01)
    assert 0.9 * cash <= spent <= cash * (1 + 1e-9)
    assert buys == pytest.approx(spent / at, rel=0.143)
    held, also_bought = map(float, weighed.split(" vs "))
    assert 0.9 * eth <= held <= eth * (1 + 1e-9)
    assert (held, also_bought) == (owned, buys)


def test_a_prompt_that_lacks_a_fact_gets_no_trade_and_a_draft_that_says_what_is_missing() -> None:
    said = {
        "volatility": ("volatility missing, wait",),
        "change": ("volatility 21bps, change missing, wait",),
        "price": ("volatility 21bps, change -31", "price missing, wait"),
        "holdings": ("volatility 21bps, change -31", "2500, holdings missing, wait"),
    }
    assert set(said) == set(NEEDED)
    for fact, drafts in said.items():
        answer = rules_answer({**printed(), "rendering": "incomplete", "missing": fact})
        assert (answer.drafts, answer.side) == (drafts, "HOLD")
    trade = DraftAnswer(("price unknown", "reduce"), "SELL", 0.1, "ETH")
    row = {**printed(), "rendering": "incomplete", "missing": "price"}
    assert verify(trade, row, TracesConfig()) == "missing_information"


@given(
    change=st.sampled_from([-400.0, -50.0, -9.0, 0.0, 9.0, 50.0, 400.0]),
    volatility=st.sampled_from([4.0, 30.0, 50.0, 200.0, 1500.0]),
    rendering=st.sampled_from(["plain", "digested", "agent"]),
    eth=st.just(0.0) | holdings,
    usdc=st.just(0.0) | holdings.map(lambda x: round(x, 2)).filter(bool),
    price=st.floats(100, 20_000),
)
@settings(max_examples=60, deadline=None)
def test_the_policy_never_trades_more_than_is_held_and_always_passes_verification(
    change: float, volatility: float, rendering: str, eth: float, usdc: float, price: float
) -> None:
    assume(eth * price + usdc >= 100 or 0 < eth * price + usdc < 1)  # as prompts draw them: worth a trade, or dust
    row = {**printed(change_ticks=change, volatility_bps=volatility, eth=eth, usdc=usdc, price=price)}
    row["rendering"] = rendering
    answer = rules_answer(row)
    assert parse_answer(render_answer(answer)) == answer
    assert verify(answer, row, TracesConfig(draft_words=5, draft_words_tolerance=0)) is None
    assert len(answer.drafts) <= 8
    if answer.side != "HOLD":
        share, holding, amount = re.fullmatch(r"(\w+) of (\S+), lot (\S+)", answer.drafts[-1]).groups()  # type: ignore[union-attr]
        exact = eth if answer.side == "SELL" else row["affordable_eth"]
        least, most = (0.9, 1.0 + 1e-9) if rendering == "digested" else (0.85, 1 / 0.85)
        assert least * exact <= float(holding) <= most * exact
        assert is_feasible(answer, eth, usdc, price)
        assert answer.drafts[-2].endswith(f" {share}")
        assert answer.amount == float(amount) == lot_of(float(SHARES[share] * Decimal(holding)))


@given(st.floats(1e-9, 1e9))
def test_a_number_is_cut_off_after_two_digits(number: float) -> None:
    assert number * 0.9 <= two_digits_of(number) <= number * (1 + 1e-12)
    assert float(f"{two_digits_of(number):.1e}") == two_digits_of(number)


@given(st.floats(1e-9, 1e9))
def test_a_lot_is_one_or_two_or_five_and_the_largest_below(number: float) -> None:
    lot = lot_of(number)
    assert f"{lot:e}"[0] in "125"
    assert float(f"{lot:.0e}") == lot
    assert lot <= number < 2.5 * lot * (1 + 1e-9)
    assert lot_of(lot) == lot


def test_each_draft_follows_from_the_one_before_and_one_word_of_the_prompt() -> None:
    """A student needs no more than that: no two answers go on differently from the same plan and word."""
    following: dict[tuple[str, ...], set[str]] = {}
    for words in itertools.product(TRENDS, VOLATILITIES, CONFIRMATIONS, PORTFOLIOS):
        given_words = dict(zip(("trend", "volatility", "confirmation", "portfolio"), words, strict=True))
        before = ""
        for name, plan in plans(*words).items():
            following.setdefault((before, name, given_words[name]), set()).add(plan)
            before = plan
    assert {len(plans) for plans in following.values()} == {1}


def test_all_three_actions_are_taught(windows: pl.DataFrame) -> None:
    prompts = build_prompts(windows, PromptsConfig(train_prompts=400, prompts_per_window=4), 42).to_dicts()
    answers = [parse_answer(answer.text) for answer in RulesTeacher().answer(prompts, 1)]
    sides = [answer.side for answer in answers]
    assert min(sides.count(side) for side in ("BUY", "SELL", "HOLD")) > 0.15 * len(sides)
    assert answers == [parse_answer(answer.text) for answer in RulesTeacher().answer(prompts, 2)]
