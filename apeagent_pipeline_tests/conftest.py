"""What all tests share: an environment without the developer's own settings, and where the real sample lies."""

import os
from pathlib import Path

import pytest

for variable in [name for name in os.environ if name.startswith("APEAGENT_") or name == "DAGSTER_HOME"]:
    del os.environ[variable]

REAL_SWAPS = Path(__file__).parents[2] / "shared" / "data" / "base_eth_usdc_swaps_2025-01-23_2025-02-04.csv"


@pytest.fixture(scope="session")
def real_swaps() -> Path:
    """The archive of real Base swaps that developers share; not part of the project."""
    if not REAL_SWAPS.exists():
        pytest.skip("the shared sample of real swaps is not on this machine")
    return REAL_SWAPS
