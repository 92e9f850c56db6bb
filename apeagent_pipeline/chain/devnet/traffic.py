"""A seeded plan of the swaps and liquidity changes on a devnet: the same seed gives the same chain.

Sizes, sides and liquidity changes resemble those of the preset pool. The contract computes the prices.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from apeagent_pipeline.chain.days import SECONDS_PER_DAY

OPENING_PRICE = 2_900.0
"""USDC per ether."""

OPENING_LIQUIDITY = 15 * 10**15
"""Of the opening position, which covers every price that a day can reach; the traffic adds others."""

_SHARES_BLOCK = 0.15
_CHANGES_LIQUIDITY = 0.04
_STAYS_ON_SIDE = 0.85
_EXACT_INPUT = 0.8
_ROUTER_SHARE = 0.65
_MEDIAN_USDC, _SPREAD = 110.0, 1.5
_SMALLEST_USDC, _LARGEST_USDC = 0.01, 20_000.0
_REVERSION_USDC = 20_000.0

# Anvil hashes the whole storage for every block, and a day has 43,000 blocks. So there are few positions, which are
# opened and closed at the same ticks.
_POSITIONS = 10
_NARROWEST, _WIDEST = 1, 60
_MEAN_LIQUIDITY = 4e15


class Swap(NamedTuple):
    """One swap; ``amount_specified`` as in V4: negative is exact input."""

    zero_for_one: bool
    amount_specified: int
    account: int
    router: int


class LiquidityChange(NamedTuple):
    """A position that is opened or closed. Ticks are in tick spacings from the opening price."""

    lower: int
    upper: int
    liquidity_delta: int
    account: int


class Traffic:
    """Seeded traders and liquidity providers.

    Args:
        seed: Of all random numbers.
        accounts: Number of accounts that trade.
        unit0: Raw units of one whole token0.
        unit1: The same of token1.
    """

    def __init__(self, seed: int, accounts: int, unit0: int, unit1: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._accounts = accounts
        self._units = (unit0, unit1)
        self._buys = True
        self._net_usdc = 0.0
        middles = self._rng.integers(-25, 25, _POSITIONS)
        widths = np.geomspace(_NARROWEST, _WIDEST, _POSITIONS).astype(int)
        liquidity = _MEAN_LIQUIDITY * self._rng.uniform(0.5, 1.5, _POSITIONS)
        self._positions = [
            LiquidityChange(int(middle - width), int(middle + width), int(amount), int(i % accounts))
            for i, (middle, width, amount) in enumerate(zip(middles, widths, liquidity, strict=True))
        ]
        self._is_open = [False] * _POSITIONS

    def day(self, swaps: int) -> Iterator[tuple[int, list[Swap | LiquidityChange]]]:
        """Blocks with traffic, counted from the day's first block, and the swaps and liquidity changes of each.

        Args:
            swaps: Number of swaps of the day.
        """
        shares = self._rng.random(swaps) < _SHARES_BLOCK
        shares[:1] = False
        blocks = np.sort(self._rng.choice(SECONDS_PER_DAY // 2, size=int((~shares).sum()), replace=False))
        actions: list[list[Swap | LiquidityChange]] = [[] for _ in blocks]
        for at in np.cumsum(~shares) - 1:
            if self._rng.random() < _CHANGES_LIQUIDITY:
                actions[at].append(self._liquidity_change())
            actions[at].append(self._swap())
        yield from zip(blocks.tolist(), actions, strict=True)

    def _swap(self) -> Swap:
        rng = self._rng
        usdc = float(np.clip(_MEDIAN_USDC * np.exp(_SPREAD * rng.standard_normal()), _SMALLEST_USDC, _LARGEST_USDC))
        if rng.random() > _STAYS_ON_SIDE:
            # The further one side has pushed the price, the likelier the other side trades next.
            self._buys = bool(rng.random() < 0.5 - 0.5 * np.tanh(self._net_usdc / _REVERSION_USDC))
        self._net_usdc += usdc if self._buys else -usdc
        exact_input = bool(rng.random() < _EXACT_INPUT)
        names_token0 = exact_input != self._buys
        raw = round(usdc / OPENING_PRICE * self._units[0] if names_token0 else usdc * self._units[1])
        return Swap(
            zero_for_one=not self._buys,
            amount_specified=-raw if exact_input else raw,
            account=int(rng.integers(self._accounts)),
            router=int(rng.random() > _ROUTER_SHARE),
        )

    def _liquidity_change(self) -> LiquidityChange:
        at = int(self._rng.integers(_POSITIONS))
        position = self._positions[at]
        self._is_open[at] = not self._is_open[at]
        return position if self._is_open[at] else position._replace(liquidity_delta=-position.liquidity_delta)
