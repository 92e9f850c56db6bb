"""What can go wrong with a devnet."""

from apeagent_pipeline.chain.errors import ChainError


class DevnetError(ChainError):
    """The devnet refused what it was asked, or is not what it must be; the message says what to do."""


class DevnetUnavailableError(DevnetError):
    """Anvil or the contracts cannot be had on this machine; the message says what to install."""
