"""Reads one UTC day of swaps from a chain: all of them, each once, or an error.

Over 400 lines: the steps of reading a day share its ranges, endpoints and proof, and are read together.
"""

import contextlib
import logging
import re
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.chain.answers import Header, read_header, read_integer
from apeagent_pipeline.chain.day_estimate import DayEstimate, estimate, measure
from apeagent_pipeline.chain.day_reading import DayReading, Parts, Piece, PoolEvents
from apeagent_pipeline.chain.days import UTC, day_bounds, day_of, first_block_at_or_after
from apeagent_pipeline.chain.endpoint import Endpoint
from apeagent_pipeline.chain.endpoint_limits import EndpointLimits
from apeagent_pipeline.chain.errors import ChainError, DayNotFinalError, ReorganisedError
from apeagent_pipeline.chain.events import check_raw_swaps, empty_raw_swaps
from apeagent_pipeline.chain.liquidity import check_liquidity, empty_liquidity
from apeagent_pipeline.chain.log_reader import LogReader, bad_answers_of, header_call, replaced_headers
from apeagent_pipeline.chain.pacing import TimeLeft
from apeagent_pipeline.chain.proof import DayProof
from apeagent_pipeline.chain.range_size import RangeSize
from apeagent_pipeline.chain.rpc import RpcClient
from apeagent_pipeline.chain.rpc_errors import RpcError, RpcErrorKind
from apeagent_pipeline.chain.verification import Verification
from apeagent_pipeline.reporting.progress import Progress, silent

_log = logging.getLogger(__name__)

_TIMES_READ = 3
_SECONDS_BETWEEN_NEWS = 0.5


class WrongChainError(RpcError):
    """An endpoint serves another chain, or one without this PoolManager."""

    def __init__(self, message: str) -> None:
        super().__init__(message, RpcErrorKind.FATAL, is_hopeless=True)


class CollectorConfig(BaseModel):
    """How the chain is asked."""

    model_config = ConfigDict(frozen=True)

    range_blocks: int = Field(5_000, ge=1, le=100_000, description="Largest number of blocks in one request for logs")
    parallel: int = Field(4, ge=1, le=16, description="Largest number of requests at the same time")
    finality_depth: int = Field(
        1_800, ge=1, description="Blocks until a block counts as final, where the node knows no finalized or safe block"
    )
    transactions: bool = Field(
        False, description="Also read sender (tx_from) and recipient (tx_to) of each transaction"
    )


class DayEvents(NamedTuple):
    """What happened to the pool on a UTC day.

    Attributes:
        swaps: RAW_SWAPS_SCHEMA.
        changes: LIQUIDITY_SCHEMA.
        proof: Why the day counts as complete, or why that is in doubt.
    """

    swaps: pl.DataFrame
    changes: pl.DataFrame
    proof: DayProof


class Collector:
    """Reads days of one pool's swaps.

    Args:
        client: Endpoints of the pool's chain.
        pool: Which chain, contract and pool.
        config: Sizes of requests.
        parts: Folder in which the finished ranges of a day wait until the day is complete, so that a restart goes on
            where a killed run stopped; None keeps them in memory only.
        limits: What the endpoints are known to allow, and where it is kept; None keeps nothing.
    """

    def __init__(
        self,
        client: RpcClient,
        pool: PoolSpec,
        config: CollectorConfig | None = None,
        parts: Path | None = None,
        limits: EndpointLimits | None = None,
    ) -> None:
        self.client = client
        self.pool = pool
        self.config = config or CollectorConfig()
        self._parts = parts
        self._reader = LogReader(client, pool, self.config.range_blocks, self.config.transactions, self._check)
        self._checked: set[Endpoint] = set()
        self._final: Header | None = None
        self._headers: dict[int, Header] = {}
        self._block_seconds = 2.0
        self._limits = limits or EndpointLimits(None)
        self._limits.apply(self._reader.sizes)

    @property
    def splits(self) -> int:
        """How often a node refused a range, so far."""
        return sum(size.splits for size in self._reader.sizes.values())

    def check_chain(self) -> None:
        """Make sure that an endpoint serves the pool's chain and that the PoolManager stands there.

        Every endpoint is checked before its first answer is used; one that fails is left out.

        Raises:
            WrongChainError: if no endpoint is left.
        """
        self.client.ask(self._check)

    def final_block(self) -> Header:
        """The last block that cannot change any more: finalized, else safe, else a fixed depth below the head."""
        self._final = self.client.ask(self._final_block_of)
        return self._final

    def confirm(self, number: int, block_hash: str) -> None:
        """Make sure that a block is final, and the one that was read.

        Raises:
            DayNotFinalError: it may still change.
            ReorganisedError: another block stands in its place.
            RpcError: no endpoint answers.
        """
        final = self.final_block()
        if number > final.number:
            raise DayNotFinalError(f"block {number} is not final: the last final block is {final.number}")
        self._headers.pop(number, None)
        self._read_headers([number])
        found = self._headers[number].hash
        if found != block_hash:
            raise ReorganisedError(f"block {number} is {found} now, and was {block_hash} when it was read")

    def last_final_day(self) -> date:
        """The last UTC day that has ended and is final."""
        return day_of(self.final_block().timestamp) - timedelta(days=1)

    def block_range(self, day: date) -> tuple[int, int]:
        """First and last block of a UTC day; the last is below the first if the chain has none.

        Raises:
            DayNotFinalError: if the day's last block is not final yet.
        """
        start, end = day_bounds(day)
        final = self._final if self._final and self._final.timestamp >= end else self.final_block()
        if final.timestamp < end:
            final = self._latest_final_block(final)
        if final.timestamp < end:
            raise self._not_final(day, end, final)
        self._headers[final.number] = final
        # With a steady block time these four settle both borders, in one request.
        guesses = [final.number - int((final.timestamp - moment) // self._block_seconds) for moment in (start, end)]
        self._read_headers([number for guess in guesses for number in (guess - 1, guess) if 0 <= number < final.number])

        def timestamp_of(number: int) -> int:
            self._read_headers([number])
            return self._headers[number].timestamp

        first, after = (
            first_block_at_or_after(moment, final.number, timestamp_of, self._block_seconds) for moment in (start, end)
        )
        if after > first:
            self._block_seconds = (timestamp_of(after) - timestamp_of(first)) / (after - first) or self._block_seconds
        return first, after - 1

    def estimate(self) -> DayEstimate:
        """Ask an endpoint for a few ranges, and estimate a day from them. Remembered limits are measured again.

        Raises:
            RpcError: if no endpoint answers.
        """
        final = self._final or self.final_block()
        for endpoint in self.client.endpoints:
            endpoint.start_at(None, None)
            self._reader.sizes[endpoint] = RangeSize(self.config.range_blocks)
        self._limits.forget()
        found = measure(self._reader, final.number, self.config.range_blocks, self._block_seconds, self.config.parallel)
        self._limits.keep(self._reader.sizes)
        return found

    def known_estimate(self) -> DayEstimate | None:
        """What a day will take by the limits that are known of the first endpoint, or None. Asks nobody."""
        endpoint = self.client.endpoints[0]
        if not self._limits.knows(endpoint):
            return None
        return estimate(endpoint, self._reader.sizes[endpoint].blocks, self._block_seconds, 0.0)

    def read_day(self, day: date, progress: Progress = silent) -> pl.DataFrame:
        """Every swap of the pool on a UTC day; `read_events` without the liquidity changes and the proof."""
        return self.read_events(day, progress).swaps

    def read_events(self, day: date, progress: Progress = silent) -> DayEvents:
        """Every swap and every liquidity change of the pool on a UTC day.

        Args:
            day: The day.
            progress: Receives blocks done of all blocks, with swaps, requests, splits, retries and seconds left.

        Returns:
            Tables sorted and unique by (block_number, log_index), empty if nothing happened, and what proves them.

        Raises:
            ChainError: WrongChainError, DayNotFinalError, ReorganisedError, RpcError, or if events are missing that no
                endpoint has. A day is never returned in part.
        """
        try:
            for _ in range(_TIMES_READ - 1):
                with contextlib.suppress(ReorganisedError):
                    return self._read_day(day, progress)
                self._headers.clear()
                self._final = None
            return self._read_day(day, progress)
        finally:
            self._limits.keep(self._reader.sizes)

    def _read_day(self, day: date, progress: Progress) -> DayEvents:
        first, last = self.block_range(day)
        if last < first:
            return DayEvents(empty_raw_swaps(), empty_liquidity(), DayProof(("chain",)))
        self._read_headers([first, last])
        reading = DayReading(day, [self._headers[first], self._headers[last]])
        parts = Parts(self._parts, day, self._headers[last])
        try:
            events = self._read_parts(reading, parts, progress)
            events, proof = self._verify(reading, events)
        except ChainError as error:
            # Unless a node did not answer, what was read cannot be relied on.
            if not isinstance(error, RpcError):
                parts.remove()
            raise
        parts.remove()
        for doubt in proof.doubts:
            _log.warning("%s is unconfirmed: %s", day, doubt)
        return DayEvents(*events, proof)

    def _read_parts(self, reading: DayReading, parts: Parts, progress: Progress) -> PoolEvents:
        """The events of the day as its endpoints tell them, before any is verified."""
        first, last = (header.number for header in reading.borders)
        step = self.config.range_blocks
        ranges = [(start, min(start + step - 1, last)) for start in range(first, last + 1, step)]
        found = self._restore(reading, parts, ranges[:-1])
        time_left = TimeLeft(last - first + 1)

        def tell() -> None:
            done = reading.blocks
            seconds = time_left.after(done)
            progress(
                done,
                last - first + 1,
                swaps=reading.swaps,
                requests=self.client.requests,
                splits=self.splits,
                retries=self.client.retries,
                **({} if seconds is None else {"seconds_left": round(seconds)}),
            )

        def read(first: int, last: int) -> PoolEvents:
            events, pieces = self._read_range(reading, first, last)
            parts.write(first, last, events, {piece.endpoint.identity for piece in pieces})
            return events

        tell()
        missing = [blocks for blocks in ranges[:-1] if blocks not in found]
        # The very first range alone: it tells how much an answer holds before several of them come at once.
        alone = 0 if any(size.answers for size in self._reader.sizes.values()) else 1
        with ThreadPoolExecutor(self.config.parallel) as executor:
            try:
                for group in (missing[:alone], missing[alone:]):
                    futures = {executor.submit(read, *blocks): blocks for blocks in group}
                    pending = set(futures)
                    while pending:
                        done, pending = wait(pending, _SECONDS_BETWEEN_NEWS, FIRST_COMPLETED)
                        found |= {futures[future]: future.result() for future in done}
                        tell()
            except BaseException:
                self.client.stop_waiting()
                executor.shutdown(wait=True, cancel_futures=True)
                self.client.resume()
                raise
        # Alone and last, because this request also asks again for the blocks that everything before was read from.
        found[ranges[-1]] = self._read_range(reading, *ranges[-1])[0]
        self._read_replaced(reading, found)
        tell()
        return PoolEvents.joined(found[blocks] for blocks in ranges)

    def _restore(
        self, reading: DayReading, parts: Parts, ranges: Sequence[tuple[int, int]]
    ) -> dict[tuple[int, int], PoolEvents]:
        """The ranges that an earlier run finished, from endpoints that are still in use."""
        endpoints = {endpoint.identity: endpoint for endpoint in self.client.endpoints}
        found = {}
        for blocks in ranges:
            part = parts.read(*blocks, endpoints)
            if part is not None:
                found[blocks], sources = part
                reading.add(*blocks, part.events.swaps)
                reading.pieces.append(Piece(*blocks, part.events.total, endpoints[sources[0]]))
        return found

    def _verify(self, reading: DayReading, events: PoolEvents) -> tuple[PoolEvents, DayProof]:
        def accept(endpoint: Endpoint, found: PoolEvents, end: int, blocks: list[Any]) -> None:
            _check_events(found, reading.day)

        assert self._final is not None
        verification = Verification(self._reader, reading, accept, self._final.number, self.config.parallel)
        verified, proof = verification.run(events)
        _check_events(verified, reading.day)
        return verified, proof

    def _read_range(self, reading: DayReading, first: int, last: int) -> tuple[PoolEvents, list[Piece]]:
        asked: list[Header] = []

        def again(end: int) -> list[Header]:
            asked[:] = [*reading.borders, *reading.witnesses] if end == reading.borders[-1].number else []
            return asked

        def accept(endpoint: Endpoint, events: PoolEvents, end: int, blocks: list[Any]) -> None:
            _check_events(events, reading.day)
            replaced = replaced_headers(endpoint, asked if blocks else [], blocks)
            moved = [header.number for header in replaced if header in reading.borders]
            if moved:
                raise ReorganisedError(
                    f"{endpoint} first gave another hash for block {moved[0]}: the chain was reorganised below the "
                    "block that counted as final, or the endpoint's nodes do not agree; run the day again"
                )
            reading.replaced = [header.number for header in replaced]

        def counted(endpoint: Endpoint, events: PoolEvents, end: int, blocks: list[Any]) -> None:
            accept(endpoint, events, end, blocks)
            reading.add(events_first[0], end, events.swaps)
            events_first[0] = end + 1

        events_first = [first]
        events, pieces = self._reader.read_range(first, last, accept=counted, again=again)
        reading.pieces += pieces
        return events, pieces

    def _read_replaced(self, reading: DayReading, found: dict[tuple[int, int], PoolEvents]) -> None:
        """Read the ranges again whose blocks have another hash by now, or on another of the endpoint's nodes."""
        for _ in range(_TIMES_READ):
            if not reading.replaced:
                return
            doubtful = [blocks for blocks in found if any(blocks[0] <= each <= blocks[1] for each in reading.replaced)]
            for first, last in doubtful:
                reading.forget(first, last, found[first, last].swaps)
                found[first, last] = self._read_range(reading, first, last)[0]
            confirmed = [header for header in reading.witnesses if any(a <= header.number <= b for a, b in doubtful)]

            def ask(endpoint: Endpoint, headers: list[Header] = confirmed) -> list[Header]:
                self._check(endpoint)
                return replaced_headers(endpoint, headers, endpoint.results([header_call(each) for each in headers]))

            reading.replaced = [header.number for header in self.client.ask(ask)] if confirmed else []
        if reading.replaced:
            raise ReorganisedError(
                f"the nodes do not agree on block {reading.replaced[0]}: some of them follow another branch of the "
                "chain. Run the day again, or with another endpoint"
            )

    def _check(self, endpoint: Endpoint) -> None:
        if endpoint not in self._checked:
            self._meet(endpoint)

    def _meet(self, endpoint: Endpoint) -> Any:
        """Make sure that the endpoint serves this pool's chain; what it answers to ``finalized`` comes along."""
        chain_id, code, final = endpoint.send(
            [
                ("eth_chainId", []),
                ("eth_getCode", [self.pool.pool_manager, "latest"]),
                ("eth_getBlockByNumber", ["finalized", False]),
            ]
        )
        if isinstance(code, RpcError) and code.kind is not RpcErrorKind.RATE and not code.is_hopeless:
            code = "unknown"  # some nodes do not offer this method; a log of the pool says the same
        for answer, method in ((chain_id, "eth_chainId"), (code, "eth_getCode")):
            if isinstance(answer, RpcError):
                raise answer
            if not isinstance(answer, str):
                raise RpcError(f"{endpoint} answered {method} without a result", RpcErrorKind.TRANSIENT)
        with bad_answers_of(endpoint):
            found = read_integer(chain_id, "eth_chainId")
        if found != self.pool.chain_id:
            raise WrongChainError(
                f"{endpoint} serves chain {found}, expected {self.pool.chain_id}; check APEAGENT_RPC_URLS"
            )
        if code in ("0x", "0x0", ""):
            raise WrongChainError(
                f"{endpoint}: no contract stands at the PoolManager's address {self.pool.pool_manager} on chain "
                f"{found}; check APEAGENT_POOL_MANAGER"
            )
        self._checked.add(endpoint)
        return final

    def _latest_final_block(self, first: Header) -> Header:
        """The latest final block that any endpoint knows: the first one may have stopped to follow the chain."""
        found = [first]
        for endpoint in self.client.usable():
            others = [each for each in self.client.endpoints if each is not endpoint]
            with contextlib.suppress(RpcError):
                found.append(self.client.ask(self._final_block_of, others))
        self._final = max(found, key=lambda header: header.number)
        return self._final

    def _final_block_of(self, endpoint: Endpoint) -> Header:
        finalized = _known_block(self._meet(endpoint))
        with bad_answers_of(endpoint):
            if finalized is not None and read_header(finalized).number > 0:
                return read_header(finalized)
            # A node that never saw a finalized block answers with none, an error, or the genesis block.
            safe = _known_block(endpoint.send([("eth_getBlockByNumber", ["safe", False])])[0])
            if safe is not None and read_header(safe).number > 0:
                return read_header(safe)
            (head,) = endpoint.results([("eth_blockNumber", [])])
            number = max(read_integer(head, "eth_blockNumber") - self.config.finality_depth, 0)
            (block,) = endpoint.results([("eth_getBlockByNumber", [hex(number), False])])
            return read_header(block, number)

    def _read_headers(self, numbers: Sequence[int]) -> None:
        missing = sorted({number for number in numbers if number not in self._headers})
        if not missing:
            return

        def ask(endpoint: Endpoint) -> list[Header]:
            self._check(endpoint)
            blocks = endpoint.results([("eth_getBlockByNumber", [hex(number), False]) for number in missing])
            with bad_answers_of(endpoint):
                return [read_header(block, number) for number, block in zip(missing, blocks, strict=True)]

        self._headers |= {header.number: header for header in self.client.ask(ask)}

    def _not_final(self, day: date, end: int, final: Header) -> DayNotFinalError:
        if final.number == 0:
            return DayNotFinalError(
                f"{day} cannot be read: the endpoints know no final block but the chain's first one, so they are not "
                "synced. Wait until they are, or use other endpoints"
            )
        head = read_header(self.client.call("eth_getBlockByNumber", "latest", False))
        until = datetime.fromtimestamp(end + max(head.timestamp - final.timestamp, 0), UTC) + timedelta(minutes=1)
        at = datetime.fromtimestamp(final.timestamp, UTC)
        return DayNotFinalError(
            f"{day} is not final until about {until:%H:%M} UTC on {until.date()}: the chain's last final block is of "
            f"{at:%Y-%m-%d %H:%M} UTC. Run the command again then."
        )


def _known_block(answer: Any) -> Any:
    """What a node answers to a tag, or None if it does not know the tag; nodes say so in many ways."""
    if not isinstance(answer, RpcError):
        return answer
    if answer.kind is RpcErrorKind.FATAL or re.search("not found|unknown", str(answer), re.IGNORECASE):
        return None
    raise answer


def _check_events(events: PoolEvents, day: date) -> None:
    check_raw_swaps(events.swaps, day)
    check_liquidity(events.changes, day)
