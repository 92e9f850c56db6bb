"""Daily partitions, and the rule that says which days of a daily asset another asset reads.

An asset declares the rule with its input: ``dg.AssetIn(metadata=PreviousDays(1).metadata)``. The IO manager loads
these days, the staleness judge compares them, and assets that compute day by day ask the rule themselves.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Protocol

import dagster as dg

from apeagent_pipeline.chain.days import FIRST_DAY

DAILY = dg.DailyPartitionsDefinition(start_date=str(FIRST_DAY), timezone="UTC")
DAILY_TAG = "apeagent/partitions"
"""Tag of every daily asset, so that jobs and conditions select them without a list of names. Its value says which days
an asset should have: `SYNCED`, every day that is read; `ON_NEW_DAYS`, only days that were asked for or have just been
read."""
SYNCED, ON_NEW_DAYS = "synced", "on_new_days"
RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
"""Tags of a run that makes many days."""

_PREVIOUS_DAYS, _LAST_DAYS = "previous_days", "last_days"
"""Keys of the rules in the metadata of an input, which holds plain values only."""
_DAYS_OF_A_RUN = 7
"""On a cluster: starting a run takes as long as making some days, and a lost machine costs one run."""


class DaysRead(Protocol):
    """Which days of a daily input an artifact is made from."""

    def of(self, day: str | None, stored: Collection[str], config: Mapping[str, Any]) -> list[str]:
        """The days to read, in order.

        Args:
            day: The artifact's own day; None for an asset without partitions.
            stored: Days of the input that are stored.
            config: The configuration of the asset that reads.
        """
        ...


@dataclass(frozen=True)
class PreviousDays:
    """An artifact of a day reads that day and the ``count`` days before it.

    A partition mapping with an offset would say the same to Dagster, but a backfill of some days would then also
    request the day after them, and fail there.
    """

    count: int = 0

    @property
    def metadata(self) -> dict[str, int]:
        """What to write into the metadata of the input."""
        return {_PREVIOUS_DAYS: self.count}

    def window(self, day: str) -> list[str]:
        """The days that an artifact of ``day`` reads, stored or not."""
        return [str(date.fromisoformat(day) - timedelta(days=back)) for back in range(self.count, -1, -1)]

    def of(self, day: str | None, stored: Collection[str], config: Mapping[str, Any]) -> list[str]:
        """See `DaysRead`."""
        return [each for each in self.window(day) if each in stored] if day else sorted(stored)


@dataclass(frozen=True)
class LastDays:
    """An artifact reads the newest stored days, as many as the reading asset's option ``option`` says."""

    option: str

    @property
    def metadata(self) -> dict[str, str]:
        """What to write into the metadata of the input."""
        return {_LAST_DAYS: self.option}

    def of(self, day: str | None, stored: Collection[str], config: Mapping[str, Any]) -> list[str]:
        """See `DaysRead`."""
        return sorted(stored)[-config[self.option] :]


def is_synced(asset: dg.AssetsDefinition) -> bool:
    """Whether every day that is read should have this asset."""
    return asset.tags_by_key[asset.key].get(DAILY_TAG) == SYNCED


def days_read(input_metadata: Mapping[str, Any] | None) -> DaysRead | None:
    """The rule that an input's metadata holds, if it holds one."""
    metadata = input_metadata or {}
    if _LAST_DAYS in metadata:
        return LastDays(metadata[_LAST_DAYS])
    return PreviousDays(metadata[_PREVIOUS_DAYS]) if _PREVIOUS_DAYS in metadata else None


def backfill_policy(engine: str) -> dg.BackfillPolicy:
    """All days in one run on one machine; on a cluster a run for every week, so that its machines share them."""
    return dg.BackfillPolicy.single_run() if engine == "local" else dg.BackfillPolicy.multi_run(_DAYS_OF_A_RUN)
