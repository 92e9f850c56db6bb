"""The ``Retry-After`` header (RFC 9110, section 10.2.3)."""

import math
import time
from email.utils import parsedate_to_datetime


def retry_after_seconds(header: str | None) -> float | None:
    """Seconds that a server asks its client to wait.

    Args:
        header: Value of the header: a number of seconds or an HTTP date; None if the response has none.

    Returns:
        At least 0, or None if the header is missing or is neither a number nor a date.
    """
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, OverflowError, TypeError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None
