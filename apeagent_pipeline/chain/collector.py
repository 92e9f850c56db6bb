"""Reads one UTC day of swaps from a chain: all of them, each once, or an error."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple, Self

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.chain.days import UTC, day_bounds, day_of, first_block_at_or_after
from apeagent_pipeline.chain.errors import ChainError
from apeagent_pipeline.chain.events import SWAP_KEY, SWAP_TOPIC, check_raw_swaps, decode_swap_logs, empty_raw_swaps
from apeagent_pipeline.chain.rpc import RpcClient
from apeagent_pipeline.chain.rpc_errors import RpcError, RpcErrorKind
from apeagent_pipeline.reporting.progress import Progress, silent


class WrongChainError(ChainError):
    """The endpoint serves another chain, or one without this PoolManager."""


class DayNotFinalError(ChainError):
    """The day may still change; the message says when it will not."""


class CollectorConfig(BaseModel):
    """How the chain is asked."""

    model_config = ConfigDict(frozen=True)

    range_blocks: int = Field(5_000, ge=1, le=100_000, description="Blocks a request for logs asks for at first")
    parallel: int = Field(4, ge=1, le=16, description="Requests at a time")
    finality_depth: int = Field(
        1_800, ge=1, description="Blocks until a block counts as final, where the node knows no finalized or safe block"
    )

    @classmethod
    def preset(cls, profile: str) -> Self:
        """The same for every profile: a node does not care."""
        return cls()


class Header(NamedTuple):
    """What is needed of a block header."""

    number: int
    timestamp: int


class Collector:
    """Reads days of one pool's swaps.

    Args:
        client: Endpoints of the pool's chain.
        pool: Which chain, contract and pool.
        config: Sizes of requests.
    """

    def __init__(self, client: RpcClient, pool: PoolSpec, config: CollectorConfig | None = None) -> None:
        self.client = client
        self.pool = pool
        self.config = config or CollectorConfig()
        self._checked = False
        self._range_blocks = self.config.range_blocks

    def check_chain(self) -> None:
        """Make sure, once, that the endpoint serves the pool's chain and that the PoolManager stands there.

        Raises:
            WrongChainError: if not.
        """
        if self._checked:
            return
        chain_id = _integer(self.client.call("eth_chainId"), "eth_chainId")
        if chain_id != self.pool.chain_id:
            raise WrongChainError(
                f"the endpoint serves chain {chain_id}, expected {self.pool.chain_id}; check APEAGENT_RPC_URLS"
            )
        if self.client.call("eth_getCode", self.pool.pool_manager, "latest") in ("0x", "0x0", ""):
            raise WrongChainError(
                f"no contract stands at the PoolManager's address {self.pool.pool_manager} on chain {chain_id}; "
                "check APEAGENT_POOL_MANAGER"
            )
        self._checked = True

    def final_block(self) -> Header:
        """The last block that cannot change any more: finalized, else safe, else a fixed depth below the head."""
        for tag in ("finalized", "safe"):
            try:
                block = self.client.call("eth_getBlockByNumber", tag, False, required=False)
            except RpcError as error:
                # A node that does not know the tag says so in many ways; other errors were repeated and are real.
                if error.kind is not RpcErrorKind.FATAL:
                    raise
                block = None
            if block is not None:
                return _header(block)
        return self._header_of(max(self._head() - self.config.finality_depth, 0))

    def last_final_day(self) -> date:
        """The last UTC day that has ended and is final."""
        return day_of(self.final_block().timestamp) - timedelta(days=1)

    def block_range(self, day: date) -> tuple[int, int]:
        """First and last block of a UTC day; the last is below the first if the chain has none.

        Raises:
            DayNotFinalError: if the day's last block is not final yet.
        """
        start, end = day_bounds(day)
        final = self.final_block()
        if final.timestamp < end:
            raise self._not_final(day, end, final)
        known = {final.number: final.timestamp}

        def timestamp_of(number: int) -> int:
            if number not in known:
                known[number] = self._header_of(number).timestamp
            return known[number]

        first = first_block_at_or_after(start, final.number, timestamp_of)
        return first, first_block_at_or_after(end, final.number, timestamp_of) - 1

    def read_day(self, day: date, progress: Progress = silent) -> pl.DataFrame:
        """Every swap of the pool on a UTC day.

        Args:
            day: The day.
            progress: Told blocks done of all, with the swaps, requests and retries so far.

        Returns:
            RAW_SWAPS_SCHEMA, sorted and unique by (block_number, log_index); empty if nobody swapped.

        Raises:
            ChainError: WrongChainError, DayNotFinalError, RpcError, LogError or RawSwapsError; never a partial day.
        """
        self.check_chain()
        first, last = self.block_range(day)
        if last < first:
            return empty_raw_swaps()
        logs = self._logs(first, last, progress)
        swaps = decode_swap_logs(logs, self.pool)
        outside = swaps.filter(~pl.col("block_number").is_between(first, last))
        if not outside.is_empty():
            raise ChainError(
                f"the node answered a question for blocks {first} to {last} with a log of block "
                f"{outside['block_number'][0]}; use another endpoint"
            )
        swaps = self._with_timestamps(swaps).unique(maintain_order=True).sort(SWAP_KEY)
        check_raw_swaps(swaps, day)
        return swaps

    def _logs(self, first: int, last: int, progress: Progress) -> list[Mapping[str, Any]]:
        total, done = last - first + 1, 0
        starts = range(first, last + 1, self.config.range_blocks)
        parts: dict[int, list[Mapping[str, Any]]] = {}
        swaps = 0
        with ThreadPoolExecutor(self.config.parallel) as executor:
            futures = {
                executor.submit(self._range_logs, start, min(start + self.config.range_blocks - 1, last)): start
                for start in starts
            }
            try:
                for future in as_completed(futures):
                    start = futures[future]
                    parts[start] = future.result()
                    done += min(start + self.config.range_blocks - 1, last) - start + 1
                    swaps += len(parts[start])
                    progress(done, total, swaps=swaps, requests=self.client.requests, retries=self.client.retries)
            except BaseException:
                executor.shutdown(wait=False, cancel_futures=True)
                raise
        return [log for start in starts for log in parts[start]]

    def _range_logs(self, first: int, last: int) -> list[Mapping[str, Any]]:
        logs: list[Mapping[str, Any]] = []
        while first <= last:
            # Shared by the workers: what one of them learned about the node's limit spares the others the refusal.
            end = min(last, first + self._range_blocks - 1)
            query = {
                "address": self.pool.pool_manager,
                "topics": [SWAP_TOPIC, self.pool.pool_id],
                "fromBlock": hex(first),
                "toBlock": hex(end),
            }
            try:
                answer = self.client.call("eth_getLogs", query)
            except RpcError as error:
                if error.kind is not RpcErrorKind.RANGE:
                    raise
                if end == first:
                    raise ChainError(f"the node refuses even the single block {first}: {error}") from None
                self._range_blocks = max(1, min(self._range_blocks, (end - first + 1) // 2))
                continue
            if not isinstance(answer, list):
                raise ChainError(f"the node answered eth_getLogs with {type(answer).__name__}, expected a list of logs")
            logs += answer
            first = end + 1
        return logs

    def _with_timestamps(self, swaps: pl.DataFrame) -> pl.DataFrame:
        # Newer nodes give the timestamp with the log; for the others one header a block with swaps is asked for.
        numbers = swaps.filter(pl.col("block_timestamp").is_null())["block_number"].unique().sort().to_list()
        if not numbers:
            return swaps
        blocks = self.client.call_many("eth_getBlockByNumber", [(hex(number), False) for number in numbers])
        headers = [_header(block) for block in blocks]
        if [header.number for header in headers] != numbers:
            raise ChainError("the node answered with headers of other blocks than were asked for; use another endpoint")
        moments = [datetime.fromtimestamp(header.timestamp, UTC) for header in headers]
        asked = pl.DataFrame(
            {"block_number": numbers, "_header_timestamp": moments},
            schema={"block_number": pl.Int64(), "_header_timestamp": swaps.schema["block_timestamp"]},
        )
        joined = swaps.join(asked, on="block_number", how="left", maintain_order="left")
        filled = pl.col("block_timestamp").fill_null(pl.col("_header_timestamp"))
        return joined.with_columns(filled.alias("block_timestamp")).drop("_header_timestamp")

    def _not_final(self, day: date, end: int, final: Header) -> DayNotFinalError:
        head = self._header_of(self._head())
        until = datetime.fromtimestamp(end + max(head.timestamp - final.timestamp, 0), UTC) + timedelta(minutes=1)
        at = datetime.fromtimestamp(final.timestamp, UTC)
        return DayNotFinalError(
            f"{day} is not final until about {until:%H:%M} UTC on {until.date()}: the chain's last final block is of "
            f"{at:%Y-%m-%d %H:%M} UTC. Run it again then."
        )

    def _head(self) -> int:
        return _integer(self.client.call("eth_blockNumber"), "eth_blockNumber")

    def _header_of(self, number: int) -> Header:
        header = _header(self.client.call("eth_getBlockByNumber", hex(number), False))
        if header.number != number:
            raise ChainError(f"the node answered with block {header.number} instead of {number}; use another endpoint")
        return header


def _header(block: Any) -> Header:
    if not isinstance(block, dict):
        raise ChainError(f"the node answered with {type(block).__name__}, expected a block")
    return Header(_integer(block.get("number"), "block.number"), _integer(block.get("timestamp"), "block.timestamp"))


def _integer(value: Any, what: str) -> int:
    try:
        return int(value, 16)
    except (TypeError, ValueError):
        raise ChainError(f"the node answered {what} with {value!r}, expected a hex number") from None
