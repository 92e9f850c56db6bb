"""The one error that everything about reading swaps derives from."""


class ChainError(RuntimeError):
    """Swaps could not be read in full; the message says what was found, what was expected and what to do."""
