"""What an asset's page shows fits the page."""

import polars as pl

from apeagent_pipeline.chain.events import RAW_SWAPS_SCHEMA
from apeagent_pipeline.defs.metadata import table_metadata

WIDEST = 110
"""Characters of a line that fit the dialog of a preview in a window of 1,280 pixels."""


def test_the_preview_of_the_widest_table_fits_the_page_and_shows_every_column() -> None:
    table = pl.DataFrame({name: ["0x" + "ab" * 32] * 9 for name in RAW_SWAPS_SCHEMA})
    lines = str(table_metadata(table)["preview"].value).splitlines()
    assert max(map(len, lines)) <= WIDEST
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == table.columns
    assert lines[0] == "| column | row 1 | row 2 | row 3 |"


def test_the_preview_of_an_empty_table_has_its_columns() -> None:
    lines = str(table_metadata(pl.DataFrame(schema={"tick": pl.Int32}))["preview"].value).splitlines()
    assert lines == ["| column |", "| --- |", "| tick |"]


def test_a_table_in_a_file_is_described_without_being_read(tmp_path) -> None:
    table = pl.DataFrame({"tick": range(5_000), "side": ["BUY"] * 5_000})
    table.write_parquet(tmp_path / "training_windows.parquet")
    lazy, eager = table_metadata(pl.scan_parquet(tmp_path / "training_windows.parquet")), table_metadata(table)
    assert lazy["dagster/row_count"] == 5_000
    assert lazy["preview"] == eager["preview"]
    assert lazy["dagster/column_schema"] == eager["dagster/column_schema"]
