"""The id of a pool in the PoolManager."""

from eth_hash.auto import keccak

from apeagent_pipeline.amm.pool_spec import PoolKey


def pool_id(key: PoolKey) -> str:
    """Keccak-256 of the ABI-encoded pool key, 0x-prefixed lower-case hex (``PoolId.sol``).

    The key is (currency0, currency1, fee, tickSpacing, hooks), each in one 32-byte word.
    """
    words = (int(key.currency0, 16), int(key.currency1, 16), key.fee, key.tick_spacing, int(key.hooks, 16))
    return "0x" + keccak(b"".join(word.to_bytes(32, "big") for word in words)).hex()
