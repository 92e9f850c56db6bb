"""What the PoolManager stores of a pool at a block, read with ``extsload`` (``StateLibrary.sol`` of v4-core)."""

import re
from collections.abc import Sequence
from typing import Any

from eth_hash.auto import keccak

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.chain.endpoint import Call, Endpoint
from apeagent_pipeline.chain.replay import PoolState

EXTSLOAD = "0xdbd035ff"
"""Selector of ``extsload(bytes32[])``."""

_POOLS_SLOT = 6
_SLOT0, _FEE_GROWTH0, _FEE_GROWTH1, _LIQUIDITY, _TICKS, _BITMAP = range(6)
_MOST_WORDS = 64
_SLOTS_A_CALL = 256
_WORD = re.compile("0x[0-9a-fA-F]+")


def pool_slot(pool_id: str, offset: int) -> int:
    """Storage slot of the PoolManager at an offset inside a pool's state."""
    return int.from_bytes(keccak(bytes.fromhex(pool_id[2:]) + _POOLS_SLOT.to_bytes(32, "big")), "big") + offset


def state_call(pool: PoolSpec, block: int) -> Call:
    """The call that reads price, tick and liquidity of a pool after a block."""
    return _load(pool, block, [_SLOT0, _LIQUIDITY])


def fee_growth_call(pool: PoolSpec, block: int) -> Call:
    """The call that reads the fees that one unit of liquidity has earned since the pool began, in both tokens."""
    return _load(pool, block, [_FEE_GROWTH0, _FEE_GROWTH1])


def tick_slot(pool_id: str, tick: int) -> int:
    """Storage slot of a tick's gross and net liquidity."""
    return _mapped(pool_slot(pool_id, _TICKS), tick)


def bitmap_slot(pool_id: str, word: int) -> int:
    """Storage slot of one word of the bitmap of initialised ticks."""
    return _mapped(pool_slot(pool_id, _BITMAP), word)


def read_ticks(pool: PoolSpec, endpoint: Endpoint, block: int, low: int, high: int) -> dict[int, int] | None:
    """Net liquidity of every initialised tick in a range after a block; None if the endpoint does not tell.

    Args:
        pool: The pool.
        endpoint: The endpoint to ask.
        block: The block.
        low: The lowest tick that matters.
        high: The highest.

    Raises:
        RpcError: if the endpoint does not answer.
    """
    words = range(low // pool.tick_spacing >> 8, (high // pool.tick_spacing >> 8) + 1)
    if len(words) > _MOST_WORDS:
        return None
    bitmaps = _read_slots(pool, endpoint, block, [bitmap_slot(pool.pool_id, word) for word in words])
    if bitmaps is None:
        return None
    ticks = [
        (256 * word + bit) * pool.tick_spacing
        for word, bitmap in zip(words, bitmaps, strict=True)
        for bit in range(256)
        if bitmap >> bit & 1
    ]
    stored = _read_slots(pool, endpoint, block, [tick_slot(pool.pool_id, tick) for tick in ticks])
    if stored is None:
        return None
    nets = (word >> 128 for word in stored)
    return {tick: net - (1 << 128) if net >> 127 else net for tick, net in zip(ticks, nets, strict=True)}


def _read_slots(pool: PoolSpec, endpoint: Endpoint, block: int, slots: Sequence[int]) -> list[int] | None:
    parts = [slots[at : at + _SLOTS_A_CALL] for at in range(0, len(slots), _SLOTS_A_CALL)]
    answers = endpoint.send([extsload_call(pool, block, part) for part in parts]) if parts else []
    words = [read_words(answer, len(part)) for answer, part in zip(answers, parts, strict=True)]
    return None if any(each is None for each in words) else [word for each in words for word in each or ()]


def _mapped(mapping: int, key: int) -> int:
    return int.from_bytes(keccak((key % (1 << 256)).to_bytes(32, "big") + mapping.to_bytes(32, "big")), "big")


def read_state(answer: Any) -> tuple[PoolState, int] | None:
    """State and protocol fee from an answer to `state_call`; None if the node did not give it.

    A pool that was not initialised yet has the price 0.
    """
    words = read_words(answer, 2)
    if words is None:
        return None
    tick = words[0] >> 160 & 0xFFFFFF
    tick -= (1 << 24) if tick >> 23 else 0
    return PoolState(words[0] & ((1 << 160) - 1), tick, words[1]), words[0] >> 184 & 0xFFFFFF


def read_words(answer: Any, count: int) -> list[int] | None:
    """The 256-bit words in an answer to ``extsload``; None if the node did not give so many."""
    if not isinstance(answer, str) or not _WORD.fullmatch(answer) or len(answer) != 2 + 64 * (count + 2):
        return None
    words = [int(answer[2 + 64 * i : 66 + 64 * i], 16) for i in range(count + 2)]
    return words[2:] if words[:2] == [32, count] else None


def encode_words(words: Sequence[int]) -> str:
    """The ABI encoding of a list of 32-byte words: the arguments of ``extsload``, and its answer."""
    return "0x" + "".join(f"{word:064x}" for word in (32, len(words), *words))


def extsload_call(pool: PoolSpec, block: int, slots: Sequence[int]) -> Call:
    """The call that reads storage slots of the PoolManager after a block."""
    return "eth_call", [{"to": pool.pool_manager, "data": EXTSLOAD + encode_words(slots)[2:]}, hex(block)]


def _load(pool: PoolSpec, block: int, offsets: Sequence[int]) -> Call:
    return extsload_call(pool, block, [pool_slot(pool.pool_id, offset) for offset in offsets])
