"""What a trade does to a portfolio: never better than its price, and nothing where the pool cannot fill it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.amm.price import sqrt_price_x96_from_price
from apeagent_pipeline.distillation.chain_of_draft import DraftAnswer
from apeagent_pipeline.distillation.execution import execute

LIQUIDITY = 10**17


@settings(max_examples=40)
@given(
    side=st.sampled_from(["BUY", "SELL"]),
    asset=st.sampled_from(["ETH", "USDC"]),
    amount=st.floats(1e-4, 50.0),
    price=st.floats(500, 9000),
)
def test_no_trade_is_better_than_its_price_without_the_fee(side, asset, amount, price):
    root = sqrt_price_x96_from_price(price, BASE_ETH_USDC)
    fill = execute(DraftAnswer((), side, amount, asset), root, LIQUIDITY, BASE_ETH_USDC)
    assert fill is not None
    assert (fill.eth > 0) == (side == "BUY")
    assert (fill.usdc > 0) == (side == "SELL")
    paid, got = (fill.usdc, fill.eth) if side == "BUY" else (fill.eth, fill.usdc)
    mid = price / 10**12
    worth = -paid / mid if side == "BUY" else -paid * mid
    assert got <= worth * (1 - 0.0005) * (1 + 1e-9) + 1


def test_a_pool_that_cannot_fill_a_trade_gives_nothing():
    root = sqrt_price_x96_from_price(2500.0, BASE_ETH_USDC)
    assert execute(DraftAnswer((), "BUY", 10.0, "ETH"), root, 10**6, BASE_ETH_USDC) is None
