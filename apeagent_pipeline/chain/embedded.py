"""A chain inside this process: a web3 provider that answers JSON-RPC from the simulated market.

Whoever reads it cannot tell it from a node, so the collector has one code path. The chain grows with the clock, like a
real one: blocks every two seconds with Base's numbers and timestamps, final after twenty minutes. What a day holds
depends on the seed alone.
"""

import hashlib
import threading
import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from typing import Any

from web3.providers.base import BaseProvider
from web3.types import RPCEndpoint, RPCResponse

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC, PoolSpec
from apeagent_pipeline.amm.price import sqrt_price_x96_from_price
from apeagent_pipeline.amm.ticks import tick_at_sqrt_price
from apeagent_pipeline.chain.days import BLOCK_SECONDS, FIRST_DAY, GENESIS_TIMESTAMP, first_block_of, timestamp_of
from apeagent_pipeline.chain.events import SWAP_TOPIC
from apeagent_pipeline.chain.liquidity import LIQUIDITY_TOPIC
from apeagent_pipeline.chain.market_simulation import (
    SIMULATION_VERSION,
    SimulatedDay,
    SimulatedLiquidityChange,
    anchor_price,
    opening_positions,
    simulate_events,
)
from apeagent_pipeline.chain.pool_state import EXTSLOAD, bitmap_slot, encode_words, pool_slot, tick_slot

SAFE_DEPTH, FINALIZED_DEPTH = 150, 600
MAX_RANGE = 100_000

_KEPT_DAYS = 6
_CHANGING_BLOCKS = 15
"""At the end of a day, after its last swap."""
_DAY_BEFORE = date.fromordinal(FIRST_DAY.toordinal() - 1)
_OPENED = first_block_of(FIRST_DAY) - _CHANGING_BLOCKS
"""Block in which the pool was initialised."""
_PROVIDER = "0x7c5f5a4bbd8fd63184577525326123b519429bdc"
_ZERO_HASH = "0x" + "0" * 64


class _RequestError(Exception):
    """A JSON-RPC error object."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class EmbeddedChainProvider(BaseProvider):
    """Answers what a reader of swaps asks a node: head, blocks by number or tag, code, and logs by block range.

    Args:
        seed: Of the market.
        pool: The one pool of this chain; decimals, fee and tick spacing are taken from it.
        now: Seconds since 1970; the head of the chain is the last block before it. Tests pass a fixed clock.
    """

    def __init__(self, seed: int, pool: PoolSpec = BASE_ETH_USDC, now: Callable[[], float] = time.time) -> None:
        super().__init__()
        self.seed = seed
        self.pool = pool
        self._now = now
        self._days: OrderedDict[date, tuple[list[int], list[dict[str, Any]]]] = OrderedDict()
        self._lock = threading.Lock()
        self._methods: dict[str, Callable[..., Any]] = {
            "web3_clientVersion": lambda: f"apeagent-embedded-chain/{SIMULATION_VERSION}",
            "net_version": lambda: str(pool.chain_id),
            "eth_chainId": lambda: hex(pool.chain_id),
            "eth_syncing": lambda: False,
            "eth_blockNumber": lambda: hex(self._head()),
            "eth_getBlockByNumber": self._block_by_number,
            "eth_getLogs": self._logs,
            "eth_getCode": self._code,
            "eth_call": self._call,
        }

    def __str__(self) -> str:
        return f"embedded chain (seed {self.seed})"

    def is_connected(self, show_traceback: bool = False) -> bool:
        """Always: there is nothing in between."""
        return True

    def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        """Answer one request as a node does, errors included."""
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": 1}
        known = self._methods.get(method)
        try:
            if known is None:
                raise _RequestError(-32601, f"the method {method} does not exist on the embedded chain")
            answer["result"] = known(*(params or []))
        except _RequestError as error:
            answer["error"] = {"code": error.code, "message": str(error)}
        except (TypeError, ValueError, AttributeError) as error:
            answer["error"] = {"code": -32602, "message": f"invalid params for {method}: {error}"}
        return RPCResponse(**answer)  # type: ignore[typeddict-item]

    def make_batch_request(self, requests: list[tuple[RPCEndpoint, Any]]) -> list[RPCResponse]:
        """Answer several requests in their order."""
        return [self.make_request(method, params) for method, params in requests]

    def _head(self) -> int:
        return int(self._now() - GENESIS_TIMESTAMP) // BLOCK_SECONDS

    def _number(self, block: str) -> int:
        head = self._head()
        named = {
            "latest": head,
            "pending": head,
            "safe": head - SAFE_DEPTH,
            "finalized": head - FINALIZED_DEPTH,
            "earliest": 0,
        }
        return named[block] if block in named else int(block, 16)

    def _block_hash(self, number: int) -> str:
        return self._digest("block", number) if number >= 0 else _ZERO_HASH

    def _digest(self, *what: object) -> str:
        text = repr(("apeagent", SIMULATION_VERSION, self.seed, *what))
        return "0x" + hashlib.sha256(text.encode()).hexdigest()

    def _block_by_number(self, block: str, full_transactions: bool = False) -> dict[str, Any] | None:
        number = self._number(block)
        if not 0 <= number <= self._head():
            return None
        return {
            "number": hex(number),
            "hash": self._block_hash(number),
            "parentHash": self._block_hash(number - 1),
            "timestamp": hex(timestamp_of(number)),
            "transactions": [],
            "uncles": [],
            "miner": self.pool.token0.address,
            "extraData": "0x",
            "difficulty": "0x0",
            "totalDifficulty": "0x0",
            "gasLimit": hex(120_000_000),
            "gasUsed": "0x0",
            "baseFeePerGas": "0x1",
            "size": "0x220",
            "nonce": "0x0000000000000000",
            "mixHash": _ZERO_HASH,
            "sha3Uncles": _ZERO_HASH,
            "stateRoot": _ZERO_HASH,
            "transactionsRoot": _ZERO_HASH,
            "receiptsRoot": _ZERO_HASH,
            "logsBloom": "0x" + "0" * 512,
        }

    def _code(self, address: str, block: str = "latest") -> str:
        # One invalid opcode: enough to say that a contract stands there.
        return "0xfe" if address.lower() == self.pool.pool_manager.lower() else "0x"

    def _call(self, transaction: dict[str, Any], block: str = "latest") -> str:
        # The one call that a reader of swaps makes: what did the PoolManager store of the pool?
        data = str(transaction.get("data") or transaction.get("input"))
        slots = [int(data[10 + at : 74 + at], 16) for at in range(128, len(data) - 10, 64)]
        fees = {pool_slot(self.pool.pool_id, offset) for offset in (1, 2)}
        is_manager = str(transaction.get("to")).lower() == self.pool.pool_manager.lower()
        if not is_manager or not data.startswith(EXTSLOAD) or fees & set(slots):
            raise _RequestError(-32000, "the embedded chain stores price, liquidity and ticks of its pool")
        number = self._number(block)
        price, tick, liquidity = self._state(number)
        state = {
            pool_slot(self.pool.pool_id, 0): price | (tick & 0xFFFFFF) << 160,
            pool_slot(self.pool.pool_id, 3): liquidity,
        }
        if not set(slots) <= set(state):
            state |= self._ticks(number)
        return encode_words([state.get(slot, 0) for slot in slots])

    def _ticks(self, number: int) -> dict[int, int]:
        """Storage of the ticks and of their bitmap after a block."""
        day = _day(number)
        gross: dict[int, int] = {}
        net: dict[int, int] = {}
        for lower, upper, delta in self._positions(day, number):
            for tick, sign in ((lower, 1), (upper, -1)):
                gross[tick] = gross.get(tick, 0) + delta
                net[tick] = net.get(tick, 0) + sign * delta
        words = {
            tick_slot(self.pool.pool_id, tick): gross[tick] | net[tick] % (1 << 128) << 128
            for tick in gross
            if gross[tick]
        }
        bitmap: dict[int, int] = {}
        for tick in (tick for tick in gross if gross[tick]):
            compressed = tick // self.pool.tick_spacing
            bitmap[compressed >> 8] = bitmap.get(compressed >> 8, 0) | 1 << (compressed & 0xFF)
        return words | {bitmap_slot(self.pool.pool_id, word): bits for word, bits in bitmap.items()}

    def _positions(self, day: date, number: int) -> list[tuple[int, int, int]]:
        """The changes of positions up to a block of a day; their sums are the positions after it."""
        found = opening_positions(self.seed, day, self.pool) if day >= FIRST_DAY else []
        for at, log in zip(*self._logs_of(day), strict=True):
            if log["topics"][0] == LIQUIDITY_TOPIC and at <= number:
                lower, upper, delta, _ = _signed_words(log)
                found.append((lower, upper, delta))
        return found

    def _state(self, number: int) -> tuple[int, int, int]:
        if number < _OPENED:
            return 0, 0, 0
        price = sqrt_price_x96_from_price(anchor_price(self.seed, FIRST_DAY), self.pool)
        state = price, tick_at_sqrt_price(price), 0
        day = _day(number)
        for each in (date.fromordinal(day.toordinal() - 1), day):
            for at, log in zip(*self._logs_of(each), strict=True):
                words = _signed_words(log)
                if at > number:
                    break
                if log["topics"][0] == SWAP_TOPIC:
                    state = words[2], words[4], words[3]
                elif words[0] <= state[1] < words[1]:
                    state = *state[:2], state[2] + words[2]
        return state

    def _logs(self, query: dict[str, Any]) -> list[dict[str, Any]]:
        if "blockHash" in query:
            raise _RequestError(-32602, "the embedded chain finds logs by block range, not by block hash")
        first, last = self._number(query.get("fromBlock", "latest")), self._number(query.get("toBlock", "latest"))
        if last > self._head():
            raise _RequestError(-32000, "block range extends beyond current head block")
        if last - first + 1 > MAX_RANGE:
            raise _RequestError(-32602, f"query exceeds max block range {MAX_RANGE}")
        if first > last:
            raise _RequestError(-32000, "invalid block range params")
        topics = list(query.get("topics") or [])
        if len(topics) > 2 and any(topic is not None for topic in topics[2:]):
            raise _RequestError(-32602, "the embedded chain filters by contract, event and pool, not by sender")
        events, pools = [_choices(topic) for topic in [*topics, None, None][:2]]
        addresses = _choices(query.get("address"))
        if addresses and self.pool.pool_manager.lower() not in addresses:
            return []
        if pools and self.pool.pool_id.lower() not in pools:
            return []
        found = []
        for ordinal in range(_day(first).toordinal(), _day(last).toordinal() + 1):
            blocks, logs = self._logs_of(date.fromordinal(ordinal))
            found += logs[bisect_left(blocks, first) : bisect_left(blocks, last + 1)]
        return [{**log, "topics": list(log["topics"])} for log in found if not events or log["topics"][0] in events]

    def _logs_of(self, day: date) -> tuple[list[int], list[dict[str, Any]]]:
        if day < _DAY_BEFORE:
            return [], []
        with self._lock:
            if day not in self._days:
                self._days[day] = self._make_day(day)
                while len(self._days) > _KEPT_DAYS:
                    self._days.popitem(last=False)
            self._days.move_to_end(day)
            return self._days[day]

    def _make_day(self, day: date) -> tuple[list[int], list[dict[str, Any]]]:
        first_block = first_block_of(day)
        simulated = simulate_events(self.seed, day, self.pool) if day >= FIRST_DAY else SimulatedDay([], [])
        logs: list[dict[str, Any]] = []
        changes = list(simulated.changes[::-1])
        index_in_block, before = 0, -1
        for position, swap in enumerate(simulated.swaps):
            number = first_block + swap.block
            transaction = self._digest("transaction", number, position)
            # Other contracts' transactions and logs stand between ours; two bytes of the hash say how many.
            others = int(transaction[2:4], 16) % 24
            index_in_block = index_in_block + 1 + others // 4 if before == number else 1 + others
            before = number
            place = self._place(number, transaction, index_in_block)
            here = []
            while changes and changes[-1].before_swap == position:
                here.append(changes.pop())
            # A provider acts in the transaction of the swap that follows.
            last = 4 * index_in_block + 2
            for index, change in enumerate(here, start=last - len(here)):
                position_change = change.tick_lower, change.tick_upper, change.liquidity_delta
                logs.append(place | self._liquidity_log(index, *position_change))
            topics = [SWAP_TOPIC, self.pool.pool_id, "0x" + "0" * 24 + swap.sender[2:]]
            values = (swap.amount0, swap.amount1, swap.sqrt_price_x96, swap.liquidity, swap.tick, self.pool.fee)
            logs.append(place | {"logIndex": hex(last), "topics": topics, "data": _data(*values)})
        logs += self._change_of_providers(day, simulated.changes)
        return [int(log["blockNumber"], 16) for log in logs], logs

    def _change_of_providers(self, day: date, changes: Sequence[SimulatedLiquidityChange]) -> list[dict[str, Any]]:
        """After the last swap of a day its positions go, and those of the next day come; a few in each block."""
        next_day = date.fromordinal(day.toordinal() + 1)
        held: dict[tuple[int, int], int] = {}
        opening = opening_positions(self.seed, day, self.pool) if day >= FIRST_DAY else []
        for lower, upper, delta in (
            *opening,
            *((each.tick_lower, each.tick_upper, each.liquidity_delta) for each in changes),
        ):
            held[lower, upper] = held.get((lower, upper), 0) + delta
        moves = [(*ticks, -liquidity) for ticks, liquidity in held.items() if liquidity]
        moves += opening_positions(self.seed, next_day, self.pool)
        logs = []
        for i, move in enumerate(moves):
            number = first_block_of(next_day) - _CHANGING_BLOCKS + i * _CHANGING_BLOCKS // len(moves)
            logs.append(self._place(number, self._digest("provider", number, i), i) | self._liquidity_log(i, *move))
        return logs

    def _place(self, number: int, transaction: str, index: int) -> dict[str, Any]:
        return {
            "address": self.pool.pool_manager.lower(),
            "blockNumber": hex(number),
            "blockHash": self._block_hash(number),
            "blockTimestamp": hex(timestamp_of(number)),
            "transactionHash": transaction,
            "transactionIndex": hex(index),
            "removed": False,
        }

    def _liquidity_log(self, index: int, lower: int, upper: int, delta: int) -> dict[str, Any]:
        topics = [LIQUIDITY_TOPIC, self.pool.pool_id, "0x" + "0" * 24 + _PROVIDER[2:]]
        return {"logIndex": hex(index), "topics": topics, "data": _data(lower, upper, delta, 0)}


def _day(number: int) -> date:
    return datetime.fromtimestamp(timestamp_of(number), UTC).date()


def _signed_words(log: dict[str, Any]) -> list[int]:
    data = bytes.fromhex(log["data"][2:])
    return [int.from_bytes(data[at : at + 32], "big", signed=True) for at in range(0, len(data), 32)]


def _choices(wanted: Any) -> set[str]:
    """The values that a filter allows, in lower case; empty: any."""
    return {choice.lower() for choice in ([wanted] if isinstance(wanted, str) else wanted or [])}


def _data(*words: int) -> str:
    return "0x" + "".join(f"{word % (1 << 256):064x}" for word in words)
