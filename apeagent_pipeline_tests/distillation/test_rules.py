"""The embedded teacher: the policy it documents, trades it can pay for, and drafts that say what the prompt says."""

import itertools
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from apeagent_pipeline.distillation.chain_of_draft import parse_answer, render_answer
from apeagent_pipeline.distillation.market_states import TRENDS, VOLATILITIES
from apeagent_pipeline.distillation.portfolios import PORTFOLIOS, affordable_eth, portfolio_word
from apeagent_pipeline.distillation.prompts import RENDERINGS, PromptsConfig, build_prompts, token_text
from apeagent_pipeline.distillation.teachers.rules import RulesTeacher, decide, plans, rules_answer, size_of
from apeagent_pipeline.distillation.traces import TracesConfig
from apeagent_pipeline.distillation.verification import verify


def test_the_policy_follows_the_trend_within_its_inventory() -> None:
    assert decide("up strong", "normal", "balanced") == ("BUY", Decimal("0.5"))
    assert decide("up strong", "calm", "mostly ETH") == ("BUY", Decimal("0.5"))
    assert decide("up weak", "calm", "mostly USDC") == ("BUY", Decimal("0.1"))
    assert decide("up strong", "high", "balanced") == ("BUY", Decimal("0.1"))
    assert decide("down strong", "calm", "all ETH") == ("SELL", Decimal("0.5"))
    assert decide("down weak", "normal", "balanced") == ("SELL", Decimal("0.1"))
    for words in (
        ("up strong", "normal", "dust"),
        ("up strong", "normal", "all ETH"),
        ("up weak", "normal", "mostly ETH"),
        ("up strong", "high", "mostly ETH"),
        ("up weak", "high", "balanced"),
        ("flat", "calm", "all USDC"),
        ("down strong", "normal", "all USDC"),
        ("down weak", "normal", "mostly USDC"),
    ):
        assert decide(*words) == ("HOLD", Decimal(0))
    with pytest.raises(ValueError, match="'sideways' is none of"):
        decide("sideways", "calm", "balanced")


def test_up_and_down_are_mirror_images() -> None:
    mirror = {"all ETH": "all USDC", "mostly ETH": "mostly USDC", "mostly USDC": "mostly ETH", "all USDC": "all ETH"}
    for strength, volatility, portfolio in itertools.product(("strong", "weak"), VOLATILITIES, PORTFOLIOS):
        side, share = decide(f"up {strength}", volatility, portfolio)
        mirrored, mirrored_share = decide(f"down {strength}", volatility, mirror.get(portfolio, portfolio))
        assert (side.replace("BUY", "SELL"), share) == (mirrored, mirrored_share)


holdings = st.floats(1e-6, 1e6)


@given(
    trend=st.sampled_from(TRENDS),
    volatility=st.sampled_from(VOLATILITIES),
    rendering=st.sampled_from(RENDERINGS),
    eth=st.just(0.0) | holdings,
    usdc=st.just(0.0) | holdings.map(lambda x: round(x, 2)).filter(bool),
    price=st.floats(100, 20_000),
    seed=st.integers(0, 2**32),
)
def test_the_policy_never_trades_more_than_is_held_and_always_passes_verification(
    trend: str, volatility: str, rendering: str, eth: float, usdc: float, price: float, seed: int
) -> None:
    assume(eth * price + usdc >= 100 or 0 < eth * price + usdc < 1)  # as prompts draw them: worth a trade, or dust
    columns = (pl.lit(eth), pl.lit(usdc), pl.lit(price))
    change = {"up": 50.0, "do": -50.0, "fl": 0.0}[trend[:2]]
    row: dict[str, Any] = {
        "prompt_id": str(seed),
        "trend": trend,
        "volatility": volatility,
        "portfolio": pl.select(portfolio_word(*columns)).item(),
        "rendering": rendering,
        "change_bps": change,
        "change_ticks": change,
        "volatility_bps": 76.4,
        "price": price,
        "eth": eth,
        "usdc": usdc,
        "affordable_eth": pl.select(affordable_eth(*columns[1:])).item(),
    }
    answer = rules_answer(row)
    assert parse_answer(render_answer(answer)) == answer
    assert verify(answer, row, TracesConfig(draft_words=5, draft_words_tolerance=0)) is None
    if answer.side != "HOLD":
        holding = eth if answer.side == "SELL" else row["affordable_eth"]
        assert answer.drafts[-1].endswith(f" {token_text(holding)}"), "a size needs only the number before it"
    numbers = f"{change:+.0f}/76 " if rendering == "plain" else ""
    assert answer.drafts[0].startswith(numbers + trend), "a word that the prompt lacks needs only the numbers before it"


@given(st.floats(1e-9, 1e9), st.sampled_from([Decimal("0.5"), Decimal("0.1")]))
def test_a_size_is_rounded_down_and_loses_less_than_a_percent(holding: float, share: Decimal) -> None:
    assert float(share) * holding * 0.99 <= size_of(share, holding) <= float(share) * holding * (1 + 1e-12)


def test_each_draft_follows_from_the_one_before_and_one_word_of_the_prompt() -> None:
    """A student needs no more than that: no two answers go on differently from the same plan and word."""
    following: dict[tuple[str, ...], set[str]] = {}
    for trend, volatility, portfolio in itertools.product(TRENDS, VOLATILITIES, PORTFOLIOS):
        first, second, third = plans(trend, volatility, portfolio)
        following.setdefault((trend, volatility), set()).add(second)
        following.setdefault((second, portfolio), set()).add(third)
        assert first == plans(trend, VOLATILITIES[0], PORTFOLIOS[0])[0]
    assert {len(plans) for plans in following.values()} == {1}


def test_all_three_actions_are_taught(windows: pl.DataFrame) -> None:
    prompts = build_prompts(windows, PromptsConfig(), 42).to_dicts()
    answers = [parse_answer(answer.text) for answer in RulesTeacher().answer(prompts, 1)]
    sides = [answer.side for answer in answers]
    assert min(sides.count(side) for side in ("BUY", "SELL", "HOLD")) > 0.15 * len(sides)
    assert answers == [parse_answer(answer.text) for answer in RulesTeacher().answer(prompts, 2)]
