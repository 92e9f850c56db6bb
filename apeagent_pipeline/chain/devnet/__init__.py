"""A chain on this machine with the real contracts: Anvil, Uniswap V4's PoolManager, USDC and the preset pool.

For trying the path over JSON-RPC without a key, and for tests: whatever is read here was written by the contracts
themselves. What does not belong here: reading swaps, and the embedded chain, which needs no node at all.
"""

from apeagent_pipeline.chain.devnet.devnet import Devnet, start_devnet
from apeagent_pipeline.chain.devnet.errors import DevnetError, DevnetUnavailableError

__all__ = ["Devnet", "DevnetError", "DevnetUnavailableError", "start_devnet"]
