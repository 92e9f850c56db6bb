"""Chains whose block numbers tell the time exactly."""

from typing import NamedTuple

import polars as pl

from apeagent_pipeline.chain.days import BLOCK_SECONDS, GENESIS_TIMESTAMP


class ChainClock(NamedTuple):
    """Block ``n`` has the timestamp ``genesis + n * block_seconds``, without an exception.

    Attributes:
        genesis: Timestamp of block 0, in seconds since 1970.
        block_seconds: Between two blocks.
    """

    genesis: int
    block_seconds: int

    def seconds(self, block_number: pl.Series) -> pl.Series:
        """Timestamps of blocks."""
        return block_number.cast(pl.Int64()) * self.block_seconds + self.genesis


_CLOCKS = {8453: ChainClock(GENESIS_TIMESTAMP, BLOCK_SECONDS)}


def exact_clock(chain_id: int) -> ChainClock | None:
    """The clock of a chain, or None where block times vary or are not known."""
    return _CLOCKS.get(chain_id)
