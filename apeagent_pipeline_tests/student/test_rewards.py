"""What the second stage learns from: rewards that anyone can compute again by hand."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.amm.price import sqrt_price_x96_from_price
from apeagent_pipeline.distillation.canary_words import CANARY
from apeagent_pipeline.distillation.chain_of_draft import DraftAnswer, render_answer
from apeagent_pipeline.distillation.verification import VerificationConfig
from apeagent_pipeline.student.rewards import feasibility_reward, format_reward, outcome_bps, outcome_reward

DEEP, SHALLOW = 10**22, 10**15


def state(later_price: float = 2500.0, liquidity: int = DEEP, eth: float = 1.0, usdc: float = 2500.0) -> dict[str, Any]:
    root = sqrt_price_x96_from_price(2500.0, BASE_ETH_USDC)
    return {
        "eth": eth,
        "usdc": usdc,
        "price": 2500.0,
        "next_sqrt_price_x96": str(root),
        "next_liquidity": str(liquidity),
        "later_price": later_price,
    }


def trade(side: str, amount: float) -> DraftAnswer:
    return DraftAnswer(("trend up",), side, amount, "ETH")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("trend up\n####\nAPE IN 0.4 ETH", 1.0),
        ("trend flat\n####\nAPE NEUTRAL", 1.0),
        ("trend up\n####\nBUY 0.4 ETH", 0.0),  # not in canary words
        ("trend up\n####\nAPE IN 0.4 ETH\nAPE OUT 1 ETH", 0.0),  # two actions
        ("trend up\n####\nAPE IN 0.4 ETH because it rises", 0.0),
        ("trend up\nAPE IN 0.4 ETH", 0.0),
        ("####\nAPE NEUTRAL", 0.0),  # no draft
        ("a draft of more than five words\n####\nAPE NEUTRAL", 0.0),
        ("", 0.0),
    ],
)
def test_only_a_canary_answer_in_short_drafts_has_the_form(text: str, reward: float) -> None:
    assert format_reward(text, VerificationConfig()) == reward


@pytest.mark.parametrize(
    ("action", "reward"),
    [
        ("APE OUT 1 ETH", 1.0),
        ("APE OUT 1.01 ETH", 0.0),
        ("APE IN 0.9 ETH", 1.0),
        ("APE IN 1 ETH", 0.0),  # costs come on top
        ("APE IN 2500 USDC", 1.0),
        ("APE NEUTRAL", 1.0),
        ("nothing", 0.0),
    ],
)
def test_what_is_held_must_pay_for_the_action(action: str, reward: float) -> None:
    assert feasibility_reward(f"a draft\n####\n{action}", state()) == reward


def test_the_outcome_is_what_hand_and_pool_arithmetic_say() -> None:
    # Half an ETH is 1,250 of 5,000 USDC; the fee of 0.05 % is 0.625 USDC.
    assert outcome_bps(trade("SELL", 0.5), state(), BASE_ETH_USDC) == pytest.approx(-1.25, rel=1e-3)
    # Bought for 1,250.625 USDC and worth 1,300, in a portfolio that would be worth 2,600 + 2,500.
    gained = (1300 - 1250.625) / 5100 * 1e4
    assert outcome_bps(trade("BUY", 0.5), state(2600.0), BASE_ETH_USDC) == pytest.approx(gained, rel=1e-3)
    assert outcome_bps(trade("SELL", 0.5), state(2600.0), BASE_ETH_USDC) < -90
    # In a shallow pool the price impact comes on top of the fee.
    assert outcome_bps(trade("SELL", 0.5), state(liquidity=SHALLOW), BASE_ETH_USDC) < -5


def test_a_trade_that_is_not_executed_has_no_outcome() -> None:
    assert outcome_bps(trade("SELL", 1.5), state(2000.0), BASE_ETH_USDC) == 0
    assert outcome_bps(trade("BUY", 0.5), state(2600.0, liquidity=10**6), BASE_ETH_USDC) == 0
    assert outcome_reward("no answer", state(2600.0), BASE_ETH_USDC, 25) == 0


@given(
    side=st.sampled_from(["BUY", "SELL", "HOLD"]),
    amount=st.floats(1e-4, 100.0),
    later=st.floats(500, 9000),
    eth=st.floats(0, 50),
    usdc=st.floats(0, 1e5),
)
def test_no_outcome_is_worth_giving_up_a_right_form(
    side: str, amount: float, later: float, eth: float, usdc: float
) -> None:
    answer = DraftAnswer(("a draft",), "HOLD") if side == "HOLD" else trade(side, amount)
    now, after = state(2500.0, eth=eth, usdc=usdc), state(later, eth=eth, usdc=usdc)
    reward = outcome_reward(render_answer(answer, CANARY), after, BASE_ETH_USDC, 25)
    assert -1 <= reward <= 1
    assert outcome_bps(answer, now, BASE_ETH_USDC) <= 0, "a trade at an unchanged price costs its fee"
    if side == "HOLD":
        assert reward == 0
