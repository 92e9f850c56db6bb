"""UTC days and the blocks that belong to them.

A day is the half-open range of time from its midnight to the next. Its blocks are those from the first block at or
after its start to the block before the next day's first. One function finds the border between two neighbouring days,
so no block is left out and none belongs to two days.
"""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

FIRST_DAY = date(2025, 1, 21)
"""The first day of the partitions: Uniswap V4's routers were deployed on Base that day."""

SECONDS_PER_DAY = 86_400
BLOCK_SECONDS = 2
"""Seconds between two blocks of Base, and of the embedded chain and the devnet."""

GENESIS_TIMESTAMP = 1_686_789_347
"""Timestamp of Base's block 0, in seconds since 1970."""


def day_bounds(day: date) -> tuple[int, int]:
    """Start (included) and end (excluded) of a UTC day in seconds since 1970."""
    start = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
    return start, start + SECONDS_PER_DAY


def day_of(timestamp: int) -> date:
    """The UTC day in which a moment lies."""
    return datetime.fromtimestamp(timestamp, UTC).date()


def days_between(first: date, last: date) -> list[date]:
    """Every day from ``first`` to ``last``, both included."""
    return [first + timedelta(days=i) for i in range((last - first).days + 1)]


def first_block_of(day: date) -> int:
    """The first block of a UTC day, computed from Base's block time: exact where no block came late, else a guess."""
    start, _ = day_bounds(day)
    return -(-(start - GENESIS_TIMESTAMP) // BLOCK_SECONDS)


def timestamp_of(block: int) -> int:
    """Timestamp of a block in seconds since 1970, computed from Base's block time."""
    return GENESIS_TIMESTAMP + BLOCK_SECONDS * block


def first_block_at_or_after(
    moment: int, head: int, timestamp_at: Callable[[int], int], block_seconds: float = BLOCK_SECONDS
) -> int:
    """The first block whose timestamp is at or after a moment.

    The chain's block time gives a first guess, and the headers on both sides confirm it. If the guess is wrong, the
    search interpolates and bisects. With a steady block time three headers are enough.

    Args:
        moment: Seconds since 1970.
        head: A block known to exist; no later header is requested.
        timestamp_at: Gives a block's timestamp from its header.
        block_seconds: Usual time between two blocks.

    Returns:
        A number in [0, head].

    Raises:
        ValueError: if the head itself is older than the moment.
    """
    head_time = timestamp_at(head)
    if head_time < moment:
        raise ValueError(
            f"block {head} has the timestamp {head_time}, before {moment}: the block asked for does not exist yet"
        )
    # Invariant: timestamp(low) < moment <= timestamp(high); block -1 stands for any earlier time.
    low, high = -1, head
    guess = head - int((head_time - moment) // block_seconds)
    bisects = False
    while high - low > 1:
        guess = min(max(guess, low + 1), high - 1)
        found = timestamp_at(guess)
        if found >= moment:
            high = guess
            step = int((found - moment) // block_seconds)
            guess -= max(step, 1)
        else:
            low = guess
            step = int((moment - found) // block_seconds)
            guess += max(step, 1)
        # After a guess that was wrong, every other step bisects, so that the search ends whatever the block times are.
        if bisects:
            guess = (low + high) // 2
        bisects = step > 1 and not bisects
    return high
