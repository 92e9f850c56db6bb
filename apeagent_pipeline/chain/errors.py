"""The error that everything about reading swaps derives from, and those of days that may still change."""

from apeagent_pipeline.errors import ApeagentError


class ChainError(ApeagentError, RuntimeError):
    """Swaps could not be read in full; the message says what was found, what was expected and what to do."""


class DayNotFinalError(ChainError):
    """The day may still change; the message says when it will not."""


class ReorganisedError(ChainError):
    """Blocks that counted as final were replaced."""
