"""Ticks and the square-root prices they stand for.

Tick ``i`` is the price ``1.0001 ** i`` of raw token1 per raw token0; the contract stores its square root as a Q64.96
integer. Source: ``TickMath.sol`` of Uniswap v4-core.
"""

import math
from functools import lru_cache

import numpy as np

MIN_TICK = -887_272
MAX_TICK = 887_272
MIN_SQRT_PRICE = 4_295_128_739
MAX_SQRT_PRICE = 1_461_446_703_485_210_103_287_273_052_203_988_822_378_723_970_342

Q96 = 1 << 96
_LOG_SQRT_BASE = math.log(1.0001) / 2

# 2**128 / sqrt(1.0001) ** (2**k) for k = 0 .. 19, rounded as the contract's table is (test_ticks derives it anew).
_INVERSE_POWERS_X128 = (
    0xFFFCB933BD6FAD37AA2D162D1A594001,
    0xFFF97272373D413259A46990580E213A,
    0xFFF2E50F5F656932EF12357CF3C7FDCC,
    0xFFE5CACA7E10E4E61C3624EAA0941CD0,
    0xFFCB9843D60F6159C9DB58835C926644,
    0xFF973B41FA98C081472E6896DFB254C0,
    0xFF2EA16466C96A3843EC78B326B52861,
    0xFE5DEE046A99A2A811C461F1969C3053,
    0xFCBE86C7900A88AEDCFFC83B479AA3A4,
    0xF987A7253AC413176F2B074CF7815E54,
    0xF3392B0822B70005940C7A398E4B70F3,
    0xE7159475A2C29B7443B29C7FA6E889D9,
    0xD097F3BDFD2022B8845AD8F792AA5825,
    0xA9F746462D870FDF8A65DC1F90E061E5,
    0x70D869A156D2A1B890BB3DF62BAF32F7,
    0x31BE135F97D08FD981231505542FCFA6,
    0x9AA508B5B7A84E1C677DE54F3E99BC9,
    0x5D6AF8DEDB81196699C329225EE604,
    0x2216E584F5FA1EA926041BEDFE98,
    0x48A170391F7DC42444E8FA2,
)


@lru_cache(maxsize=1 << 16)
def sqrt_price_at_tick(tick: int) -> int:
    """Square root of the price at ``tick`` as a Q64.96 integer, to the last bit what the contract returns.

    Raises:
        ValueError: if ``tick`` lies outside [MIN_TICK, MAX_TICK].
    """
    if not MIN_TICK <= tick <= MAX_TICK:
        raise ValueError(f"tick {tick} lies outside [{MIN_TICK}, {MAX_TICK}]")
    magnitude = abs(tick)
    ratio = 1 << 128
    for k, inverse_power in enumerate(_INVERSE_POWERS_X128):
        if magnitude >> k & 1:
            ratio = ratio * inverse_power >> 128
    if tick > 0:
        ratio = ((1 << 256) - 1) // ratio
    return -(-ratio >> 32)  # Q128.128 to Q64.96, rounded up so that the tick is found again from its own price


def tick_at_sqrt_price(sqrt_price_x96: int) -> int:
    """The greatest tick whose square-root price is at most ``sqrt_price_x96``.

    Raises:
        ValueError: if the price lies outside [MIN_SQRT_PRICE, MAX_SQRT_PRICE).
    """
    if not MIN_SQRT_PRICE <= sqrt_price_x96 < MAX_SQRT_PRICE:
        raise ValueError(f"sqrt_price_x96 {sqrt_price_x96} lies outside [{MIN_SQRT_PRICE}, {MAX_SQRT_PRICE})")
    # A double gives the tick to about 1e-9; only a price within that of a boundary needs the exact comparison to move.
    tick = min(max(math.floor(math.log(sqrt_price_x96 / Q96) / _LOG_SQRT_BASE), MIN_TICK), MAX_TICK - 1)
    while sqrt_price_at_tick(tick) > sqrt_price_x96:
        tick -= 1
    while sqrt_price_at_tick(tick + 1) <= sqrt_price_x96:
        tick += 1
    return tick


def ticks_at_sqrt_prices(sqrt_prices_x96: np.ndarray) -> np.ndarray:
    """`tick_at_sqrt_price` of many prices at once.

    Args:
        sqrt_prices_x96: Python integers, [n], dtype object.

    Returns:
        Ticks, [n], int64.

    Raises:
        ValueError: if a price lies outside [MIN_SQRT_PRICE, MAX_SQRT_PRICE); it is named.
    """
    prices = np.asarray(sqrt_prices_x96, dtype=object)
    outside = (prices < MIN_SQRT_PRICE) | (prices >= MAX_SQRT_PRICE)
    if outside.any():
        worst = prices[outside.astype(bool)][0]
        raise ValueError(f"sqrt_price_x96 {worst} lies outside [{MIN_SQRT_PRICE}, {MAX_SQRT_PRICE})")
    guess = np.floor(np.log(prices.astype(np.float64) / Q96) / _LOG_SQRT_BASE).astype(np.int64)
    ticks = np.clip(guess, MIN_TICK, MAX_TICK - 1)
    ticks -= (_sqrt_prices_at_ticks(ticks) > prices).astype(np.int64)
    return ticks + (_sqrt_prices_at_ticks(ticks + 1) <= prices).astype(np.int64)


def _sqrt_prices_at_ticks(ticks: np.ndarray) -> np.ndarray:
    distinct, position = np.unique(ticks, return_inverse=True)
    prices = np.array([sqrt_price_at_tick(tick) for tick in distinct.tolist()], dtype=object)
    return prices[position]
