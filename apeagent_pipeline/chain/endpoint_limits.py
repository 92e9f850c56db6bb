"""What endpoints allow, as their refusals taught it, kept between processes."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from apeagent_pipeline.atomic_files import write_atomically
from apeagent_pipeline.chain.endpoint import Endpoint
from apeagent_pipeline.chain.range_size import RangeSize

_KEPT = timedelta(days=7)


class KnownLimits(BaseModel):
    """What one endpoint allows; None: no limit was met."""

    model_config = ConfigDict(frozen=True)

    range_blocks: int | None = Field(None, ge=1, description="Blocks of one eth_getLogs request")
    is_range_named: bool = Field(False, description="Whether the node named this number: then no larger range is tried")
    batch_size: int | None = Field(None, ge=1, description="Calls of one request")
    calls_per_second: float | None = Field(None, gt=0, description="Calls a second that the endpoint does not refuse")
    learned: datetime = Field(description="When the endpoint was first asked")


class EndpointLimits:
    """A small file for each endpoint, named after its identity, from which no URL can be computed.

    What was learned is believed for a week. Then the endpoint is asked anew: its plan may be another one.

    Args:
        folder: Created when the first limits are kept; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._learned: dict[str, datetime] = {}

    def knows(self, endpoint: Endpoint) -> bool:
        """Whether the limits of an endpoint are known, be it that it has none."""
        return endpoint.identity in self._learned

    def forget(self) -> None:
        """Believe nothing any more; the next `keep` replaces what is on disk."""
        self._learned.clear()

    def apply(self, sizes: Mapping[Endpoint, RangeSize]) -> None:
        """Let endpoints begin with what is known of them."""
        for endpoint, size in sizes.items():
            known = self._read(endpoint.identity)
            if known is None:
                continue
            endpoint.start_at(known.batch_size, known.calls_per_second)
            if known.range_blocks is not None:
                size.start_at(known.range_blocks, is_named=known.is_range_named)
            self._learned[endpoint.identity] = known.learned

    def keep(self, sizes: Mapping[Endpoint, RangeSize]) -> None:
        """Keep what was learned of the endpoints that answered."""
        for endpoint, size in sizes.items():
            if self._folder is None or not size.answers:
                continue
            known = KnownLimits(
                range_blocks=size.limit,
                is_range_named=size.is_named,
                batch_size=endpoint.learned_batch_size,
                calls_per_second=endpoint.learned_pace,
                learned=self._learned.setdefault(endpoint.identity, datetime.now(UTC)),
            )
            write_atomically(self._folder / f"{endpoint.identity}.json", known.model_dump_json(indent=2))

    def _read(self, identity: str) -> KnownLimits | None:
        """What is known of an endpoint; None if nothing is, or if that is too long ago."""
        if self._folder is None:
            return None
        try:
            found = KnownLimits.model_validate_json((self._folder / f"{identity}.json").read_bytes())
            age = datetime.now(UTC) - found.learned
        except (OSError, ValueError, TypeError):
            return None
        return found if timedelta() <= age < _KEPT else None
