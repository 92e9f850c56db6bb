"""What lies around a day: the swaps before and after it, and what the pool stored at both of its ends."""

import logging
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Self

import polars as pl

from apeagent_pipeline.chain.day_reading import PoolEvents
from apeagent_pipeline.chain.endpoint import Call, Endpoint
from apeagent_pipeline.chain.log_reader import LogReader, bad_answers_of
from apeagent_pipeline.chain.pool_state import fee_growth_call, read_state, read_ticks, read_words, state_call
from apeagent_pipeline.chain.replay import PoolState, Replay
from apeagent_pipeline.chain.rpc_errors import RpcError

_log = logging.getLogger(__name__)

_TYPICAL_GAPS = 16
_FEWEST_BLOCKS, _MOST_BLOCKS = 64, 5_000
_WORD = 1 << 256
_ROUNDINGS_A_SWAP = 4

Span = tuple[int, int]
"""First and last block; the last is below the first where there is none."""


class Neighbourhood(NamedTuple):
    """See module.

    Attributes:
        before: Events of the last blocks before the day.
        after: Events of the first blocks after the day.
        state_before: What the pool stored after the last block before the day; None if no endpoint tells.
        state_after: The same after the last block of the day.
        fees: Fee growth between the two, of both tokens; None if unknown, or if a protocol fee takes a part of it.
    """

    before: PoolEvents
    after: PoolEvents
    state_before: PoolState | None
    state_after: PoolState | None
    fees: tuple[int, int] | None

    @classmethod
    def unknown(cls) -> Self:
        """Nothing is known."""
        return cls(PoolEvents.none(), PoolEvents.none(), None, None, None)

    @property
    def has_states(self) -> bool:
        """Whether the pool's state at both ends is known."""
        return self.state_before is not None and self.state_after is not None

    @property
    def is_unknown(self) -> bool:
        """Whether nothing is known on either side."""
        return not self.knows_before and not self.knows_after

    @property
    def knows_before(self) -> bool:
        """Whether the first swap of the day can be judged."""
        return self.state_before is not None or not self.before.swaps.is_empty()

    @property
    def knows_after(self) -> bool:
        """Whether a swap that is missing at the end of the day would show."""
        return self.state_after is not None or not self.after.swaps.is_empty()

    def sequence_before(self) -> PoolEvents:
        """The last swap before the day and the liquidity changes since; nothing if the state is known."""
        if self.state_before is not None or self.before.swaps.is_empty():
            return PoolEvents.none()
        number, index = self.before.swaps.select("block_number", "log_index").row(-1)
        changes = self.before.changes
        is_later = (changes["block_number"] > number) | (
            (changes["block_number"] == number) & (changes["log_index"] > index)
        )
        return PoolEvents(self.before.swaps.tail(1), changes.filter(is_later))

    def sequence_after(self) -> PoolEvents:
        """The first swap after the day and the liquidity changes before it; nothing if the state is known."""
        if self.state_after is not None or self.after.swaps.is_empty():
            return PoolEvents.none()
        number, index = self.after.swaps.select("block_number", "log_index").row(0)
        changes = self.after.changes
        is_earlier = (changes["block_number"] < number) | (
            (changes["block_number"] == number) & (changes["log_index"] < index)
        )
        return PoolEvents(self.after.swaps.head(1), changes.filter(is_earlier))

    def volume_fits(self, result: Replay) -> bool | None:
        """Whether the fees that the pool stored are those of the swaps; None if either is unknown."""
        if self.fees is None or result.fee_growth is None:
            return None
        slack = _ROUNDINGS_A_SWAP * (result.pairs + 1)
        return all(abs(stored - told) <= slack for stored, told in zip(self.fees, result.fee_growth, strict=True))


def look_around(
    reader: LogReader, first: int, last: int, final: int, typical: int, *, avoid: Collection[Endpoint]
) -> Neighbourhood:
    """Read what the pool stored at both ends of a day; where no endpoint tells, the swaps before and after the day.

    Both are asked for in one request. If the endpoint does not answer it, or tells nothing in it, both are asked for
    alone. What no endpoint tells stays unknown.

    Args:
        reader: Reads logs.
        first: First block of the day.
        last: Last block of the day.
        final: Last final block.
        typical: Usual number of blocks between two swaps.
        avoid: Endpoints that are not asked.
    """
    state_calls = [call(reader.pool, at) for at in (first - 1, last) for call in (state_call, fee_growth_call)]

    def ask_for_states(endpoint: Endpoint) -> Neighbourhood:
        return _stored(endpoint.send(state_calls))

    def ask_for_logs(endpoint: Endpoint) -> Neighbourhood:
        before, after = ranges(endpoint)
        return _told(reader, endpoint, endpoint.send(log_calls(before, after)), before, after)

    def ask_for_both(endpoint: Endpoint) -> Neighbourhood:
        before, after = ranges(endpoint)
        try:
            answers = endpoint.send([*state_calls, *log_calls(before, after)])
        except RpcError as error:
            if error.is_hopeless or error.retry_after:
                raise
            return ask_for_states(endpoint)
        stored = _stored(answers[: len(state_calls)])
        return stored if stored.has_states else _told(reader, endpoint, answers[len(state_calls) :], before, after)

    def ranges(endpoint: Endpoint) -> tuple[Span, Span]:
        size = min(reader.sizes[endpoint].blocks, _MOST_BLOCKS)
        blocks = min(size, max(_FEWEST_BLOCKS, _TYPICAL_GAPS * typical))
        return (max(first - blocks, 0), first - 1), (last + 1, min(last + blocks, final))

    def log_calls(*asked: Span) -> list[Call]:
        return [("eth_getLogs", [reader.query(*each)]) for each in asked if each[0] <= each[1]]

    around = Neighbourhood.unknown()
    for ask in (ask_for_both, ask_for_logs):
        try:
            around = reader.client.ask(ask, avoid)
        except RpcError as error:
            _log.info("the neighbourhood of blocks %d to %d is unknown: %s", first, last, error)
        if not around.is_unknown:
            break
    return around


def look_at_ticks(
    reader: LogReader, first: int, around: Neighbourhood, swaps: pl.DataFrame, avoid: Collection[Endpoint]
) -> dict[int, int] | None:
    """Net liquidity of the ticks that the pool had initialised before the day; None if no endpoint tells.

    Args:
        reader: Reads logs.
        first: First block of the day.
        around: The neighbourhood of the day.
        swaps: Of the day.
        avoid: Endpoints that are not asked.
    """
    if around.state_before is None:
        return None
    ticks = [around.state_before.tick, *swaps["tick"].to_list()]

    def ask(endpoint: Endpoint) -> dict[int, int] | None:
        margin = 2 * reader.pool.tick_spacing
        return read_ticks(reader.pool, endpoint, first - 1, min(ticks) - margin, max(ticks) + margin)

    try:
        return reader.client.ask(ask, avoid)
    except RpcError as error:
        _log.info("the ticks of block %d are unknown: %s", first - 1, error)
        return None


def _told(reader: LogReader, endpoint: Endpoint, answers: Sequence[Any], before: Span, after: Span) -> Neighbourhood:
    logs = [log for answer in answers if isinstance(answer, list) for log in answer]
    with bad_answers_of(endpoint):
        events = reader.decode(endpoint, logs)
    return Neighbourhood(events.between(*before), events.between(*after), None, None, None)


def _stored(answers: Sequence[Any]) -> Neighbourhood:
    before, after = (read_state(answer) for answer in answers[::2])
    if before is None or after is None:
        return Neighbourhood.unknown()
    growth = [read_words(answer, 2) for answer in answers[1::2]]
    fees = None
    if not before[1] and not after[1] and growth[0] is not None and growth[1] is not None:
        fees = (growth[1][0] - growth[0][0]) % _WORD, (growth[1][1] - growth[0][1]) % _WORD
    return Neighbourhood(PoolEvents.none(), PoolEvents.none(), before[0], after[0], fees)
