"""A day that a node tells truly, and the same day read through faults."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from apeagent_pipeline.defs.build import build_graph
from apeagent_pipeline.settings import Settings
from apeagent_pipeline_tests.chain.faulty_proxy import Fault, FaultyProxy, running

RANGE_BLOCKS = 2_000
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass(frozen=True)
class Chain:
    """A node whose word is true, a day of it, and the file of that day."""

    url: str
    day: str
    file: bytes
    swaps: pl.DataFrame

    @property
    def noon(self) -> int:
        """A block in the middle of the day's trading, with a swap in it."""
        return int(self.swaps["block_number"][self.swaps.height // 2])


Faults = Callable[[Chain], list[Fault]]


def settings(home: Path, *urls: str, **more: Any) -> Settings:
    options = {"rpc_range_blocks": RANGE_BLOCKS, "rpc_requests_per_second": 0, **more}
    return Settings(home=home, rpc_urls=",".join(urls), **options)  # type: ignore[arg-type]


def materialize(home: Path, day: str, *urls: str, **more: Any) -> None:
    """``raw_swaps`` of one day, as the UI and ``apeagent sync`` make it; raises what the asset raised."""
    graph = build_graph(settings(home, *urls, **more))
    with dg.DagsterInstance.ephemeral() as instance:
        graph.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance, asset_selection=[dg.AssetKey("raw_swaps")], partition_key=day, run_config=QUIET
        )


def stored(home: Path) -> dict[str, bytes]:
    """Every file in the folder of raw_swaps, hidden and temporary ones too, but for the versions they are copies of."""
    return {path.name: path.read_bytes() for path in (home / "storage" / "raw_swaps").iterdir() if path.is_file()}


def assert_made(home: Path, chain: Chain) -> None:
    assert set(stored(home)) == {f"{chain.day}.parquet", f"{chain.day}.manifest.json"}
    assert stored(home)[f"{chain.day}.parquet"] == chain.file
    # What a killed writer left of a version lies beside that version until both are removed.
    assert not [path for path in home.rglob("*.tmp") if ".versions" not in path.parts]


def survive(faults: Faults, chain: Chain, home: Path, **more: Any) -> FaultyProxy:
    """Read the day through a faulty proxy; it must strike, and the file must be the very same."""
    with running(chain.url, *faults(chain)) as proxy:
        materialize(home, chain.day, proxy.url, **more)
    assert proxy.injected, "the fault never struck"
    assert_made(home, chain)
    return proxy
