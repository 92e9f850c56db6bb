"""Reads one UTC day of swaps from a chain: all of them, each once, or an error."""

import contextlib
import logging
import re
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.chain.answers import Header, read_header, read_integer, read_transaction
from apeagent_pipeline.chain.completeness import chain_rate
from apeagent_pipeline.chain.day_reading import DayReading, Parts
from apeagent_pipeline.chain.days import UTC, day_bounds, day_of, first_block_at_or_after
from apeagent_pipeline.chain.errors import ChainError, DayNotFinalError, ReorganisedError
from apeagent_pipeline.chain.events import (
    RAW_SWAPS_SCHEMA,
    SWAP_KEY,
    SWAP_TOPIC,
    LogError,
    RawSwapsError,
    check_raw_swaps,
    decode_swap_logs,
    empty_raw_swaps,
)
from apeagent_pipeline.chain.range_size import RangeSize
from apeagent_pipeline.chain.rpc import Call, Endpoint, RpcClient
from apeagent_pipeline.chain.rpc_errors import RpcError, RpcErrorKind, hinted_blocks
from apeagent_pipeline.reporting.progress import Progress, silent

_log = logging.getLogger(__name__)

_TIMES_READ = 3
_FAILURES_BEFORE_SPLIT = 3
_SECONDS_BETWEEN_NEWS = 0.5


class WrongChainError(RpcError):
    """An endpoint serves another chain, or one without this PoolManager."""

    def __init__(self, message: str) -> None:
        super().__init__(message, RpcErrorKind.FATAL)


class CollectorConfig(BaseModel):
    """How the chain is asked."""

    model_config = ConfigDict(frozen=True)

    range_blocks: int = Field(5_000, ge=1, le=100_000, description="Blocks a request for logs asks for at most")
    parallel: int = Field(4, ge=1, le=16, description="Requests at a time")
    finality_depth: int = Field(
        1_800, ge=1, description="Blocks until a block counts as final, where the node knows no finalized or safe block"
    )
    transactions: bool = Field(False, description="Ask also who sent each transaction (tx_from) and to whom (tx_to)")


class Collector:
    """Reads days of one pool's swaps.

    Args:
        client: Endpoints of the pool's chain.
        pool: Which chain, contract and pool.
        config: Sizes of requests.
        parts: Folder in which the finished ranges of a day wait until the day is complete, so that a restart goes on
            where a killed run stopped; None keeps them in memory only.
    """

    def __init__(
        self, client: RpcClient, pool: PoolSpec, config: CollectorConfig | None = None, parts: Path | None = None
    ) -> None:
        self.client = client
        self.pool = pool
        self.config = config or CollectorConfig()
        self._parts = parts
        self._sizes = {endpoint: RangeSize(self.config.range_blocks) for endpoint in client.endpoints}
        self._checked: set[Endpoint] = set()
        self._final: Header | None = None
        self._headers: dict[int, Header] = {}
        self._block_seconds = 2.0

    @property
    def splits(self) -> int:
        """How often a node refused a range, so far."""
        return sum(size.splits for size in self._sizes.values())

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

    def read_day(self, day: date, progress: Progress = silent) -> pl.DataFrame:
        """Every swap of the pool on a UTC day.

        Args:
            day: The day.
            progress: Told blocks done of all, with the swaps, requests, splits and retries so far.

        Returns:
            RAW_SWAPS_SCHEMA, sorted and unique by (block_number, log_index); empty if nobody swapped.

        Raises:
            ChainError: WrongChainError, DayNotFinalError, ReorganisedError, RpcError, or for a hole that the only
                endpoint leaves; never a partial day.
        """
        for _ in range(_TIMES_READ - 1):
            with contextlib.suppress(ReorganisedError):
                return self._read_day(day, progress)
            self._headers.clear()
            self._final = None
        return self._read_day(day, progress)

    def _read_day(self, day: date, progress: Progress) -> pl.DataFrame:
        first, last = self.block_range(day)
        if last < first:
            return empty_raw_swaps()
        self._read_headers([first, last])
        reading = DayReading(day, [self._headers[first], self._headers[last]])
        parts = Parts(self._parts, day, self._headers[last])
        step = self.config.range_blocks
        ranges = [(start, min(start + step - 1, last)) for start in range(first, last + 1, step)]
        found = {blocks: swaps for blocks in ranges[:-1] if (swaps := parts.read(*blocks)) is not None}
        for (start, end), swaps in found.items():
            reading.add(start, end, swaps)

        def tell() -> None:
            progress(
                reading.blocks,
                last - first + 1,
                swaps=reading.swaps,
                requests=self.client.requests,
                splits=self.splits,
                retries=self.client.retries,
            )

        def read(first: int, last: int) -> pl.DataFrame:
            swaps = self._range_swaps(reading, first, last)
            parts.write(first, last, swaps)
            return swaps

        tell()
        if len(ranges) > 1 and ranges[0] not in found and not any(size.answers for size in self._sizes.values()):
            # The very first one alone: it tells how much an answer holds before several of them come at once.
            found[ranges[0]] = read(*ranges[0])
        with ThreadPoolExecutor(self.config.parallel) as executor:
            futures = {executor.submit(read, *blocks): blocks for blocks in ranges[:-1] if blocks not in found}
            pending = set(futures)
            try:
                while pending:
                    done, pending = wait(pending, _SECONDS_BETWEEN_NEWS, FIRST_COMPLETED)
                    found |= {futures[future]: future.result() for future in done}
                    tell()
            except BaseException:
                executor.shutdown(wait=False, cancel_futures=True)
                raise
        try:
            # Alone and last, because it looks again at the blocks that everything before it was read from.
            found[ranges[-1]] = self._range_swaps(reading, *ranges[-1])
            self._read_replaced(reading, found)
            if len(self.client.endpoints) == 1:
                self._refuse_holes([(blocks, found[blocks]) for blocks in ranges])
        except ChainError as error:
            if not isinstance(error, RpcError):  # what was read is no good; otherwise a node did not answer
                parts.remove()
            raise
        tell()
        parts.remove()
        return pl.concat([found[blocks] for blocks in ranges])

    def _read_replaced(self, reading: DayReading, found: dict[tuple[int, int], pl.DataFrame]) -> None:
        """Read the ranges again whose blocks have another hash by now, or on another of the endpoint's nodes."""
        for _ in range(_TIMES_READ):
            if not reading.replaced:
                return
            doubtful = [blocks for blocks in found if any(blocks[0] <= each <= blocks[1] for each in reading.replaced)]
            for first, last in doubtful:
                reading.forget(first, last, found[first, last])
                found[first, last] = self._range_swaps(reading, first, last)
            confirmed = [header for header in reading.witnesses if any(a <= header.number <= b for a, b in doubtful)]

            def ask(endpoint: Endpoint, headers: list[Header] = confirmed) -> list[Header]:
                self._check(endpoint)
                return _replaced(endpoint, headers, endpoint.results([_header_call(each) for each in headers]))

            reading.replaced = [header.number for header in self.client.ask(ask)] if confirmed else []
        if reading.replaced:
            raise ReorganisedError(
                f"the nodes do not agree on block {reading.replaced[0]}: some of them follow another branch of the "
                "chain. Run the day again, or with another endpoint"
            )

    def _refuse_holes(self, ranges: list[tuple[tuple[int, int], pl.DataFrame]]) -> None:
        """Ranges without a swap that nobody else can confirm: believed unless the swaps around them contradict."""
        (endpoint,) = self.client.endpoints
        if all(swaps.is_empty() for _, swaps in ranges):
            _log.warning("%s knows no swap on this day, and there is no other endpoint to ask", endpoint)
        before: pl.DataFrame | None = None
        hole: tuple[int, int] | None = None
        for blocks, swaps in ranges:
            if swaps.is_empty():
                hole = hole or blocks
                continue
            if hole and before is not None and not self.pool.has_hooks:
                pair = chain_rate(pl.concat([before, swaps.head(1)]))
                if pair.judged > pair.followed:
                    raise ChainError(
                        f"{endpoint} knows no swap from block {hole[0]} on to block {blocks[0] - 1}, but the price has "
                        "moved meanwhile: swaps are missing. Add an endpoint of another provider to APEAGENT_RPC_URLS, "
                        "which will be asked for such ranges"
                    )
            before, hole = swaps.tail(1), None

    def _range_swaps(self, reading: DayReading, first: int, last: int) -> pl.DataFrame:
        swaps, asked = self._read_range(reading, first, last)
        if swaps.is_empty() and len(self.client.endpoints) == 1 and first < last:
            # Nobody else can be asked, so the same one is, in another way.
            reading.forget(first, last, swaps)
            middle = (first + last) // 2
            halves = [self._read_range(reading, *half)[0] for half in ((first, middle), (middle + 1, last))]
            if any(not half.is_empty() for half in halves):
                raise ChainError(
                    f"{_names(asked)} answered that blocks {first} to {last} hold no swap, and that half of them hold "
                    f"{sum(half.height for half in halves)}: its answers cannot be relied on, use another endpoint"
                )
        others = [endpoint for endpoint in self.client.endpoints if endpoint not in asked]
        if swaps.is_empty() and others:
            # Nodes have answered busy ranges with an empty list; another one has no reason to agree by mistake.
            reading.forget(first, last, swaps)
            try:
                swaps, witnesses = self._read_range(reading, first, last, avoid=asked)
            except RpcError as error:
                raise RpcError(
                    f"blocks {first} to {last} hold no swap according to {_names(asked)}; another endpoint was to "
                    f"confirm that, but {error}",
                    error.kind,
                ) from None
            if not swaps.is_empty():
                _log.warning(
                    "%s knows no swap in blocks %d to %d, but %s knows %d; these are taken",
                    *(_names(asked), first, last, _names(witnesses), swaps.height),
                )
        return swaps

    def _read_range(
        self, reading: DayReading, first: int, last: int, avoid: Collection[Endpoint] = ()
    ) -> tuple[pl.DataFrame, set[Endpoint]]:
        """The swaps of a range, piece by piece as the endpoints allow, and the endpoints that gave them."""
        pieces = []
        asked = set()
        failures = 0

        def piece(endpoint: Endpoint) -> tuple[pl.DataFrame, int, Endpoint]:
            nonlocal failures
            self._check(endpoint)
            try:
                return *self._read_piece(endpoint, reading, first, last), endpoint
            except RpcError as error:
                # A range that is too much for a node may also end in a timeout or a cut-off answer, every time.
                if error.kind is RpcErrorKind.TRANSIENT:
                    failures += 1
                    if failures % _FAILURES_BEFORE_SPLIT == 0:
                        size = self._sizes[endpoint]
                        size.refused(min(size.blocks, last - first + 1), None)
                raise

        while first <= last:
            swaps, end, endpoint = self.client.ask(piece, avoid)
            reading.add(first, end, swaps)
            pieces.append(swaps)
            asked.add(endpoint)
            first, failures = end + 1, 0
        return pl.concat(pieces), asked

    def _read_piece(self, endpoint: Endpoint, reading: DayReading, first: int, last: int) -> tuple[pl.DataFrame, int]:
        """The swaps from ``first`` on, as far as the endpoint goes at a time, and the block where that ends."""
        size = self._sizes[endpoint]
        while True:
            end = min(last, first + size.blocks - 1)
            query = {
                "address": self.pool.pool_manager,
                "topics": [SWAP_TOPIC, self.pool.pool_id],
                "fromBlock": hex(first),
                "toBlock": hex(end),
            }
            again = [*reading.borders, *reading.witnesses] if end == reading.borders[-1].number else []
            try:
                logs, head, *blocks = endpoint.results(
                    [
                        ("eth_getLogs", [query]),
                        ("eth_blockNumber", []),
                        *(_header_call(header) for header in again),
                    ]
                )
            except RpcError as error:
                if error.kind is not RpcErrorKind.RANGE:
                    raise
                if end == first:
                    raise RpcError(f"{error}: it refuses even the single block {first}", RpcErrorKind.FATAL) from None
                size.refused(end - first + 1, hinted_blocks(str(error), first, end))
                continue
            break
        with _bad_answers_of(endpoint):
            if not isinstance(logs, list):
                raise LogError(f"the node answered eth_getLogs with {type(logs).__name__}, expected a list of logs")
            if read_integer(head, "eth_blockNumber") < end:
                raise LogError(f"the node lags: its head is block {int(head, 16)}, the question went up to {end}")
            swaps = decode_swap_logs(logs, self.pool)
            del logs
            outside = swaps.filter(~pl.col("block_number").is_between(first, end))
            if not outside.is_empty():
                raise LogError(
                    f"the node answered a question for blocks {first} to {end} with a log of block "
                    f"{outside['block_number'][0]}"
                )
            swaps = self._complete(endpoint, swaps.unique(maintain_order=True).sort(SWAP_KEY))
            check_raw_swaps(swaps, reading.day)
        replaced = _replaced(endpoint, again, blocks)
        moved = [header.number for header in replaced if header in reading.borders]
        if moved:
            raise ReorganisedError(
                f"{endpoint} first gave another hash for block {moved[0]}: the chain was reorganised below the block "
                "that counted as final, or the endpoint's nodes do not agree; run the day again"
            )
        reading.replaced = [header.number for header in replaced]
        size.answered(end - first + 1, swaps.height)
        return swaps, end

    def _complete(self, endpoint: Endpoint, swaps: pl.DataFrame) -> pl.DataFrame:
        """Fill in what the logs do not tell, from the same endpoint."""
        # Newer nodes give the timestamp with the log; for the others one header a block with swaps is asked for.
        numbers = swaps.filter(pl.col("block_timestamp").is_null())["block_number"].unique().sort().to_list()
        if numbers:
            blocks = endpoint.results([("eth_getBlockByNumber", [hex(number), False]) for number in numbers])
            headers = [read_header(block) for block in blocks]
            found = pl.DataFrame(
                {
                    "block_number": numbers,
                    "block_hash": [header.hash for header in headers],
                    "_timestamp": [datetime.fromtimestamp(header.timestamp, UTC) for header in headers],
                },
                schema_overrides={"_timestamp": swaps.schema["block_timestamp"]},
            )
            # Joined by hash too: a header of another fork must not lend its time to a swap.
            joined = swaps.join(found, on=["block_number", "block_hash"], how="left", maintain_order="left")
            swaps = joined.with_columns(pl.coalesce("block_timestamp", "_timestamp").alias("block_timestamp"))
            swaps = swaps.select(RAW_SWAPS_SCHEMA.names())
            if swaps["block_timestamp"].has_nulls():
                raise LogError("the node answered with logs whose block hash is not that of the block's header")
        if self.config.transactions and not swaps.is_empty():
            hashes = swaps["transaction_hash"].unique(maintain_order=True).to_list()
            sent = endpoint.results([("eth_getTransactionByHash", [each]) for each in hashes])
            people = pl.DataFrame(
                [read_transaction(each) for each in sent],
                schema=["transaction_hash", "block_hash", "_from", "_to"],
                orient="row",
                schema_overrides={"_to": pl.String()},
            )
            joined = swaps.join(people, on=["transaction_hash", "block_hash"], how="left", maintain_order="left")
            if joined["_from"].has_nulls():
                raise LogError("the node answered with transactions that are not those of its logs")
            swaps = joined.with_columns(tx_from="_from", tx_to="_to").select(RAW_SWAPS_SCHEMA.names())
        return swaps

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
        for answer, method in ((chain_id, "eth_chainId"), (code, "eth_getCode")):
            if isinstance(answer, RpcError):
                raise answer
            if not isinstance(answer, str):
                raise RpcError(f"{endpoint} answered {method} without a result", RpcErrorKind.TRANSIENT)
        with _bad_answers_of(endpoint):
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

    def _final_block_of(self, endpoint: Endpoint) -> Header:
        finalized = _known_block(self._meet(endpoint))
        with _bad_answers_of(endpoint):
            if finalized is not None:
                return read_header(finalized)
            safe = _known_block(endpoint.send([("eth_getBlockByNumber", ["safe", False])])[0])
            if safe is not None:
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
            with _bad_answers_of(endpoint):
                return [read_header(block, number) for number, block in zip(missing, blocks, strict=True)]

        self._headers |= {header.number: header for header in self.client.ask(ask)}

    def _not_final(self, day: date, end: int, final: Header) -> DayNotFinalError:
        head = read_header(self.client.call("eth_getBlockByNumber", "latest", False))
        until = datetime.fromtimestamp(end + max(head.timestamp - final.timestamp, 0), UTC) + timedelta(minutes=1)
        at = datetime.fromtimestamp(final.timestamp, UTC)
        return DayNotFinalError(
            f"{day} is not final until about {until:%H:%M} UTC on {until.date()}: the chain's last final block is of "
            f"{at:%Y-%m-%d %H:%M} UTC. Run it again then."
        )


@contextlib.contextmanager
def _bad_answers_of(endpoint: Endpoint) -> Iterator[None]:
    """Answers that cannot be right are the endpoint's trouble: it is asked again, or another one is."""
    try:
        yield
    except (LogError, RawSwapsError) as error:
        raise RpcError(f"{endpoint}: {error}", RpcErrorKind.TRANSIENT) from None


def _known_block(answer: Any) -> Any:
    """What a node answers to a tag, or None if it does not know the tag; nodes say so in many ways."""
    if not isinstance(answer, RpcError):
        return answer
    if answer.kind is RpcErrorKind.FATAL or re.search("not found|unknown", str(answer), re.IGNORECASE):
        return None
    raise answer


def _names(endpoints: Collection[Endpoint]) -> str:
    return " and ".join(sorted(str(endpoint) for endpoint in endpoints))


def _header_call(header: Header) -> Call:
    return "eth_getBlockByNumber", [hex(header.number), False]


def _replaced(endpoint: Endpoint, before: Sequence[Header], blocks: Sequence[Any]) -> list[Header]:
    """The headers whose block has another hash now."""
    with _bad_answers_of(endpoint):
        after = [read_header(block, header.number) for header, block in zip(before, blocks, strict=True)]
    return [old for old, new in zip(before, after, strict=True) if old.hash != new.hash]
