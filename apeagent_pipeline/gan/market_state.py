"""The market after rows of a window, as the generator sees it: price and liquidity in the columns of `Rows.state`.

Approximations in floats, without the fee. `swap_execution` executes the finished rows exactly, by the same rules.
"""

import torch
from torch import Tensor, nn

from apeagent_pipeline.gan.rows import LIQUIDITY, RANGE
from apeagent_pipeline.gan.swap_execution import LEAST_LEFT

MAX_CROSSED = 3
"""More ranges crossed by a swap count as this many."""

_SAME_LIQUIDITY = 1e-5
"""Largest difference of the logs of two liquidities that are equal but for rounding."""


def state_after(
    before: Tensor, side: Tensor, log_size: Tensor, move: Tensor, liquidity: Tensor, *, range_width: float
) -> Tensor:
    """State [n, T, STATE] after rows that follow the state ``before`` [n, T, STATE].

    An approximation for the generator: in floats, without the fee. `swap_execution.execute_swaps`, which says at
    which liquidity a swap runs, executes the finished rows exactly.

    Args:
        before: State before the rows.
        side: 1 for a buy, [n, T].
        log_size: [n, T].
        move: [n, T].
        liquidity: Log liquidity after the rows, relative as in the state, [n, T].
        range_width: Log of the ratio of the prices at both ends of a range.
    """
    _, price, earlier, reserve, range_price, _ = before.unbind(dim=-1)
    direction = torch.where(side > 0, 1.0, -1.0)
    start = range_price + move / range_width

    def change(usage: Tensor) -> Tensor:
        return 2 * torch.log1p(direction * usage.clamp(max=0.5))

    # The share of the virtual token1 reserve that the swap takes or adds.
    usage = torch.exp(log_size - (reserve + earlier + (price + move) / 2))
    end = (start + change(usage) / range_width).floor()
    leaves = end != start.floor()
    # To the border of the range in which the swap ends it runs at the liquidity of the row before.
    to_border = (end + (side <= 0).float() - start) * range_width * leaves
    rest = usage - torch.expm1(to_border / 2).abs() * leaves
    rest = rest.clamp(min=0) * torch.exp(earlier - liquidity - to_border / 2)
    moved = move + to_border + change(rest)
    return torch.stack([moved, price + moved, liquidity, reserve, range_price + moved / range_width, log_size], dim=-1)


def liquidity_of_range(past: Tensor, at: int, range_price: Tensor) -> tuple[Tensor, Tensor]:
    """The liquidity that a range of prices has by what is known: that of the newest row whose price was in it.

    In V4 liquidity belongs to price ranges, so a price that returns to a range often finds its earlier liquidity.
    What providers have added since is added to it, as `swap_execution.Origins.liquidity` says.

    Args:
        past: States of rows from the first of the condition on, [n, rows, STATE].
        at: Index in ``past`` of the first row of ``range_price``.
        range_price: The price after the rows, as the column `RANGE` of the state, [n, T].

    Returns:
        Log liquidity as in the state, and how many rows before the newest row is, both [n, T]; 0 rows if there is
        none, or if providers took most of its liquidity away.
    """
    index = torch.arange(past.shape[1], device=past.device)
    now = at + torch.arange(range_price.shape[1], device=past.device)[:, None]
    ranges, liquidity = past[..., RANGE].floor(), past[..., LIQUIDITY].exp()
    stays = ranges[:, 1:] == ranges[:, :-1]
    added = nn.functional.pad((liquidity.diff(dim=1) * stays).cumsum(dim=1), (1, 0))
    same = (ranges[:, None] == range_price.floor()[:, :, None]) & (index < now)
    newest = torch.where(same, index, -1).amax(dim=-1)
    source = newest.clamp(min=0)
    since = added[:, at - 1 : at - 1 + range_price.shape[1]] - added.gather(1, source)
    then = liquidity.gather(1, source)
    known = (newest >= 0) & (then + since > then / LEAST_LEFT)
    return torch.where(known, then + since, then).log(), torch.where(known, now.T - newest, 0)


def inside_range(range_price: Tensor) -> Tensor:
    """Position of a price inside its tick-spacing range, -0.5 at the lower end to 0.5 at the upper end."""
    return range_price - range_price.floor() - 0.5


def ranges_crossed(before: Tensor, after: Tensor) -> Tensor:
    """Ranges that the price has crossed upwards, at most `MAX_CROSSED` either way, counted from 0."""
    crossed = after[..., RANGE].floor() - before[..., RANGE].floor()
    return crossed.clamp(-MAX_CROSSED, MAX_CROSSED).long() + MAX_CROSSED


def liquidity_differs(one: Tensor, other: Tensor) -> Tensor:
    """Whether log liquidities differ by more than rounding."""
    return (one - other).abs() > _SAME_LIQUIDITY
