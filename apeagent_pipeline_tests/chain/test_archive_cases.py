"""Files in the layouts that tools and people produce: the right rows, or a refusal that says why.

The files are shared between developers and are no part of the project.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.chain.archive import ArchiveError, SwapArchive

CASES = Path(__file__).parents[3] / "shared" / "cases" / "import"
COMPARED = ("block_number", "amount0", "amount1", "sqrt_price_x96", "liquidity", "tick", "fee", "sender")
PARTS = {"B32_partial_day.csv", "B33_missing_day.csv", "B18c_hive_next_to_file", "C17b_truncated_at_value.csv"}
"""Cases that hold other days too, or not all swaps."""
REASONS = {
    "A02": "lacks pool_id, sender",
    "A10": "no price, no liquidity",
    "A11": "subgraph",
    "A12": "subgraph",
    "A13": "APEAGENT_SWAPS_SIGNS=pool",
    "A23": "human units",
    "A26": "Uniswap V3",
    "A27": "as Uniswap V3 pools have",
    "AB01": "no header line",
    "B04": r"local time without a zone \(UTC\+08:00\)",
    "B07": "scientific notation",
    "B08": "last digits are lost",
    "B09_": "last digits are lost",
    "B09b": "scientific notation",
    "B21": "320 rows of other chains",
    "B28": "is empty",
    "B29_": "no rows at all",
    "B29c": r"b\.csv is empty",
    "B31": "another block_hash",
    "B38": "differ in 320 rows",
    "C01": "without a plus sign",
    "C02_": "percent",
    "C02b": "fee",
    "C02c": "a fee other than the pool's",
    "C03": "are exchanged",
    "C04b": "log_index must count",
    "C11": "block_timestamp is '0'",
    "C12": "amount0 is 'nan'",
    "C13c": "log_index is nothing",
    "C17_": "cut off",
    "C17b": "timestamp is '17385'",
    "D07e": "name of a zone",
    "D08c": "seconds are missing",
    "E06": r"all \+12 seconds away",
    "E07": "of another chain",
    "F01": "without opposite signs",
    "F02": "not raw units",
    "F09": "those before the swap",
    "P04": "floating-point number",
    "U02": "could both be sender",
    "U03": "time of collection",
}
"""Start of a case's name -> what its refusal says."""


def expectations() -> dict[str, str]:
    """Case -> what it deserves, from the table that comes with the files."""
    if not CASES.exists():
        return {}
    table = [line.strip("| \n").split(" | ") for line in (CASES / "README.md").read_text().splitlines() if "|" in line]
    return {row[0].strip(): row[2].strip() for row in table if (CASES / row[0].strip()).exists() and len(row) > 3}


@pytest.fixture(scope="module")
def truth() -> dict[tuple[str, str], dict[str, Any]]:
    if not CASES.exists():
        pytest.skip(f"the cases of the import are not at {CASES}")
    swaps = json.loads((CASES / "truth.json").read_text())
    return {(swap["transaction_hash"], swap["sqrt_price_x96"]): swap for swap in swaps}


def test_there_are_cases(truth: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert len(expectations()) >= 150


@pytest.mark.parametrize("case", sorted(expectations()))
def test_a_file_gives_its_swaps_or_a_reason(case: str, truth: dict[tuple[str, str], dict[str, Any]]) -> None:
    archive = SwapArchive(CASES / case, BASE_ETH_USDC)
    try:
        rows = archive.swaps.to_dicts()
    except ArchiveError as error:
        reason = next((words for start, words in REASONS.items() if case.startswith(start)), None)
        assert reason, f"{case} is refused: {error}"
        with pytest.raises(ArchiveError, match=reason):
            raise
        return
    assert not any(case.startswith(start) for start in REASONS)
    keys = [(row["transaction_hash"], row["sqrt_price_x96"]) for row in rows]
    known = [key for key in keys if key in truth]
    assert known == [key for key in truth if key in set(known)]
    assert case in PARTS or keys == list(truth)
    for row in rows:
        swap = truth.get((row["transaction_hash"], row["sqrt_price_x96"]))
        if swap is None:
            continue
        assert {name: row[name] for name in COMPARED} == {name: swap[name] for name in COMPARED}
        assert row["block_timestamp"].timestamp() == swap["ts"]
        assert row["tx_from"] in (None, swap["tx_from"])
    if expectations()[case] in ("clear", "note"):
        assert archive.imported.notices
