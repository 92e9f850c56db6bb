"""Price change and amounts of a swap inside one range of constant liquidity.

Every value is an exact integer: wei, or the smallest unit of a token. Roundings always favour the pool. Sources:
``SqrtPriceMath.sol`` and ``SwapMath.sol`` of Uniswap v4-core.
"""

from typing import Any, NamedTuple

import numpy as np

from apeagent_pipeline.amm.ticks import MAX_SQRT_PRICE, MIN_SQRT_PRICE
from apeagent_pipeline.errors import ApeagentError

FEE_UNIT = 1_000_000
"""One as a fee: fees are hundredths of a basis point (pips)."""

_UINT160 = 1 << 160
_UINT256 = 1 << 256


class SwapMathError(ApeagentError, ArithmeticError):
    """The contract would revert: no liquidity, or more taken out than the pool holds."""


class RangeStep(NamedTuple):
    """One step of a swap towards a target price; amounts are unsigned."""

    sqrt_price_x96: int
    amount_in: int
    amount_out: int
    fee_amount: int


class SwapStep(NamedTuple):
    """A swap inside one range; amounts are from the swapper's side (negative: paid in)."""

    sqrt_price_x96: Any
    amount0: Any
    amount1: Any


def amount0_delta(sqrt_a_x96: int, sqrt_b_x96: int, liquidity: int, round_up: bool) -> int:
    """Token0 between two prices: ``L * (1 / sqrt(lower) - 1 / sqrt(upper))`` in raw units, for either order."""
    lower, upper = (sqrt_a_x96, sqrt_b_x96) if sqrt_a_x96 <= sqrt_b_x96 else (sqrt_b_x96, sqrt_a_x96)
    if lower <= 0:
        raise SwapMathError("a square-root price must be positive")
    numerator = (liquidity << 96) * (upper - lower)
    if round_up:
        return -(-numerator // upper // lower)  # rounded up twice, as the contract does
    return numerator // upper // lower


def amount1_delta(sqrt_a_x96: int, sqrt_b_x96: int, liquidity: int, round_up: bool) -> int:
    """Token1 between two prices: ``L * (sqrt(upper) - sqrt(lower))`` in raw units, for either order."""
    product = liquidity * abs(sqrt_a_x96 - sqrt_b_x96)
    return -(-product >> 96) if round_up else product >> 96


def next_sqrt_price_from_input(sqrt_price_x96: int, liquidity: int, amount_in: int, zero_for_one: bool) -> int:
    """Square-root price after ``amount_in`` (fee already taken off) has been paid into the pool.

    Raises:
        SwapMathError: where the contract reverts.
    """
    _require_price_and_liquidity(sqrt_price_x96, liquidity)
    if not zero_for_one:
        return _uint160(sqrt_price_x96 + (amount_in << 96) // liquidity)
    if amount_in == 0:
        return sqrt_price_x96
    numerator = liquidity << 96
    product = amount_in * sqrt_price_x96
    if product < _UINT256 and numerator + product < _UINT256:
        return -(-numerator * sqrt_price_x96 // (numerator + product))
    # The contract cannot hold the product in 256 bits and falls back to a less precise form; so do we.
    return -(-numerator // (numerator // sqrt_price_x96 + amount_in))


def next_sqrt_price_from_output(sqrt_price_x96: int, liquidity: int, amount_out: int, zero_for_one: bool) -> int:
    """Square-root price after ``amount_out`` has been taken from the pool.

    Raises:
        SwapMathError: if the range does not hold that much, where the contract reverts.
    """
    _require_price_and_liquidity(sqrt_price_x96, liquidity)
    if zero_for_one:
        quotient = -(-(amount_out << 96) // liquidity)
        if sqrt_price_x96 <= quotient:
            raise SwapMathError(f"not enough liquidity ({liquidity}) to take out {amount_out} of token1")
        return sqrt_price_x96 - quotient
    if amount_out == 0:
        return sqrt_price_x96
    numerator = liquidity << 96
    product = amount_out * sqrt_price_x96
    if product >= _UINT256 or numerator <= product:
        raise SwapMathError(f"not enough liquidity ({liquidity}) to take out {amount_out} of token0")
    return _uint160(-(-numerator * sqrt_price_x96 // (numerator - product)))


def range_step(
    sqrt_price_x96: int, sqrt_target_x96: int, liquidity: int, amount_remaining: int, fee_pips: int
) -> RangeStep:
    """Swap towards a target price until it is reached or the amount is used up (``SwapMath.computeSwapStep``).

    Args:
        sqrt_price_x96: Price before the step.
        sqrt_target_x96: Where to stop at the latest; below the price the swapper pays token0, above it token1.
        liquidity: Liquidity between the two prices.
        amount_remaining: Negative: exact input still to pay, fee included. Positive: exact output still to take.
        fee_pips: Fee in hundredths of a basis point.

    Raises:
        SwapMathError: where the contract reverts.
    """
    zero_for_one = sqrt_price_x96 >= sqrt_target_x96
    delta_in, delta_out = (amount0_delta, amount1_delta) if zero_for_one else (amount1_delta, amount0_delta)
    if amount_remaining < 0:
        less_fee = -amount_remaining * (FEE_UNIT - fee_pips) // FEE_UNIT
        amount_in = delta_in(sqrt_target_x96, sqrt_price_x96, liquidity, True)
        if less_fee >= amount_in:
            sqrt_next = sqrt_target_x96
            fee_amount = amount_in if fee_pips == FEE_UNIT else _fee_on_top(amount_in, fee_pips)
        else:
            amount_in = less_fee
            sqrt_next = next_sqrt_price_from_input(sqrt_price_x96, liquidity, amount_in, zero_for_one)
            fee_amount = -amount_remaining - amount_in
        amount_out = delta_out(sqrt_next, sqrt_price_x96, liquidity, False)
    else:
        if fee_pips >= FEE_UNIT:
            raise SwapMathError("a pool with a fee of 100 % has no exact output swaps")
        amount_out = delta_out(sqrt_target_x96, sqrt_price_x96, liquidity, False)
        if amount_remaining >= amount_out:
            sqrt_next = sqrt_target_x96
        else:
            amount_out = amount_remaining
            sqrt_next = next_sqrt_price_from_output(sqrt_price_x96, liquidity, amount_out, zero_for_one)
        amount_in = delta_in(sqrt_next, sqrt_price_x96, liquidity, True)
        fee_amount = _fee_on_top(amount_in, fee_pips)
    return RangeStep(sqrt_next, amount_in, amount_out, fee_amount)


def swap_step(
    sqrt_price_x96: int | np.ndarray,
    liquidity: int | np.ndarray,
    amount_specified: int | np.ndarray,
    zero_for_one: bool | np.ndarray,
    fee_pips: int | np.ndarray,
) -> SwapStep:
    """One swap inside one range of constant liquidity, without a price limit.

    Equal to the PoolManager to the wei as long as the swap crosses no initialised tick and no border of the tick bitmap
    (every 256 tick spacings), where the contract rounds once more; `amm.pool.Pool` follows it there too.

    Args:
        sqrt_price_x96: Price before the swap; like every argument an integer or an object array, elementwise.
        liquidity: Liquidity of the range.
        amount_specified: As in V4: negative is exact input, positive exact output.
        zero_for_one: True if the swapper pays token0 and receives token1 (the price falls).
        fee_pips: Fee in hundredths of a basis point.

    Returns:
        The new price and both amounts from the swapper's side (negative: paid in). At the end of the price range
        the amounts are what could be filled.

    Raises:
        SwapMathError: where the contract reverts.
    """
    arguments: tuple[Any, ...] = (sqrt_price_x96, liquidity, amount_specified, zero_for_one, fee_pips)
    if np.ndarray in map(type, arguments):
        shape = np.broadcast(*arguments).shape
        columns = _SWAP_STEPS(*arguments)
        return SwapStep(*(np.asarray(column, dtype=object).reshape(shape) for column in columns))
    return SwapStep(*_swap_step(*arguments))


def _swap_step(price: int, liquidity: int, amount: int, zero_for_one: bool, fee: int) -> tuple[int, int, int]:
    price, liquidity, amount, fee = int(price), int(liquidity), int(amount), int(fee)
    if amount == 0:
        return price, 0, 0
    target = MIN_SQRT_PRICE + 1 if zero_for_one else MAX_SQRT_PRICE - 1
    step = range_step(price, target, liquidity, amount, fee)
    paid, received = -(step.amount_in + step.fee_amount), step.amount_out
    return (step.sqrt_price_x96, paid, received) if zero_for_one else (step.sqrt_price_x96, received, paid)


_SWAP_STEPS = np.frompyfunc(_swap_step, 5, 3)


def _fee_on_top(amount_in: int, fee_pips: int) -> int:
    return -(-amount_in * fee_pips // (FEE_UNIT - fee_pips))


def _require_price_and_liquidity(sqrt_price_x96: int, liquidity: int) -> None:
    if sqrt_price_x96 <= 0 or liquidity <= 0:
        raise SwapMathError(f"price and liquidity must be positive, not {sqrt_price_x96} and {liquidity}")


def _uint160(value: int) -> int:
    if value >= _UINT160:
        raise SwapMathError(f"the square-root price {value} does not fit 160 bits")
    return value
