"""Prices in human units and the square-root prices of the contract."""

from fractions import Fraction
from math import isfinite, isqrt
from typing import Any

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.amm.ticks import MAX_SQRT_PRICE, MIN_SQRT_PRICE, Q96


def price_from_sqrt_price(sqrt_price_x96: Any, spec: PoolSpec) -> Any:
    """Token1 per token0 in human units (USDC per ETH), after each token's decimals.

    Args:
        sqrt_price_x96: A number, a float array or a polars expression of floats; the result is of the same kind.
        spec: Gives the decimals of both tokens.
    """
    root = sqrt_price_x96 / float(Q96)
    return root * root * 10.0 ** (spec.token0.decimals - spec.token1.decimals)


def sqrt_price_x96_from_price(price: float, spec: PoolSpec) -> int:
    """The Q64.96 square-root price of a price in token1 per token0, rounded down.

    Raises:
        ValueError: if the price is not a positive finite number or the contract cannot hold it.
    """
    if not isfinite(price) or price <= 0:
        raise ValueError(f"a price must be a positive finite number, not {price!r}")
    raw = Fraction(price) * Fraction(10) ** (spec.token1.decimals - spec.token0.decimals)
    root = isqrt((raw.numerator << 192) // raw.denominator)
    if not MIN_SQRT_PRICE <= root < MAX_SQRT_PRICE:
        raise ValueError(f"a price of {price!r} lies outside the range of the contract")
    return root
