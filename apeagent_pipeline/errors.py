"""The root of every error that this package raises on purpose."""


class ApeagentError(Exception):
    """Something that a user can mend. The message names the value, what was expected, and the remedy.

    Each error has the built-in exception that fits it as a second base, such as ``ValueError``.
    """
