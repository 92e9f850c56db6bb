"""Makes sure that a day is complete: finds what first answers lack, reads it again, and says what proves the day."""

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from apeagent_pipeline.chain.day_reading import DayReading, Piece, PoolEvents
from apeagent_pipeline.chain.endpoint import Endpoint
from apeagent_pipeline.chain.errors import ChainError, ReorganisedError
from apeagent_pipeline.chain.events import SWAP_KEY
from apeagent_pipeline.chain.log_reader import Accept, LogReader
from apeagent_pipeline.chain.neighbourhood import Neighbourhood, look_around, look_at_ticks
from apeagent_pipeline.chain.proof import DayProof
from apeagent_pipeline.chain.replay import Gap, Replay, replay
from apeagent_pipeline.chain.rpc_errors import RpcError

_log = logging.getLogger(__name__)

_MOST_ROUNDS = 60
_TIMES_ASKED = 3
_TIMES_READ_WHOLE, _MOST_REREADS = 3, 5
_LEAST_BUDGET = 200
"""Spans that are read again in vain at most, beside two for each range of the day and one for each event found."""
_SAMPLED_SHARE = 0.1
_MOST_RECEIPTS = 64
_FEWEST_EQUAL = 20
_LONG_SILENCE_MEANS, _LONG_SILENCE_LONGEST = 20, 3
_FEWEST_SWAPS_FOR_SILENCE = 20
_RECEIPTS = "receipts"

Span = tuple[int, int]


class _Way(NamedTuple):
    """One more way to read a span: from which endpoint, and how it is cut."""

    endpoint: Endpoint
    cut: str


class _Answer(NamedTuple):
    events: PoolEvents
    has_all_known: bool


class Verification:
    """Verifies one day that was read.

    Args:
        reader: Reads ranges.
        reading: The day, and which endpoint answered which range.
        accept: Checks a piece of the day.
        final: The last final block.
        parallel: Requests at a time.
    """

    def __init__(self, reader: LogReader, reading: DayReading, accept: Accept, final: int, parallel: int) -> None:
        self._reader = reader
        self._reading = reading
        self._accept = accept
        self._parallel = parallel
        self._final = final
        self._first, self._last = (header.number for header in reading.borders)
        self._events = PoolEvents.none()
        self._around = Neighbourhood.unknown()
        self._ticks: dict[int, int] | None = None
        self._replayed: tuple[tuple[object, ...], Replay] | None = None
        self._caught: set[Endpoint] = set()
        self._agreed: dict[Span, set[object]] = {}
        self._tried: defaultdict[Span, set[_Way]] = defaultdict(set)
        self._limits: list[tuple[Span, int]] = []
        self._compared: set[Span] = set()
        self._repaired = 0
        self._budget = 0
        self._times_reread = 0

    @property
    def _judged(self) -> bool:
        """Whether swaps can be judged by the pool's arithmetic."""
        return not self._reader.pool.has_hooks

    def run(self, events: PoolEvents) -> tuple[PoolEvents, DayProof]:
        """The events of the day, with those that the first answers lacked, and what proves them complete.

        Raises:
            ChainError: if events are missing for certain and no endpoint has them.
            RpcError: if no endpoint answers.
        """
        self._events = events
        self._budget = _LEAST_BUDGET + 2 * len(self._reading.pieces)
        self._look_around()
        self._close_gaps()
        if self._compare():
            self._close_gaps()
        for _ in range(_TIMES_READ_WHOLE):
            # An event that is missing in one place may show in another: a position that came unseen, where its tick
            # is crossed.
            # An endpoint that leaves it out now and then may do so twice: finding nothing once is no answer.
            if not any(gap.certain for gap in self._gaps(self._replay())):
                break
            if self._reread(self._reading.pieces):
                self._close_gaps()
        return self._events, self._judge()

    def _look_around(self) -> None:
        reader, first, last = self._reader, self._first, self._last
        typical = (last - first + 1) // (self._events.swaps.height + 1)
        self._around = look_around(reader, first, last, self._final, typical, avoid=self._avoided())
        self._ticks = None
        if any(not gap.certain for gap in self._replay().gaps):
            self._ticks = look_at_ticks(reader, first, self._around, self._events.swaps, self._avoided())

    def _avoided(self) -> list[Endpoint]:
        """Endpoints that left events out, unless no other one can be asked."""
        caught = [each for each in self._reader.client.endpoints if each in self._caught]
        return caught if len(caught) < len(self._reader.client.endpoints) else []

    # Gaps

    def _replay(self) -> Replay:
        """The replay of what is known now; the same as before if nothing was learned since."""
        known = self._events, self._around, self._ticks
        if self._replayed is None or any(new is not old for new, old in zip(known, self._replayed[0], strict=True)):
            self._replayed = known, self._replay_now()
        return self._replayed[1]

    def _replay_now(self) -> Replay:
        before, after = self._around.sequence_before(), self._around.sequence_after()
        events = PoolEvents.joined([before, self._events, after])
        if not self._judged:
            return Replay(0, 0, [], None, None)
        start = self._around.state_before
        return replay(events.swaps, events.changes, self._reader.pool.tick_spacing, start, self._ticks)

    def _gaps(self, result: Replay) -> list[Gap]:
        """Where swaps may be missing: pairs that do not fit, and ends of the day that nothing is known beyond of."""
        clamp = [Gap(max(gap.first, self._first), min(gap.last, self._last), gap.certain) for gap in result.gaps]
        gaps = [gap for gap in clamp if gap.first <= gap.last]
        swaps = self._events.swaps
        if not self._judged or swaps.is_empty():
            return gaps
        earliest, latest = swaps["block_number"][0], swaps["block_number"][-1]
        if not self._around.knows_before:
            gaps.append(Gap(self._first, earliest, certain=False))
        stored = self._around.state_after
        if stored is not None and result.state is not None and stored != result.state:
            gaps.append(Gap(latest, self._last, certain=stored.sqrt_price_x96 != result.state.sqrt_price_x96))
        elif not self._around.knows_after:
            gaps.append(Gap(latest, self._last, certain=False))
        return gaps

    def _close_gaps(self) -> None:
        for _ in range(_MOST_ROUNDS):
            gaps = [gap for gap in self._gaps(self._replay()) if not self._is_settled(gap)]
            certain = {(gap.first, gap.last) for gap in gaps if gap.certain}
            spans = dict.fromkeys((gap.first, gap.last) for gap in gaps)
            ways = ((span, self._next_way(span, certain=span in certain)) for span in spans)
            plans = [(span, way) for span, way in ways if way is not None][: max(self._budget, 0)]
            if not plans:
                return
            caught = len(self._caught)
            with ThreadPoolExecutor(self._parallel) as executor:
                found = list(executor.map(lambda plan: self._read(*plan), plans))
            for (span, way), answer in zip(plans, found, strict=True):
                self._take(span, way, answer)
            if len(self._caught) > caught and self._avoided():
                self._reread([each for each in self._reading.pieces if each.endpoint in self._caught])
                self._look_around()

    def _is_settled(self, gap: Gap) -> bool:
        return not gap.certain and len(self._agreed.get((gap.first, gap.last), ())) > 1

    def _givers(self, span: Span) -> set[Endpoint]:
        return {each.endpoint for each in self._reading.pieces if each.first <= span[1] and each.last >= span[0]}

    def _next_way(self, span: Span, *, certain: bool) -> _Way | None:
        # Where perhaps nothing is missing, only a second source can say so, and the receipts are one. Swaps that are
        # missing for certain are first looked for in other cuts, which cost less.
        givers = self._givers(span)
        usable = self._reader.client.usable()
        others = sorted((each for each in usable if each not in givers), key=lambda each: each in self._caught)
        own = [each for each in usable if each in givers] or usable
        elsewhere = [_Way(each, "narrow") for each in others]
        again = [_Way(each, cut) for cut in ("narrow", "wide", "halves") for each in own[:1]]
        receipts = [_Way(each, _RECEIPTS) for each in (*others, *own) if span[1] - span[0] < _MOST_RECEIPTS]
        ways = [*elsewhere, *again, *receipts] if certain else [*elsewhere, *receipts, *again]
        return next((way for way in ways if way not in self._tried[span]), None)

    def _read(self, span: Span, way: _Way) -> _Answer | None:
        """The span read in another way; None if it could not be read."""
        first, last = span
        limit = self._limit_of(span)
        if way.cut == "wide":
            half = self._reader.sizes[way.endpoint].blocks // 2
            first, last, limit = max(self._first, first - half), min(self._last, last + half), None
        elif way.cut == "halves":
            limit = max(1, min(limit or last - first + 1, last - first + 1) // 2)
        answer = None
        for _ in range(_TIMES_ASKED):
            try:
                if way.cut == _RECEIPTS:
                    found = self._reader.read_receipts(way.endpoint, first, last)
                else:
                    found = self._read_of(way.endpoint, first, last, limit)
            except RpcError as error:
                _log.info("blocks %d to %d were not read again from %s: %s", first, last, way.endpoint, error)
                break
            known = self._events.between(first, last)
            answer = _Answer(found, not found.lacks(known))
            if answer.has_all_known or known.lacks(found):
                break
        return answer

    def _limit_of(self, span: Span) -> int | None:
        """Largest piece in which a span is read: smaller after each answer that left events of it out."""
        return min((blocks for (a, b), blocks in self._limits if a <= span[0] and span[1] <= b), default=None)

    def _read_of(self, endpoint: Endpoint, first: int, last: int, limit: int | None) -> PoolEvents:
        others = [each for each in self._reader.client.endpoints if each is not endpoint]
        return self._reader.read_range(first, last, accept=self._accept, avoid=others, most_blocks=limit)[0]

    def _take(self, span: Span, way: _Way, answer: _Answer | None) -> None:
        if answer is None:
            self._budget -= 1
            self._tried[span].add(way)
            return
        if not answer.has_all_known:
            self._caught.add(way.endpoint)
        added = self._add(answer.events, way.endpoint, self._givers(span))
        if added or not answer.has_all_known:
            # What made an endpoint leave events out may strike again: the next cut is finer.
            length = self._limit_of(span) or span[1] - span[0] + 1
            self._limits.append((span, max(1, length // 2)))
            self._budget += added
        if not added:
            self._budget -= 1
            self._tried[span].add(way)
            if answer.has_all_known:
                source: object = _RECEIPTS if way.cut == _RECEIPTS else way.endpoint
                self._agreed.setdefault(span, set(self._givers(span))).add(source)

    def _add(self, found: PoolEvents, source: Endpoint, givers: Collection[Endpoint]) -> int:
        """Take events that were missing; returns how many, and notes which endpoints had left them out."""
        missing = self._events.lacks(found)
        if missing:
            joined = PoolEvents.joined([self._events, found])
            if any(table.select(SWAP_KEY).is_duplicated().any() for table in joined):
                raise ReorganisedError(
                    f"{source} returned other events for the same blocks than were read before: the endpoints follow "
                    "different branches of the chain. Run the day again, or with another endpoint"
                )
            self._events = joined
            self._repaired += missing
            for giver in givers:
                _log.warning("%s left out %d events that %s has; they were added", giver, missing, source)
            self._caught |= set(givers)
        return missing

    def _reread(self, pieces: Collection[Piece]) -> int:
        """Read ranges again, from endpoints that left nothing out if there are such; returns the events found."""
        repaired = self._repaired
        self._times_reread += 1
        if self._times_reread > _MOST_REREADS:
            return 0
        for piece, found in self._map(list(pieces), lambda piece: self._other_answer(piece, self._avoided())):
            if found is None:
                continue
            events, again = found
            complete = not events.lacks(self._events.between(piece.first, piece.last))
            self._add(events, again[0].endpoint, () if piece.endpoint is again[0].endpoint else {piece.endpoint})
            if complete:
                self._reading.pieces.remove(piece)
                self._reading.pieces += again
        return self._repaired - repaired

    def _other_answer(self, piece: Piece, avoid: Collection[Endpoint]) -> tuple[PoolEvents, list[Piece]] | None:
        length = piece.last - piece.first + 1
        try:
            return self._reader.read_range(
                piece.first, piece.last, accept=self._accept, avoid=list(avoid), most_blocks=length
            )
        except RpcError as error:
            _log.info("blocks %d to %d could not be compared: %s", piece.first, piece.last, error)
            return None

    def _map(self, items: list[Piece], work: Callable[[Piece], Any]) -> Iterator[tuple[Piece, Any]]:
        with ThreadPoolExecutor(self._parallel) as executor:
            return zip(items, list(executor.map(work, items)), strict=True)

    # Comparison

    def _compare(self) -> int:
        """Compare ranges with a second endpoint; returns how many events were found."""
        if len(self._reader.client.usable()) < 2:
            return 0
        repaired = self._repaired
        for piece, found in self._map(self._sample(), lambda piece: self._other_answer(piece, {piece.endpoint})):
            if found is None:
                continue
            events, pieces = found
            if events.lacks(self._events.between(piece.first, piece.last)):
                self._caught |= {each.endpoint for each in pieces}
                continue
            self._add(events, pieces[0].endpoint, {piece.endpoint})
            self._compared.add((piece.first, piece.last))
        if self._avoided() and self._repaired > repaired:
            self._reread([each for each in self._reading.pieces if each.endpoint in self._caught])
            self._look_around()
        return self._repaired - repaired

    def _sample(self) -> list[Piece]:
        pieces = sorted(self._reading.pieces)
        if not self._judged or self._events.swaps.is_empty():
            return pieces
        # Evenly over the day, and never the same ranges on two days.
        step = max(1, math.floor(1 / _SAMPLED_SHARE))
        chosen = set(pieces[self._reading.day.toordinal() % step % len(pieces) :: step]) if pieces else set()
        counts = Counter(each.logs for each in pieces)
        most = max(counts, default=0)
        if counts[most] > 1 and most >= _FEWEST_EQUAL:
            chosen |= {each for each in pieces if each.logs == most}
        return [each for each in pieces if each in chosen]

    # Judgement

    def _judge(self) -> DayProof:
        result = self._replay()
        gaps = [gap for gap in self._gaps(result) if not self._is_settled(gap)]
        doubts = list(self._doubts(gaps))
        if self._events.swaps.is_empty():
            doubts += self._doubts_of_empty_day(result)
        elif not self._judged and len(self._compared) < len(self._reading.pieces):
            doubts.append("the pool has hooks, so its swaps cannot be checked against each other")
        by = []
        ends = self._around.knows_before and self._around.knows_after
        if self._around.volume_fits(result):
            by.append("volume")
        elif self._around.volume_fits(result) is False and len(self._compared) < len(self._reading.pieces):
            doubts.append("the fees that the pool stored are not those of the swaps: a swap or a donation is missing")
        by += ["chain"] if self._judged and ends and not gaps and result.pairs else []
        by += ["state"] if self._around.has_states and not gaps else []
        agree = any(sum(isinstance(each, Endpoint) for each in sources) > 1 for sources in self._agreed.values())
        by += ["second endpoint"] if self._compared or (agree and not gaps) else []
        if self._reader.client.endpoints[0] and not by and not doubts:
            doubts.append("only one endpoint says that the day is complete, and nothing confirms it")
        return DayProof(
            tuple(by), tuple(doubts), result.pairs, result.pairs - len(result.gaps), len(self._compared), self._repaired
        )

    def _doubts(self, gaps: Iterable[Gap]) -> Iterator[str]:
        for gap in gaps:
            span = gap.first, gap.last
            sources = self._agreed.get(span) or self._givers(span)
            names = " and ".join(sorted({str(each) for each in sources})) or "the endpoints"
            is_end = gap.first == self._first or gap.last == self._last
            if gap.certain and len(sources) < 2:
                raise ChainError(
                    f"swaps are missing between blocks {gap.first} and {gap.last}: the price moved there, and {names} "
                    f"{'has' if len(sources) == 1 else 'have'} no swap that moved it, in whatever ranges the blocks "
                    f"are read.{' Its logs may be pruned, or it may lag.' if is_end else ''} Add an endpoint of "
                    "another provider to APEAGENT_RPC_URLS"
                )
            if is_end and self._is_improbable(gap.last - gap.first):
                raise ChainError(
                    f"{names} knows no swap in blocks {gap.first} to {gap.last}, which does not fit the rest of "
                    "the day: its logs may be pruned, or it may lag. Use an endpoint with the whole history, or "
                    "add one of another provider to APEAGENT_RPC_URLS"
                )
            where = f"blocks {gap.first} to {gap.last}"
            yield (
                f"only {names} says that no swap is missing in {where}"
                if len(sources) < 2
                else (f"a swap in {where} does not follow from the one before it, though {names} agree")
            )

    def _doubts_of_empty_day(self, result: Replay) -> list[str]:
        around = self._around
        stored = around.state_before is not None and around.state_before == around.state_after
        if stored or (result.pairs and not result.gaps and around.knows_before and around.knows_after):
            return []
        if around.has_states or self._compared < {(each.first, each.last) for each in self._reading.pieces}:
            names = " and ".join(sorted({str(each.endpoint) for each in self._reading.pieces}))
            raise ChainError(
                f"{names} knows no swap on {self._reading.day}, and nothing confirms that there was none: its logs may "
                "be pruned. Use an endpoint with the whole history, or add one of another provider to "
                "APEAGENT_RPC_URLS"
            )
        return []

    def _is_improbable(self, silence: int) -> bool:
        blocks = self._events.swaps["block_number"]
        if len(blocks) < _FEWEST_SWAPS_FOR_SILENCE:
            return False  # A pool with little trade may well be silent for the rest of the day: that stays a doubt.
        steps = blocks.diff().drop_nulls()
        longest, mean = steps.max(), steps.mean()
        assert isinstance(longest, int) and isinstance(mean, float)
        return silence > max(_LONG_SILENCE_LONGEST * longest, _LONG_SILENCE_MEANS * mean)
