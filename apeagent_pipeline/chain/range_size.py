"""How many blocks one endpoint answers in one ``eth_getLogs`` request."""

import threading

_MOST_LOGS = 10_000


class RangeSize:
    """The size of the next range: shrinks after a refusal, grows back while ranges are answered.

    A limit that the node named is kept for good. Other refusals may have come from many logs in a few blocks, so larger
    sizes are tried again: after ten answers at first, and after twice as many each time that one is refused.

    Args:
        largest: The initial and the largest size, in blocks.

    Attributes:
        blocks: Size of the next range, in blocks.
        answers: Ranges answered so far.
        splits: Refusals so far.
        is_named: Whether the node named the largest size.
    """

    _ANSWERS_BEFORE_GROWTH, _MOST_ANSWERS_BEFORE_GROWTH = 10, 80

    def __init__(self, largest: int) -> None:
        self.blocks = largest
        self.answers = 0
        self.splits = 0
        self.is_named = False
        self._largest = largest
        self._worked = 0
        self._refused = largest + 1
        self._in_a_row = 0
        self._patience = self._ANSWERS_BEFORE_GROWTH
        self._lock = threading.Lock()

    @property
    def limit(self) -> int | None:
        """Blocks of the largest range that was not refused, or None if no range was refused for its size."""
        return max(self.blocks, self._worked) if self.is_named or self._refused <= self._largest else None

    def start_at(self, blocks: int, *, is_named: bool) -> None:
        """Begin with a size that is known to be allowed.

        Args:
            blocks: The size.
            is_named: Whether the node named it as its limit, so that no larger one is tried.
        """
        with self._lock:
            if blocks >= self._largest:
                return
            self.blocks = self._worked = blocks
            self.is_named = is_named
            if is_named:
                self._largest = blocks
            else:
                self._refused, self._patience = blocks + 1, self._MOST_ANSWERS_BEFORE_GROWTH

    def answered(self, blocks: int, logs: int) -> None:
        """Record that the endpoint answered a range of ``blocks`` blocks with ``logs`` logs."""
        with self._lock:
            self.answers += 1
            if logs > _MOST_LOGS:
                # The endpoint would send more, but decoding an answer takes many times its size in memory.
                self.blocks = max(1, min(self.blocks, blocks * _MOST_LOGS // logs))
                self._in_a_row = 0
                return
            self._worked = max(self._worked, min(blocks, self.blocks))
            if blocks < self.blocks:
                return
            self._in_a_row += 1
            if blocks >= self._refused:
                self._refused, self._patience = self._largest + 1, self._ANSWERS_BEFORE_GROWTH
            if self._in_a_row >= self._patience:
                self._in_a_row = 0
                step = self.blocks if 2 * self.blocks < self._refused else max(1, self.blocks // 10)
                self.blocks = min(self._largest, self.blocks + step)

    def refused(self, blocks: int, hint: int | None, *, is_limit: bool = False, is_sure: bool = True) -> None:
        """Record that the endpoint refused a range of ``blocks`` blocks.

        Args:
            blocks: Size that was refused.
            hint: A smaller size that the endpoint named.
            is_limit: Whether that is a limit on the size of every range, not advice for this one.
            is_sure: Whether the size was the reason; otherwise the size soon doubles again.
        """
        with self._lock:
            self.splits += 1
            if hint and is_limit:
                self.is_named = True
                self._largest = min(self._largest, hint)
            if self.blocks < blocks:
                self.blocks = min(self.blocks, self._largest)
                return  # another thread has already made the size smaller
            if not is_sure and blocks < self.blocks:
                return  # a short range is no sign that long ones are too long
            half = blocks // 2
            if hint is None and half <= self._worked < blocks:
                self._patience = min(2 * self._patience, self._MOST_ANSWERS_BEFORE_GROWTH)
            smaller = hint or (self._worked if half <= self._worked < blocks else half)
            # A size that worked is tried once more only: where swaps lie denser, it may be too large.
            self._worked = 0
            self._in_a_row = 0
            self._refused = blocks if is_sure else self._refused
            self.blocks = max(1, smaller)
