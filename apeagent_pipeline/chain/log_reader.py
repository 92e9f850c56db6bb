"""Reads the events of a pool from endpoints, in pieces as large as each endpoint answers."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import polars as pl

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.chain.answers import Header, read_header, read_integer, read_transaction
from apeagent_pipeline.chain.day_reading import Piece, PoolEvents
from apeagent_pipeline.chain.endpoint import Call, Endpoint
from apeagent_pipeline.chain.events import (
    RAW_SWAPS_SCHEMA,
    SWAP_TOPIC,
    LogError,
    RawSwapsError,
    decode_swap_logs,
)
from apeagent_pipeline.chain.liquidity import LIQUIDITY_SCHEMA, LIQUIDITY_TOPIC, decode_liquidity_logs
from apeagent_pipeline.chain.range_size import RangeSize
from apeagent_pipeline.chain.rpc import RpcClient
from apeagent_pipeline.chain.rpc_errors import RpcError, RpcErrorKind, hinted_blocks, is_range_limit

_FAILURES_BEFORE_SPLIT = 3
SMALL_RANGE = 50
"""Blocks. Up to here, the head is not asked for with each range."""
_UNKNOWN_ERRORS_BEFORE_SPLIT, _UNKNOWN_ERRORS_BEFORE_WAITING = 3, 6
_TRANSACTION_STEP, _LOG_STEP = pl.col("transaction_index").diff(), pl.col("log_index").diff()
_COUNTED_PER_TRANSACTION = (
    (pl.col("block_number").diff() == 0) & ((_TRANSACTION_STEP < 0) | ((_LOG_STEP == 0) & (_TRANSACTION_STEP > 0)))
).any()

Accept = Callable[[Endpoint, PoolEvents, int, list[Any]], None]
"""Checks the events of a piece, its last block and the further blocks that were asked for with it, or raises."""

Headers = Callable[[int], list[Header]]
"""Headers to ask for again together with a piece that ends at a block."""


class LogReader:
    """Reads ranges of blocks from the endpoints of a client.

    Args:
        client: Endpoints of the pool's chain.
        pool: Whose events are read.
        range_blocks: Largest range of one request.
        transactions: Whether to ask for the sender and the recipient of each transaction.
        check: Makes sure that an endpoint serves the right chain before its first answer is used.
    """

    def __init__(
        self,
        client: RpcClient,
        pool: PoolSpec,
        range_blocks: int,
        transactions: bool,
        check: Callable[[Endpoint], None],
    ) -> None:
        self.client = client
        self.pool = pool
        self.sizes = {endpoint: RangeSize(range_blocks) for endpoint in client.endpoints}
        self._transactions = transactions
        self._check = check

    def read_range(
        self,
        first: int,
        last: int,
        *,
        accept: Accept,
        again: Headers = lambda end: [],
        avoid: Collection[Endpoint] = (),
        most_blocks: int | None = None,
        most_pieces: int | None = None,
    ) -> tuple[PoolEvents, list[Piece]]:
        """The events of a range, piece by piece.

        Args:
            first: First block.
            last: Last block.
            accept: Called with each piece before it counts.
            again: Headers to ask for together with a piece.
            avoid: Endpoints that must not answer.
            most_blocks: Largest piece; None: as large as the endpoint answers.
            most_pieces: Where to stop before the end of the range; None: nowhere.

        Raises:
            RpcError: if no endpoint answers.
        """
        found: list[PoolEvents] = []
        pieces: list[Piece] = []
        failures = 0

        def piece(endpoint: Endpoint) -> tuple[PoolEvents, Piece]:
            nonlocal failures
            self._check(endpoint)
            try:
                return self._read_piece(endpoint, first, last, accept=accept, again=again, most_blocks=most_blocks)
            except RpcError as error:
                # A range that is too large for a node may also end in a timeout or a cut-off answer, every time.
                if error.kind is RpcErrorKind.TRANSIENT:
                    failures += 1
                    if failures % _FAILURES_BEFORE_SPLIT == 0:
                        size = self.sizes[endpoint]
                        size.refused(min(size.blocks, last - first + 1), None, is_sure=False)
                raise

        while first <= last and len(pieces) != most_pieces:
            events, asked = self.client.ask(piece, avoid)
            found.append(events)
            pieces.append(asked)
            first, failures = asked.last + 1, 0
        return found[0] if len(found) == 1 else PoolEvents.joined(found), pieces

    def _read_piece(
        self, endpoint: Endpoint, first: int, last: int, *, accept: Accept, again: Headers, most_blocks: int | None
    ) -> tuple[PoolEvents, Piece]:
        size = self.sizes[endpoint]
        unknown_errors = 0
        while True:
            end = min(last, first + min(size.blocks, most_blocks or size.blocks) - 1)
            headers = again(end)
            try:
                # For the many small ranges of a free tier, a second call in each request would halve the pace.
                asks_head = bool(headers) or end - first + 1 > SMALL_RANGE
                logs, *rest = endpoint.results(
                    [
                        ("eth_getLogs", [self.query(first, end)]),
                        *([("eth_blockNumber", [])] if asks_head else []),
                        *(header_call(header) for header in headers),
                    ]
                )
            except RpcError as error:
                is_unknown = error.kind is RpcErrorKind.UNKNOWN
                unknown_errors += is_unknown
                if not is_unknown and error.kind is not RpcErrorKind.RANGE:
                    raise
                if is_unknown and unknown_errors < _UNKNOWN_ERRORS_BEFORE_SPLIT:
                    continue
                if is_unknown and (end == first or unknown_errors > _UNKNOWN_ERRORS_BEFORE_WAITING):
                    raise
                if end == first:
                    raise RpcError(f"{error}: it refuses even the single block {first}", RpcErrorKind.FATAL) from None
                hint = hinted_blocks(str(error), first, end)
                size.refused(end - first + 1, hint, is_limit=is_range_limit(str(error)), is_sure=not is_unknown)
                continue
            break
        with bad_answers_of(endpoint):
            if not isinstance(logs, list):
                raise LogError(f"the node answered eth_getLogs with {type(logs).__name__}, expected a list of logs")
            head = read_integer(rest.pop(0), "eth_blockNumber") if asks_head else end
            if head < end:
                raise LogError(f"the node lags: its head is block {head}, but blocks up to {end} were requested")
            events = self.decode(endpoint, logs)
            count = len(logs)
            del logs
            for table in (table for table in events if not table.is_empty()):
                # Sorted: if any event lies outside, the first or the last does.
                numbers = table["block_number"]
                outside = [number for number in (numbers[0], numbers[-1]) if not first <= number <= end]
                if outside:
                    raise LogError(
                        f"the node answered a question for blocks {first} to {end} with a log of block {outside[0]}"
                    )
            accept(endpoint, events, end, rest)
        size.answered(end - first + 1, events.total)
        return events, Piece(first, end, count, endpoint)

    def read_receipts(self, endpoint: Endpoint, first: int, last: int) -> PoolEvents:
        """The events of a few blocks from the receipts of their transactions, which no log index takes part in.

        Raises:
            RpcError: if the endpoint does not have the receipts.
        """

        def ask(endpoint: Endpoint) -> PoolEvents:
            blocks = endpoint.results([("eth_getBlockReceipts", [hex(number)]) for number in range(first, last + 1)])
            wanted = {SWAP_TOPIC, LIQUIDITY_TOPIC}, self.pool.pool_id.lower(), self.pool.pool_manager.lower()
            with bad_answers_of(endpoint):
                logs = [log for block in blocks for receipt in block for log in receipt["logs"] if _is(log, *wanted)]
                return self.decode(endpoint, logs)

        return self.client.ask(ask, [each for each in self.client.endpoints if each is not endpoint])

    def query(self, first: int, last: int) -> dict[str, Any]:
        """The filter of ``eth_getLogs`` for a range."""
        return {
            "address": self.pool.pool_manager,
            "topics": [[SWAP_TOPIC, LIQUIDITY_TOPIC], self.pool.pool_id],
            "fromBlock": hex(first),
            "toBlock": hex(last),
        }

    def decode(self, endpoint: Endpoint, logs: Sequence[Any]) -> PoolEvents:
        """The events of logs; timestamps and senders that the logs lack are asked of the same endpoint.

        Raises:
            LogError: if a log is malformed or does not belong to the pool.
            RpcError: if the endpoint does not answer.
        """
        if not logs:
            return PoolEvents.none()  # two of three ranges of a free tier
        changes = [log for log in logs if _first_topic(log) == LIQUIDITY_TOPIC]
        swaps = [log for log in logs if _first_topic(log) != LIQUIDITY_TOPIC] if changes else logs
        # `joined` drops what a node sent twice and sorts the rest.
        events = PoolEvents.joined(
            [PoolEvents(decode_swap_logs(swaps, self.pool), decode_liquidity_logs(changes, self.pool))]
        )
        moments = self._moments(endpoint, events)
        _check_order(events.swaps)
        timed = PoolEvents(*(_with_time(table, moments) for table in events))
        return PoolEvents(self._with_senders(endpoint, timed.swaps), timed.changes)

    def _moments(self, endpoint: Endpoint, events: PoolEvents) -> pl.DataFrame | None:
        # Newer nodes tell the timestamp with each log; for the others, one header for each block with a log is read.
        if not any(table["block_timestamp"].has_nulls() for table in events):
            return None
        untimed = pl.concat(
            [table.filter(pl.col("block_timestamp").is_null()).select("block_number") for table in events]
        )
        numbers = untimed["block_number"].unique().sort().to_list()
        blocks = endpoint.results([("eth_getBlockByNumber", [hex(number), False]) for number in numbers])
        headers = [read_header(block) for block in blocks]
        return pl.DataFrame(
            {
                "block_number": numbers,
                "block_hash": [header.hash for header in headers],
                "_timestamp": [datetime.fromtimestamp(header.timestamp, UTC) for header in headers],
            },
            schema_overrides={"_timestamp": RAW_SWAPS_SCHEMA["block_timestamp"]},
        )

    def _with_senders(self, endpoint: Endpoint, swaps: pl.DataFrame) -> pl.DataFrame:
        if not self._transactions or swaps.is_empty():
            return swaps
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
        return joined.with_columns(tx_from="_from", tx_to="_to").select(RAW_SWAPS_SCHEMA.names())


@contextlib.contextmanager
def bad_answers_of(endpoint: Endpoint) -> Iterator[None]:
    """Turn an answer that cannot be right into an error of its endpoint: it is asked again, or another one is."""
    try:
        yield
    except (LogError, RawSwapsError) as error:
        raise RpcError(f"{endpoint}: {error}", RpcErrorKind.TRANSIENT) from None


def header_call(header: Header) -> Call:
    """The call that reads a header again."""
    return "eth_getBlockByNumber", [hex(header.number), False]


def replaced_headers(endpoint: Endpoint, before: Sequence[Header], blocks: Sequence[Any]) -> list[Header]:
    """The headers whose block has another hash now."""
    with bad_answers_of(endpoint):
        after = [read_header(block, header.number) for header, block in zip(before, blocks, strict=True)]
    return [old for old, new in zip(before, after, strict=True) if old.hash != new.hash]


def _first_topic(log: Any) -> str | None:
    topics = log.get("topics") if isinstance(log, dict) else None
    return str(topics[0]).lower() if isinstance(topics, list) and topics else None


def _check_order(swaps: pl.DataFrame) -> None:
    """Within a block, log indices must ascend with the transactions: some nodes count them in each transaction."""
    if swaps.select(_COUNTED_PER_TRANSACTION).item():
        raise LogError(
            "the node counts log indices inside each transaction instead of inside each block, so the order of the "
            "swaps is unknown; use another endpoint"
        )


def _is(log: Any, events: Collection[str], pool: str, manager: str) -> bool:
    topics = log.get("topics") if isinstance(log, dict) else None
    if not isinstance(topics, list) or len(topics) < 2 or str(log.get("address")).lower() != manager:
        return False
    return topics[0].lower() in events and topics[1].lower() == pool


def _with_time(table: pl.DataFrame, moments: pl.DataFrame | None) -> pl.DataFrame:
    if moments is None:
        return table
    # Joined by hash too: the header of another fork must not lend its time to an event.
    joined = table.join(moments, on=["block_number", "block_hash"], how="left", maintain_order="left")
    timed = joined.with_columns(pl.coalesce("block_timestamp", "_timestamp").alias("block_timestamp"))
    if timed["block_timestamp"].has_nulls():
        raise LogError("the node answered with logs whose block hash is not that of the block's header")
    return timed.select((RAW_SWAPS_SCHEMA if "amount0" in table.columns else LIQUIDITY_SCHEMA).names())
