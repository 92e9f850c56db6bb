"""The proof that a day is complete: the evidence for it beside the word of the endpoint that was read."""

from typing import NamedTuple


class DayProof(NamedTuple):
    """Why a day counts as complete.

    Attributes:
        by: Independent proofs that the day has, strongest first: ``volume`` (the fees that the pool stored between the
            first and the last block are those of the swaps), ``chain`` (every swap follows from the one before it, from
            before the day to after it), ``state`` (price and liquidity that the pool stored at the ends of the day),
            ``second endpoint``.
        doubts: What could not be proven; empty for a confirmed day.
        pairs: Neighbouring swaps that were judged.
        explained: Those of which the second follows from the first.
        compared: Ranges that a second endpoint answered alike.
        repaired: Swaps and liquidity changes that the first answers lacked.
    """

    by: tuple[str, ...]
    doubts: tuple[str, ...] = ()
    pairs: int = 0
    explained: int = 0
    compared: int = 0
    repaired: int = 0

    @property
    def confirmed(self) -> bool:
        """Whether the day is complete beyond the word of one endpoint."""
        return not self.doubts
