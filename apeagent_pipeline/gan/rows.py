"""Rows of windows as tensors: as generator and critic read them, as chains of choices, and as samples."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

RETURN, PRICE, LIQUIDITY, RESERVE, RANGE, SIZE = range(6)
STATE = 6
"""Columns of `Rows.state`."""


class Rows(NamedTuple):
    """Rows of windows, or of the histories before them.

    Attributes:
        bins: Bins of the free features, int64 [n, T, 5].
        positions: Positions inside the bins, in [0, 1], [n, T, 5].
        origin: Origin of the size, as in `swap_execution.Origins.size`, int64 [n, T].
        state: State of the market after each row, [n, T, STATE]: log return since the row before; log price and log
            liquidity, both relative to the last row of the history; log virtual token1 reserve at that last row; price
            in ranges of one tick spacing, counted from the lower end of the range in which the history ended; log size.
    """

    bins: Tensor
    positions: Tensor
    origin: Tensor
    state: Tensor

    def part(self, rows: slice) -> "Rows":
        """The rows of a slice along T."""
        return Rows(*(each[:, rows] for each in self))

    def then(self, later: "Rows") -> "Rows":
        """These rows followed by ``later``."""
        return Rows(*(torch.cat(parts, dim=1) for parts in zip(self, later, strict=True)))


class HiddenStates(NamedTuple):
    """Hidden states [n, T, hidden] for drawing positions: given a row's choices up to the size, the move, and all."""

    size: Tensor
    move: Tensor
    all: Tensor


class Choices(NamedTuple):
    """The seven choices of every row.

    Attributes:
        logits: [n, T, kinds] of each choice.
        chosen: int64 [n, T] of each choice.
        free: Whether the row leaves the choice open, [n, T] of each choice.
    """

    logits: list[Tensor]
    chosen: list[Tensor]
    free: list[Tensor]

    def log_likelihood(self) -> Tensor:
        """Log likelihood (nats) of the choices of every row, [n, T]."""
        terms = [
            -F.cross_entropy(one.transpose(1, 2), chosen, reduction="none") * free
            for one, chosen, free in zip(self.logits, self.chosen, self.free, strict=True)
        ]
        return torch.stack(terms).sum(dim=0)


class Sample(NamedTuple):
    """Sampled rows and what is needed to compute their positions again.

    Attributes:
        rows: The rows, [n, T].
        hidden: The hidden states from which the positions were drawn.
        noise: The noise with which they were drawn, [n, T, 4].
        fresh: Whether the position of a feature was drawn (True) or repeated from an earlier row, [n, T, 5].
        liquidity_back: The row restores the liquidity of this many rows before; 0: a new liquidity, int64 [n, T].
    """

    rows: Rows
    hidden: HiddenStates
    noise: Tensor
    fresh: Tensor
    liquidity_back: Tensor
