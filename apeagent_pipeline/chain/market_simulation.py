"""One day of a seeded market that trades in a pool with exact Uniswap V4 arithmetic.

The model copies no market; it has a few causes that produce the known statistics of real swaps. A fair price moves on
another exchange, with trends and clustered volatility. People swap sizes that are mostly small and often round, and
stay on one side for a while. Arbitrageurs close the gap between pool and fair price when the gap exceeds the fee.
Providers add and remove liquidity. Everything is a function of (seed, day), so any day can be made without the days
before it: a day opens exactly at its anchor price, and its last swap arbitrages the pool exactly to the next anchor.
"""

import hashlib
import math
from collections import deque
from dataclasses import dataclass
from datetime import date
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr

from apeagent_pipeline.amm.pool import Pool
from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.amm.price import sqrt_price_x96_from_price
from apeagent_pipeline.amm.ticks import Q96
from apeagent_pipeline.chain.days import FIRST_DAY, SECONDS_PER_DAY

SIMULATION_VERSION = 1
"""Part of the data's fingerprint. Raise it with every change of the code that changes a swap."""

BLOCKS_PER_DAY = SECONDS_PER_DAY // 2

UNIVERSAL_ROUTER = "0x6ff5693b99212da76ad316178a184ab56d299b43"

# Purposes of the streams of random numbers; the seed sequence (seed, purpose, ...) makes them independent.
_ANCHORS, _MARKET, _TRADERS, _LIQUIDITY = range(4)

_MEAN_PRICE, _FIRST_PRICE = 2_900.0, 3_250.0
_DAILY_REVERSION, _DAILY_VOLATILITY = 0.96, 0.035
_MEAN_LIQUIDITY, _MEAN_LIQUIDITY_DECIMALS = 3.2e16, 18 + 6

# Quantiles of swap sizes in whole token1 (USDC), measured on real swaps of the preset pool.
_SIZE_LEVELS = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)
_SIZE_USDC = (0.005, 0.025, 0.3, 1.2, 10.0, 95.0, 280.0, 520.0, 660.0, 1_250.0, 4_500.0, 20_000.0)
_ROUND_USDC = np.array(
    [0.1, 0.5, 1, 2, 3, 5, 10, 20, 50, 100, 150, 200, 300, 320, 500, 620, 1_000, 2_000, 5_000, 10_000]
)
_ROUND_ETH = np.array(
    [0.00001, 0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.03, 0.04, 0.05, 0.1, 0.2, 0.25, 0.5, 1, 2, 5]
)


class SimulatedSwap(NamedTuple):
    """One Swap event; amounts from the swapper's side in raw units."""

    block: int
    """Blocks since the first block of the day."""
    sender: str
    amount0: int
    amount1: int
    sqrt_price_x96: int
    liquidity: int
    tick: int


class SimulatedLiquidityChange(NamedTuple):
    """One ModifyLiquidity event."""

    block: int
    """Blocks since the first block of the day."""
    before_swap: int
    """Position, among the swaps of the day, of the next swap after this event."""
    tick_lower: int
    tick_upper: int
    liquidity_delta: int


class SimulatedDay(NamedTuple):
    """Everything that happened to the pool on a day, in the order of the chain."""

    swaps: list[SimulatedSwap]
    changes: list[SimulatedLiquidityChange]


@dataclass(frozen=True)
class _Plan:
    """The random numbers of a day, drawn before its first swap; every array is [n], one entry a swap."""

    block: np.ndarray
    fair_log_price: np.ndarray
    size_usdc: np.ndarray
    round_size: np.ndarray
    stays_on_side: np.ndarray
    exact_input: np.ndarray
    arbitrage_draw: np.ndarray
    arbitrage_share: np.ndarray
    sender: np.ndarray


def anchor_price(seed: int, day: date) -> float:
    """Price at the first moment of a day (token1 per token0): a seeded walk that returns to its mean.

    Raises:
        ValueError: before FIRST_DAY.
    """
    days = (day - FIRST_DAY).days
    if days < 0:
        raise ValueError(f"the simulated market opens on {FIRST_DAY}, not on {day}")
    rng = np.random.default_rng([seed, _ANCHORS])
    # One row of numbers a day, so that a longer walk begins with the shorter one.
    shocks = rng.standard_normal((days + 1, 2))
    log_volatility = _recursive(0.35 * shocks[:, 0], 0.8)
    moves = _DAILY_VOLATILITY * np.exp(0.6 * log_volatility - 0.15) * np.clip(shocks[:, 1], -2.5, 2.5)
    moves[0] = math.log(_FIRST_PRICE / _MEAN_PRICE) + 0.3 * moves[0]
    walk = _recursive(moves, _DAILY_REVERSION)
    return round(_MEAN_PRICE * math.exp(walk[-1]), 2)


def simulate_day(seed: int, day: date, pool_spec: PoolSpec) -> list[SimulatedSwap]:
    """The swaps of `simulate_events`."""
    return simulate_events(seed, day, pool_spec).swaps


def simulate_events(seed: int, day: date, pool_spec: PoolSpec) -> SimulatedDay:
    """All swaps and liquidity changes of one UTC day in the order of the chain.

    The positions with which a day opens replace all positions of the day before.

    Args:
        seed: Of the market; the same seed gives the same chain.
        day: FIRST_DAY or later.
        pool_spec: Decimals, fee and tick spacing of the pool.

    Raises:
        ValueError: before FIRST_DAY.
    """
    opening, closing = anchor_price(seed, day), anchor_price(seed, date.fromordinal(day.toordinal() + 1))
    plan = _plan(seed, day, opening, closing)
    providers = _providers(seed, day, pool_spec)
    market = _Market(providers.pool, pool_spec, plan)
    swaps: list[SimulatedSwap] = []
    changes: list[SimulatedLiquidityChange] = []
    # Each swap starts from the pool's state after the one before, so this loop cannot be vectorised.
    for i in range(len(plan.block)):
        changed = providers.maybe_change_liquidity()
        if changed is not None:
            changes.append(SimulatedLiquidityChange(int(plan.block[i]), len(swaps), *changed))
        if market.trade(i):
            swaps.append(market.event(int(plan.block[i]), str(plan.sender[i])))
    target = sqrt_price_x96_from_price(closing, pool_spec)
    if providers.pool.sqrt_price_x96 != target:
        last_block = int(plan.block[-1])
        market.arbitrage_to(target)
        swaps.append(market.event(last_block + (BLOCKS_PER_DAY - last_block) // 2, str(plan.sender[-1])))
    return SimulatedDay(swaps, changes)


def opening_positions(seed: int, day: date, pool_spec: PoolSpec) -> list[tuple[int, int, int]]:
    """The positions with which a day opens: lower tick, upper tick, liquidity."""
    return _providers(seed, day, pool_spec).opening


def _providers(seed: int, day: date, pool_spec: PoolSpec) -> "_Providers":
    opening, closing = anchor_price(seed, day), anchor_price(seed, date.fromordinal(day.toordinal() + 1))
    return _Providers(np.random.default_rng([seed, _LIQUIDITY, day.toordinal()]), pool_spec, opening, closing)


def _plan(seed: int, day: date, opening: float, closing: float) -> _Plan:
    rng = np.random.default_rng([seed, _MARKET, day.toordinal()])
    block, activity = _arrivals(rng, weekend=day.weekday() >= 5)
    n = len(block)
    fair = _fair_path(rng, block, activity, math.log(opening), math.log(closing))
    rng = np.random.default_rng([seed, _TRADERS, day.toordinal()])
    level = ndtr(_autoregressive(rng, n, 0.46))
    size = np.exp(np.interp(level, _SIZE_LEVELS, np.log(_SIZE_USDC)))
    routers = np.array([UNIVERSAL_ROUTER, *(_address("router", i) for i in range(4))])
    return _Plan(
        block=block,
        fair_log_price=fair,
        size_usdc=size,
        round_size=rng.random(n) < 0.42,
        stays_on_side=rng.random(n) < 0.92,
        exact_input=rng.random(n) < 0.85,
        arbitrage_draw=rng.random(n),
        arbitrage_share=rng.uniform(0.35, 1.0, n),
        sender=rng.choice(routers, size=n, p=[0.6, 0.16, 0.12, 0.08, 0.04]),
    )


def _arrivals(rng: np.random.Generator, *, weekend: bool) -> tuple[np.ndarray, np.ndarray]:
    # Gaps are log-normal around a slowly changing activity; 15 % of the swaps share the block of the one before.
    n = 6 * 1_900
    activity = _autoregressive(rng, n, 0.97)
    log_gap = 3.05 + 1.12 * rng.standard_normal(n) - 0.7 * activity + 0.12 * rng.standard_normal()
    gap = np.exp(log_gap + (0.2 if weekend else 0.0))
    gap[rng.random(n) < 0.145] = 0.0
    # Stretch time so that the density of swaps depends on the hour of the day.
    hours = np.linspace(0, 24, 97)
    density = 1 + 0.35 * np.sin((hours - 10.5) / 24 * 2 * np.pi) + 0.25 * np.exp(-0.5 * ((hours - 15.5) / 2.0) ** 2)
    clock = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    moment = np.interp(np.cumsum(gap) / SECONDS_PER_DAY, clock / clock[-1], hours / 24, right=1.0) * SECONDS_PER_DAY
    between = np.maximum(np.rint(np.diff(moment, prepend=0.0) / 2), 1.0)
    block = np.cumsum(np.where(gap > 0, between, 0.0)).astype(np.int64)
    # The last minute is left for the arbitrage that closes the day.
    inside = block < BLOCKS_PER_DAY - 30
    return block[inside], activity[inside]


def _fair_path(
    rng: np.random.Generator, block: np.ndarray, activity: np.ndarray, opening: float, closing: float
) -> np.ndarray:
    n = len(block)
    share_of_day = np.diff(block, prepend=0) / BLOCKS_PER_DAY
    volatility = 0.055 * math.exp(0.25 * rng.standard_normal()) * np.exp(0.5 * activity - 0.125)
    jumps = rng.standard_t(4, n) / math.sqrt(2)
    # Regimes of one to a few hours: up, down and flat.
    starts = np.unique(rng.integers(0, BLOCKS_PER_DAY, 9))
    drift = rng.choice([-0.25, -0.1, 0.0, 0.0, 0.1, 0.25], size=len(starts) + 1)
    moves = volatility * np.sqrt(share_of_day) * jumps + drift[np.searchsorted(starts, block)] * share_of_day
    path = np.cumsum(moves)
    # A bridge: the path ends at the next day's anchor.
    elapsed = block / BLOCKS_PER_DAY
    return opening + path + elapsed * (closing - opening - path[-1] / elapsed[-1])


class _Market:
    """Decides for each swap who trades: a person who wants a certain size, or an arbitrageur."""

    def __init__(self, pool: Pool, spec: PoolSpec, plan: _Plan) -> None:
        self.pool = pool
        self.plan = plan
        self.fee = pool.fee / 1_000_000
        self.unit0, self.unit1 = 10.0**spec.token0.decimals, 10.0**spec.token1.decimals
        self.log_units = math.log(self.unit0 / self.unit1)
        self.buys = bool(plan.stays_on_side[0])
        self.delta = (0, 0)

    def trade(self, i: int) -> bool:
        gap = self.plan.fair_log_price[i] - self._log_price()
        beyond_fee = abs(gap) - self.fee
        # The larger the profit, the likelier the arbitrage.
        if beyond_fee > 1e-4 and self.plan.arbitrage_draw[i] < 0.3 + beyond_fee / 2e-3:
            return self._arbitrage(gap, beyond_fee * self.plan.arbitrage_share[i])
        if not self.plan.stays_on_side[i]:
            self.buys = not self.buys
        return self._retail(i)

    def arbitrage_to(self, sqrt_price_x96: int) -> None:
        zero_for_one = sqrt_price_x96 < self.pool.sqrt_price_x96
        self.delta = self.pool.swap(zero_for_one, -(1 << 120), sqrt_price_x96)

    def event(self, block: int, sender: str) -> SimulatedSwap:
        pool = self.pool
        return SimulatedSwap(block, sender, *self.delta, pool.sqrt_price_x96, pool.liquidity, pool.tick)

    def _arbitrage(self, gap: float, move: float) -> bool:
        root, liquidity = self.pool.sqrt_price_x96 / Q96, self.pool.liquidity
        buys = gap > 0
        target = root * math.exp(move / 2 if buys else -move / 2)
        raw = liquidity * (target - root) if buys else liquidity * (1 / target - 1 / root)
        return self._swap(zero_for_one=not buys, amount=-int(raw / (1 - self.fee)))

    def _retail(self, i: int) -> bool:
        usdc = self.plan.size_usdc[i]
        zero_for_one = not self.buys
        exact_input = bool(self.plan.exact_input[i])
        # A person names the amount to pay (exact input) or to receive (exact output). Both may be ETH or USDC.
        names_eth = zero_for_one == exact_input
        amount = usdc / math.exp(self._log_price()) if names_eth else usdc
        unit = self.unit0 if names_eth else self.unit1
        if self.plan.round_size[i]:
            atoms = _ROUND_ETH if names_eth else _ROUND_USDC
            nearest = atoms[np.argmin(np.abs(np.log(atoms / amount)))]
            amount = nearest if 0.7 < amount / nearest < 1.45 else amount
        raw = round(amount * unit)
        return self._swap(zero_for_one, -raw if exact_input else raw)

    def _swap(self, zero_for_one: bool, amount: int) -> bool:
        if amount == 0:
            return False
        self.delta = self.pool.swap(zero_for_one, amount)
        return True

    def _log_price(self) -> float:
        return 2 * math.log(self.pool.sqrt_price_x96 / Q96) + self.log_units


class _Providers:
    """Positions of a day's pool: one wide, many narrow, and short-lived ones that are added and removed."""

    def __init__(self, rng: np.random.Generator, spec: PoolSpec, opening: float, closing: float) -> None:
        self.rng = rng
        self.pool = Pool(sqrt_price_x96_from_price(opening, spec), spec.static_fee, spec.tick_spacing)
        # Liquidity is the geometric mean of both reserves, so its unit depends on the decimals of both tokens.
        units = 10.0 ** ((spec.token0.decimals + spec.token1.decimals - _MEAN_LIQUIDITY_DECIMALS) / 2)
        self.day_liquidity = _MEAN_LIQUIDITY * units * math.exp(float(rng.normal(0, 0.22)))
        wide = self._snap(40_000)
        centre = self._snap(self.pool.tick)
        self.opening = [(centre - wide, centre + wide, int(0.45 * self.day_liquidity))]
        self.pool.modify_liquidity(*self.opening[0])
        reach = abs(math.log(closing / opening)) * 1e4 + 600
        # More positions on a day with a long way to go, so that their number a tick is that of a quiet day.
        standing = round(reach / 12)
        for middle, log_width, share in zip(
            rng.uniform(-reach, reach, standing),
            rng.normal(4.4, 1.0, standing),
            rng.exponential(1.0, standing),
            strict=True,
        ):
            added = self._add(self.pool.tick + middle, math.exp(log_width), share)
            self.opening += [added] if added else []
        self.visiting: deque[tuple[int, int, int]] = deque()

    def maybe_change_liquidity(self) -> tuple[int, int, int] | None:
        """Before one swap in ten, add a position near the price, or remove the oldest of these; returns the change."""
        draw = self.rng.random(4)
        if draw[0] > 0.1:
            return None
        if draw[1] < len(self.visiting) / 12:
            lower, upper, liquidity = self.visiting.popleft()
            self.pool.modify_liquidity(lower, upper, -liquidity)
            return lower, upper, -liquidity
        middle = self.pool.tick + (draw[2] - 0.5) * 200
        added = self._add(middle, math.exp(3.0 + 2.5 * draw[3]), -math.log1p(-draw[1]))
        if added is not None:
            self.visiting.append(added)
        return added

    def _add(self, middle: float, width: float, share: float) -> tuple[int, int, int] | None:
        lower = self._snap(middle - width / 2)
        upper = max(self._snap(middle + width / 2), lower + self.pool.tick_spacing)
        liquidity = int(0.09 * self.day_liquidity * share)
        if liquidity == 0:
            return None
        self.pool.modify_liquidity(lower, upper, liquidity)
        return lower, upper, liquidity

    def _snap(self, tick: float) -> int:
        return int(tick // self.pool.tick_spacing) * self.pool.tick_spacing


def _autoregressive(rng: np.random.Generator, n: int, memory: float) -> np.ndarray:
    # Stationary, variance one.
    noise = rng.standard_normal(n)
    noise[1:] *= math.sqrt(1 - memory**2)
    return _recursive(noise, memory)


def _recursive(inputs: np.ndarray, memory: float) -> np.ndarray:
    # y[i] = x[i] + memory * y[i - 1]: scipy.signal.lfilter to the last bit, without the two seconds of its import.
    return np.fromiter(accumulate(inputs.tolist(), lambda last, each: each + memory * last), float, len(inputs))


def _address(*what: object) -> str:
    return "0x" + hashlib.sha256(repr(what).encode()).hexdigest()[:40]
