"""Where swaps come from, chosen by the settings: the embedded chain, an archive, or a node."""

import time
from collections.abc import Callable, Iterable
from datetime import date, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import polars as pl

from apeagent_pipeline.amm.pool_spec import DynamicFeeError, PoolSpec
from apeagent_pipeline.chain.archive import SwapArchive
from apeagent_pipeline.chain.archive.day_checks import between
from apeagent_pipeline.chain.archive.swap_archive import IMPORT_VERSION
from apeagent_pipeline.chain.day_records import DayRecords, notes_of
from apeagent_pipeline.chain.days import FIRST_DAY
from apeagent_pipeline.chain.events import check_raw_swaps
from apeagent_pipeline.chain.liquidity import empty_liquidity
from apeagent_pipeline.chain.pool_lookup import ChosenPool, chosen_pool
from apeagent_pipeline.reporting.progress import Progress, silent
from apeagent_pipeline.settings import Settings, SettingsError, is_web_address

if TYPE_CHECKING:
    from apeagent_pipeline.chain.collector import Collector
    from apeagent_pipeline.chain.rpc import RpcClient

DEMO_DAYS = 5


class SwapSource(Protocol):
    """Anything that gives days of raw swaps."""

    @property
    def name(self) -> str:
        """``embedded``, ``archive`` or ``rpc``."""
        ...

    @property
    def pool(self) -> PoolSpec:
        """Whose swaps these are."""
        ...

    def confirm(self, block_number: int, block_hash: str) -> None:
        """Make sure that a block that was read is final, as far as the source can tell.

        Raises:
            ChainError: DayNotFinalError or ReorganisedError, or a node does not answer.
        """
        ...

    def fingerprint(self) -> str:
        """What the data depends on: equal fingerprints give equal days. Holds no URL and no path."""
        ...

    def days(self) -> tuple[date, date]:
        """First and last day that can be given in full. A node is asked for it."""
        ...

    def demo_days(self) -> tuple[date, date]:
        """First and last day of the range that the demo uses."""
        ...

    def read_day(self, day: date, progress: Progress = silent) -> pl.DataFrame:
        """All swaps of one UTC day, RAW_SWAPS_SCHEMA, checked.

        Raises:
            ChainError: if the day cannot be given in full.
        """
        ...

    def read_liquidity(self, day: date, progress: Progress = silent) -> pl.DataFrame:
        """All liquidity changes of one UTC day, LIQUIDITY_SCHEMA, checked; empty if the source does not have them.

        Raises:
            ChainError: if the day cannot be given in full.
        """
        ...

    def day_notes(self, day: date) -> dict[str, Any]:
        """Figures and sentences about a day that was read, for people; empty where the source has none."""
        ...


class ArchiveSource:
    """Swaps imported from files.

    Args:
        pool: Whose swaps are wanted.
        path: A file, or a folder of files.
        flips_signs: Whether the amounts have the pool's signs.
        cache: Folder that keeps the imported days, so that a run of many days reads the files once.
    """

    name = "archive"

    def __init__(self, pool: PoolSpec, path: Path, *, flips_signs: bool = False, cache: Path | None = None) -> None:
        self.pool = pool
        self._flips = flips_signs
        self._archive = SwapArchive(path, pool, flips_signs=flips_signs, cache=cache)

    def confirm(self, block_number: int, block_hash: str) -> None:
        """Nobody can be asked: the archive is what it is."""

    def fingerprint(self) -> str:
        """Depends on the importer's version, the files' contents, the pool, and whether signs are flipped."""
        signs = "-pool-signs" if self._flips else ""
        return f"archive-v{IMPORT_VERSION}-{self._archive.content_hash}-{self.pool.chain_id}-{self.pool.pool_id}{signs}"

    def days(self) -> tuple[date, date]:
        """First and last day with a swap."""
        return self._archive.span()

    def demo_days(self) -> tuple[date, date]:
        """The whole span."""
        return self.days()

    def read_day(self, day: date, progress: Progress = silent) -> pl.DataFrame:
        """The swaps of a day, from memory after the first call.

        Raises:
            ArchiveError: if the archive is malformed or the day lies outside it.
        """
        swaps = self._archive.read_day(day)
        check_raw_swaps(swaps, day)
        progress(1, 1, swaps=swaps.height)
        return swaps

    def read_liquidity(self, day: date, progress: Progress = silent) -> pl.DataFrame:
        """None: archives hold swaps."""
        return empty_liquidity()

    def day_notes(self, day: date) -> dict[str, Any]:
        """How well the arithmetic confirms the day, and what may be missing.

        Raises:
            ArchiveError: as `read_day`.
        """
        notes = self._archive.notes(day)
        return {
            "confirmed_swaps": notes.confirmed,
            "testable_swaps": notes.tested,
            "gaps": notes.gaps,
            "swaps_missing": between(notes.missing) if notes.missing else "none",
            "undecided_gaps": notes.undecided,
            "swaps_perhaps_missing": between(notes.perhaps_missing) if notes.perhaps_missing else "none",
            "merged_rows": notes.duplicates,
            "notes": "; ".join(notes.notes) or "none",
        }


class EmbeddedSource:
    """Swaps of the chain that lives in this process, read like any other chain."""

    name = "embedded"

    def __init__(self, pool: PoolSpec, seed: int, now: Callable[[], float] = time.time) -> None:
        self.pool = pool
        self.seed = seed
        self._now = now
        self._notes: dict[date, dict[str, Any]] = {}
        self._changes: dict[date, pl.DataFrame] = {}

    @cached_property
    def _collector(self) -> "Collector":
        # Here and below: web3 is imported when a chain is read, not when the graph is loaded.
        from apeagent_pipeline.chain.collector import Collector
        from apeagent_pipeline.chain.embedded import EmbeddedChainProvider
        from apeagent_pipeline.chain.rpc import RpcClient

        return Collector(RpcClient([EmbeddedChainProvider(self.seed, self.pool, self._now)]), self.pool)

    def confirm(self, block_number: int, block_hash: str) -> None:
        """As the collector says."""
        self._collector.confirm(block_number, block_hash)

    def fingerprint(self) -> str:
        """Depends on the simulation's version, the seed and the pool."""
        from apeagent_pipeline.chain.market_simulation import SIMULATION_VERSION

        return f"embedded-v{SIMULATION_VERSION}-seed{self.seed}-{self.pool.chain_id}-{self.pool.pool_id}"

    def days(self) -> tuple[date, date]:
        """From the first partition to the last day that the clock made final."""
        return FIRST_DAY, self._collector.last_final_day()

    def demo_days(self) -> tuple[date, date]:
        """The first five days, on every machine and at any time."""
        return FIRST_DAY, FIRST_DAY + timedelta(days=DEMO_DAYS - 1)

    def read_day(self, day: date, progress: Progress = silent) -> pl.DataFrame:
        """The swaps of a day.

        Raises:
            ChainError: if the day is not final yet.
        """
        events = self._collector.read_events(day, progress)
        self._notes[day] = notes_of(events.proof)
        self._changes[day] = events.changes
        return events.swaps

    def read_liquidity(self, day: date, progress: Progress = silent) -> pl.DataFrame:
        """The liquidity changes of a day.

        Raises:
            ChainError: if the day is not final yet.
        """
        found = self._changes.pop(day, None)
        return self._collector.read_events(day, progress).changes if found is None else found

    def day_notes(self, day: date) -> dict[str, Any]:
        """The proof of a day that this process has read."""
        return self._notes.get(day, {})


class RpcSource:
    """Swaps read from nodes over JSON-RPC.

    Args:
        chosen: Chain, contract and pool.
        settings: With one or more endpoints of the same chain, and how to ask them.
    """

    name = "rpc"

    def __init__(self, chosen: ChosenPool, settings: Settings) -> None:
        self._chosen = chosen
        self._settings = settings

    @cached_property
    def pool(self) -> PoolSpec:
        """Whose swaps these are. A node is asked the first time, if the settings do not tell all of it.

        Raises:
            ChainError: if no endpoint can tell.
        """
        return self._chosen.from_chain(self._client, self._settings.home.absolute() / "cache" / "pools")

    @cached_property
    def _client(self) -> "RpcClient":
        from apeagent_pipeline.chain.rpc import MaskedHTTPProvider, RpcClient

        urls = self._settings.rpc_urls
        providers = [
            MaskedHTTPProvider(url, f"RPC endpoint {position} of {len(urls)}") for position, url in enumerate(urls, 1)
        ]
        return RpcClient(providers, requests_per_second=self._settings.rpc_requests_per_second)

    @cached_property
    def _collector(self) -> "Collector":
        from apeagent_pipeline.chain.collector import Collector, CollectorConfig
        from apeagent_pipeline.chain.endpoint_limits import EndpointLimits

        settings = self._settings
        config = CollectorConfig(
            range_blocks=settings.rpc_range_blocks,
            finality_depth=settings.rpc_finality_depth,
            transactions=settings.rpc_transactions,
        )
        cache = settings.home.absolute() / "cache"
        parts, limits = cache / "ranges" / self.fingerprint(), EndpointLimits(cache / "endpoints")
        return Collector(self._client, self.pool, config, parts, limits)

    @cached_property
    def _records(self) -> DayRecords:
        return DayRecords(self._settings.home.absolute() / "cache" / "days" / self.fingerprint())

    def confirm(self, block_number: int, block_hash: str) -> None:
        """As the collector says.

        Raises:
            ChainError: as `SwapSource.confirm`.
        """
        self._collector.confirm(block_number, block_hash)

    def fingerprint(self) -> str:
        """Depends on chain, PoolManager and pool: a final day is the same on every node."""
        transactions = "-transactions" if self._settings.rpc_transactions else ""
        chosen = self._chosen
        return f"rpc-{chosen.chain_id}-{chosen.pool_manager.lower()}-{chosen.pool_id}{transactions}"

    def days(self) -> tuple[date, date]:
        """From the first partition to the last final day.

        Raises:
            ChainError: if no endpoint answers or it serves another chain.
        """
        self._collector.check_chain()
        return FIRST_DAY, self._collector.last_final_day()

    def demo_days(self) -> tuple[date, date]:
        """The last five final days.

        Raises:
            ChainError: as `days`.
        """
        first, last = self.days()
        return max(first, last - timedelta(days=DEMO_DAYS - 1)), last

    def read_day(self, day: date, progress: Progress = silent) -> pl.DataFrame:
        """The swaps of a day.

        Raises:
            ChainError: if the day is not final, or could not be read in full.
        """
        events = self._collector.read_events(day, progress)
        self._records.keep(day, events.proof, events.changes)
        return events.swaps

    def read_liquidity(self, day: date, progress: Progress = silent) -> pl.DataFrame:
        """The liquidity changes of a day, as they came with its swaps; read again if they were not kept.

        Raises:
            ChainError: as `read_day`.
        """
        kept = self._records.changes(day)
        if kept is None:
            self.read_day(day, progress)
            kept = self._records.changes(day)
            assert kept is not None
        return kept

    def plan(self, days: int) -> str:
        """What some days will take. A node is asked if its limits are not known from the last week."""
        from apeagent_pipeline.chain.errors import ChainError

        try:
            day = self._collector.known_estimate() or self._collector.estimate()
        except ChainError as error:
            return f"the time for {days} days is unknown: {error}"
        minutes = max(days * day.seconds / 60, 0.1)
        return (
            f"{days} {'day' if days == 1 else 'days'} from {day.endpoint}, {day.limits}: about "
            f"{days * day.requests:,} requests and {minutes:.1f} minutes"
        )

    def estimate(self) -> str:
        """How many blocks a request may ask for, how fast, and what a day will take. Asks a node, whatever is known.

        Raises:
            ChainError: if no endpoint answers.
        """
        return str(self._collector.estimate())

    def day_notes(self, day: date) -> dict[str, Any]:
        """The proof of a day, from whichever process read it last on this machine."""
        return self._records.notes(day)


def unconfirmed_days(source: SwapSource, days: Iterable[str]) -> dict[str, str]:
    """Days whose completeness could not be proven, each with the doubt; days of files are never in doubt.

    Args:
        source: Where the days were read.
        days: Stored days.
    """
    if isinstance(source, ArchiveSource):
        return {}
    notes = {day: source.day_notes(date.fromisoformat(day)) for day in days}
    return {
        day: str(each["notes"]).removeprefix("unconfirmed: ")
        for day, each in notes.items()
        if each.get("confirmed") is False
    }


def open_swap_source(settings: Settings) -> SwapSource:
    """The source that the settings choose. Reads no file and asks no node yet.

    Raises:
        SettingsError: if two sources are set, a URL is none, or the pool is not described well enough.
    """
    if settings.swaps_archive is not None and settings.rpc_urls:
        raise SettingsError("APEAGENT_SWAPS_ARCHIVE and APEAGENT_RPC_URLS are both set; unset one of them")
    chosen = chosen_pool(settings)
    if settings.swaps_archive is not None:
        cache = settings.home.absolute() / "cache" / "archive"
        flips = settings.swaps_signs == "pool"
        return ArchiveSource(chosen.from_settings(), settings.swaps_archive, flips_signs=flips, cache=cache)
    if not settings.rpc_urls:
        return EmbeddedSource(_simulated(chosen.from_settings()), settings.seed)
    for position, url in enumerate(settings.rpc_urls, start=1):
        if not is_web_address(url.get_secret_value()):
            raise SettingsError(
                f"APEAGENT_RPC_URLS: entry {position} is not an http or https URL (it is not shown: it may be a secret)"
            )
    return RpcSource(chosen, settings)


def _simulated(pool: PoolSpec) -> PoolSpec:
    try:
        _ = pool.static_fee
    except DynamicFeeError as error:
        raise SettingsError(f"APEAGENT_POOL_KEY: the embedded chain trades at one fee, and {error}") from None
    return pool
