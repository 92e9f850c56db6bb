"""Errors of the devnet."""

from apeagent_pipeline.chain.errors import ChainError


class DevnetError(ChainError):
    """The devnet refused a request, or a file of it is not the pinned one; the message says what to do."""


class DevnetUnavailableError(DevnetError):
    """This machine has no Anvil or no contracts, and cannot fetch them; the message says what to install."""
