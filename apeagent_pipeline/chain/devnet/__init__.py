"""A chain on this machine with the real contracts: Anvil, Uniswap V4's PoolManager, USDC and the preset pool.

It lets users and tests read swaps over JSON-RPC without an account at a provider; the real contracts write every
event. Two things do not belong here: reading swaps, and the embedded chain, which needs no node.
"""

from apeagent_pipeline.chain.devnet.devnet import Devnet, start_devnet
from apeagent_pipeline.chain.devnet.errors import DevnetError, DevnetUnavailableError

__all__ = ["Devnet", "DevnetError", "DevnetUnavailableError", "start_devnet"]
