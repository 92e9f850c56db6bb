"""What the checks say of data that is not as it should be."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import polars as pl
import pytest

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.chain.days import FIRST_DAY
from apeagent_pipeline.chain.source import EmbeddedSource
from apeagent_pipeline.defs.checks import no_swap_missing, splits_do_not_leak
from apeagent_pipeline.defs.storage import ArtifactStore, parquet_bytes


@pytest.mark.parametrize(
    ("dropped", "source", "hooks", "passes"),
    [
        (1_000_000, "rpc", False, True),  # nothing is missing
        (10, "rpc", False, False),
        (10, "embedded", False, False),
        (10, "archive", False, True),
        (10, "rpc", True, True),
    ],
)
def test_a_day_that_lacks_every_tenth_swap_is_noticed(
    dropped: int, source: str, hooks: bool, passes: bool, tmp_path: Path
) -> None:
    whole = EmbeddedSource(BASE_ETH_USDC, seed=42).read_day(FIRST_DAY)
    swaps = whole.filter(pl.int_range(pl.len()) % dropped != dropped - 1)
    pool = BASE_ETH_USDC.model_copy(update={"hooks": "0x" + "1" * 40} if hooks else {})
    store = ArtifactStore(str(tmp_path), tmp_path / "cache")
    store.publish_table(swaps, asset="raw_swaps", partition=str(FIRST_DAY), code_version="1")
    wrong, figures = no_swap_missing(store, cast("Any", SimpleNamespace(name=source, pool=pool)))
    assert (not wrong) is passes
    assert figures["judged_pairs"] > 500
    assert (figures["chain_rate"] > 0.95) is (swaps.height == whole.height)


@pytest.mark.parametrize(
    ("runs", "wrong"),
    [
        ([("train", 90), ("gap", 44), ("valid", 60), ("gap", 44), ("train", 90), ("gap", 44), ("holdout", 50)], []),
        (
            [("train", 90), ("gap", 43), ("valid", 60), ("gap", 44), ("holdout", 50)],
            ["43 rows between train and gap, needed are 44", "43 rows between gap and valid, needed are 44"],
        ),
        (
            [("train", 90), ("valid", 60), ("gap", 44), ("holdout", 50)],
            ["0 rows between train and valid, needed are 44"],
        ),
        (
            [("holdout", 90), ("gap", 44), ("valid", 60), ("gap", 44), ("train", 50)],
            ["the holdout is not the last"],
        ),
    ],
)
def test_a_train_window_that_touches_what_it_is_judged_by_is_noticed(
    runs: list[tuple[str, int]], wrong: list[str], tmp_path: Path
) -> None:
    table = pl.DataFrame({"split": [name for name, length in runs for _ in range(length)]})
    scaler = json.dumps({"context": 20, "length": 24, "rows": {}})
    store = ArtifactStore(str(tmp_path), tmp_path / "cache")
    files = {"training_windows.parquet": parquet_bytes(table), "scaler.json": scaler.encode()}
    store.publish_bytes(files, asset="training_windows", code_version="1")
    assert splits_do_not_leak(store)[0] == wrong
