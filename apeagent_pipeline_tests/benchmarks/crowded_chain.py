"""The embedded chain with a day of any number of swaps, whose logs are written out only when they are asked for.

``python -m apeagent_pipeline_tests.benchmarks.crowded_chain SWAPS`` serves it over HTTP and prints the URL; it ends
when its standard input does.
"""

import sys
from datetime import date
from typing import Any

import numpy as np

from apeagent_pipeline.amm.price import sqrt_price_x96_from_price
from apeagent_pipeline.amm.swap_math import swap_step
from apeagent_pipeline.amm.ticks import ticks_at_sqrt_prices
from apeagent_pipeline.chain.days import (
    BLOCK_SECONDS,
    FIRST_DAY,
    GENESIS_TIMESTAMP,
    SECONDS_PER_DAY,
    day_bounds,
    timestamp_of,
)
from apeagent_pipeline.chain.embedded import EmbeddedChainProvider, _data
from apeagent_pipeline.chain.events import SWAP_TOPIC
from apeagent_pipeline_tests.chain.faulty_proxy import Ask, FaultyProxy, Reply, calls_of

_SEED = 20_250_121
_LIQUIDITY = 40_000_000_000_000_000_000
_SENDERS = 400


class CrowdedChain(EmbeddedChainProvider):
    """One day on which so many swaps were made, evenly spread over its blocks; they follow exactly from one another.

    Args:
        swaps: On `FIRST_DAY`.
    """

    def __init__(self, swaps: int) -> None:
        start, end = day_bounds(FIRST_DAY)
        super().__init__(_SEED, now=lambda: end + SECONDS_PER_DAY)
        first = -(-(start - GENESIS_TIMESTAMP) // BLOCK_SECONDS)
        blocks = first + np.arange(swaps) * (SECONDS_PER_DAY // BLOCK_SECONDS) // swaps
        self._crowded = blocks, _Logs(self, blocks)

    def _logs_of(self, day: date) -> Any:
        return self._crowded if day == FIRST_DAY else ([], [])


class _Logs:
    """Compact values of all swaps; a slice of it is a list of logs as JSON-RPC gives them."""

    def __init__(self, chain: EmbeddedChainProvider, blocks: np.ndarray) -> None:
        self.chain = chain
        self.blocks = blocks
        self.index = np.arange(len(blocks)) - np.searchsorted(blocks, blocks)
        rng = np.random.default_rng(_SEED)
        self.senders = [f"0x{rng.bytes(20).hex():>064}" for _ in range(_SENDERS)]
        self.sender = rng.integers(_SENDERS, size=len(blocks))
        self.values = self._swaps(rng, len(blocks))
        self.ticks = ticks_at_sqrt_prices(np.array([price for price, _, _ in self.values], dtype=object))

    def _swaps(self, rng: np.random.Generator, n: int) -> list[tuple[int, int, int]]:
        pool = self.chain.pool
        price = opening = sqrt_price_x96_from_price(3_300.0, pool)
        usdc = (rng.lognormal(4.5, 1.2, n) * 10**pool.token1.decimals).astype(int)
        ether = (usdc * (10**pool.token0.decimals // 10**pool.token1.decimals / 3_300)).astype(int)
        values = []
        # Who trades pulls the price back where it came from, so that it stays inside one range.
        for draw, in_usdc, in_ether in zip(rng.random(n), usdc.tolist(), ether.tolist(), strict=True):
            sells = bool(draw < 0.5 + 40 * (price / opening - 1))
            price, amount0, amount1 = swap_step(price, _LIQUIDITY, -in_ether if sells else -in_usdc, sells, pool.fee)
            values.append((price, amount0, amount1))
        return values

    def __getitem__(self, rows: slice) -> list[dict[str, Any]]:
        return [self._log(row) for row in range(*rows.indices(len(self.blocks)))]

    def _log(self, row: int) -> dict[str, Any]:
        pool, number = self.chain.pool, int(self.blocks[row])
        price, amount0, amount1 = self.values[row]
        words = (amount0, amount1, price, _LIQUIDITY, int(self.ticks[row]), pool.fee)
        return {
            "address": pool.pool_manager.lower(),
            "topics": [SWAP_TOPIC, pool.pool_id, self.senders[self.sender[row]]],
            "data": _data(*words),
            "blockNumber": hex(number),
            "blockHash": self.chain._block_hash(number),
            "blockTimestamp": hex(timestamp_of(number)),
            "transactionHash": self.chain._digest("transaction", row),
            "transactionIndex": hex(int(self.index[row]) + 1),
            "logIndex": hex(4 * int(self.index[row]) + 2),
            "removed": False,
        }


def serve(chain: EmbeddedChainProvider) -> FaultyProxy:
    """The chain over HTTP: a proxy that asks no node."""

    def answer(payload: Any, ask: Ask) -> Reply:
        answers = [
            {**chain.make_request(call["method"], call["params"]), "id": call["id"]} for call in calls_of(payload)
        ]
        return Reply(answers if isinstance(payload, list) else answers[0])

    return FaultyProxy("", [answer])


if __name__ == "__main__":
    print(serve(CrowdedChain(int(sys.argv[1]))).url, flush=True)
    sys.stdin.read()
