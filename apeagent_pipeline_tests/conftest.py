"""What all tests share: an environment without the developer's own settings, and where the real sample lies."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Four processes and those that tests start import the same files: compiled once, they are read. Before anything large.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

if TYPE_CHECKING:
    from apeagent_pipeline.chain.devnet import Devnet
    from apeagent_pipeline.settings import Settings

# Several tests run at once, on tiny matrices: threads would only wait for each other. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

for variable in [name for name in os.environ if name.startswith("APEAGENT_") or name == "DAGSTER_HOME"]:
    del os.environ[variable]

# How long an example takes says more about what else the machine does than about the code. The same code is tested with
# the same examples; --hypothesis-profile=explore looks for new ones.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1_000)
settings.register_profile("fuzz", deadline=None, max_examples=5_000, suppress_health_check=list(HealthCheck))
settings.load_profile("repeatable")

DEVNET_CACHE = Path(__file__).parents[1] / ".apeagent" / "cache" / "devnet"
"""Where `apeagent devnet` keeps Anvil and the contracts too, so that one download serves both."""

REAL_SWAPS = Path(__file__).parents[2] / "shared" / "data" / "base_eth_usdc_swaps_2025-01-23_2025-02-04.csv"


LONGEST = (
    "gan/test_training.py",
    "chain/faults/test_limits.py",
    "gan/test_quality.py",
    "student/test_fine_tuning.py",
    "distillation/test_server_table.py",
    "gan/test_sampling.py",
    "chain/test_collector.py",
    "chain/faults/test_logs.py",
    "chain/faults/test_outages.py",
    "chain/faults/test_second_endpoint.py",
    "chain/faults/test_refusals.py",
    "chain/test_devnet_swaps.py",
)
"""Files that take half a minute or more without their slow tests, the longest first. Only one of the first four needs
the devnet: while it starts, whoever needs it waits."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first: a long one at the end would keep one process busy and the others waiting."""
    folder = Path(__file__).parent
    places = {folder / name: place for place, name in enumerate(LONGEST)}
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: places.get(item.path, len(places) + (item.path not in slow)))


@pytest.fixture(autouse=True)
def no_instance_of_an_earlier_test() -> None:
    """Dagster loads definitions with the storage of the instance opened last, and fails where that one is gone."""
    if remembered := sys.modules.get("dagster._core.storage.defs_state.base"):
        remembered._current_storage.set(None)


@pytest.fixture(scope="session")
def real_swaps() -> Path:
    """The archive of real Base swaps that developers share; not part of the project."""
    if not REAL_SWAPS.exists():
        pytest.skip("the shared sample of real swaps is not on this machine")
    return REAL_SWAPS


@pytest.fixture(scope="session")
def devnet_cache() -> Path:
    """The folder with Anvil and the contracts, for tests that start a devnet of their own: that takes a second."""
    from apeagent_pipeline.chain.devnet import DevnetUnavailableError, packages

    try:
        packages.anvil_program(DEVNET_CACHE)
        packages.fetch(packages.V4_CORE, DEVNET_CACHE)
    except DevnetUnavailableError as error:
        pytest.skip(str(error))
    return DEVNET_CACHE


@pytest.fixture(scope="session")
def devnet(devnet_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Devnet]":
    """Real contracts on a real node, with 5,000 swaps on the three days ``devnet.days``, all of them final.

    Shared by all tests, in every process: whoever changes the chain starts another one.
    """
    from apeagent_pipeline_tests.chain.shared_devnet import shared_devnet

    # With pytest-xdist each process has a folder of its own inside that of the run.
    base = tmp_path_factory.getbasetemp()
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with shared_devnet(run / "devnet", devnet_cache, days=3, swaps=5_000) as running:
        yield running


@pytest.fixture(scope="session")
def tiny_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised Qwen2 with a tokenizer made on the spot."""
    from apeagent_pipeline_tests.student.tiny_qwen2 import build_tiny_qwen2

    return build_tiny_qwen2(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def tiny_settings(tmp_path_factory: pytest.TempPathFactory, tiny_student: Path) -> "Settings":
    """Settings of a graph that runs in seconds with the profile `tiny_graph.TINY`."""
    from apeagent_pipeline.settings import Settings

    return Settings(home=tmp_path_factory.mktemp("home"), student=str(tiny_student), eval_prompts=6)
