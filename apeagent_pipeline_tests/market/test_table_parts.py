import itertools
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from apeagent_pipeline.market import table_parts
from apeagent_pipeline.market.scales import ColumnFiles
from apeagent_pipeline.market.table_parts import between_neighbours, in_batches, in_sizes, write_parquet


def table(rows: int) -> pl.DataFrame:
    values = np.random.default_rng(0).normal(size=rows)
    return pl.DataFrame({"row": np.arange(rows), "value": values, "text": ["liquidity"] * rows})


def test_batches_hold_every_row_once_and_all_but_the_last_are_full():
    sizes = [3, 0, 250, 7, 1, 40, 40, 40]
    cuts = np.cumsum([0, *sizes])
    whole = table(sum(sizes))
    batches = list(in_batches([whole[a:b] for a, b in itertools.pairwise(cuts)], 50))
    assert pl.concat(batches).equals(whole)
    assert all(50 <= each.height < 100 for each in batches[:-1])
    assert list(in_batches([whole.clear()], 50)) == []


def test_parts_know_their_neighbours():
    whole = table(100)
    parts = list(between_neighbours(whole.iter_slices(30), 5, 2))
    assert pl.concat([each.own(each.table) for each in parts]).equals(whole)
    assert [each.table["row"][0] for each in parts] == [0, 25, 55, 85]
    assert [each.table["row"][-1] for each in parts] == [31, 61, 91, 99]


def test_tables_are_cut_to_sizes():
    whole = table(100)
    cut = list(in_sizes(whole.iter_slices(7), [10, 0, 60, 30]))
    assert [each.height for each in cut] == [10, 0, 60, 30]
    assert pl.concat(cut).equals(whole)


@pytest.mark.parametrize("rows", [30, 43, 50_000, 163_840, 163_841, 294_912, 425_984, 999_749])
def test_a_file_written_in_parts_has_the_bytes_of_one_written_at_once(rows, tmp_path):
    """Data versions are hashes of files: another cut into row groups would make everything downstream stale."""
    whole = table(rows + 43)
    pl.concat([whole[:rows], whole[rows:]], rechunk=False).write_parquet(tmp_path / "once.parquet")
    write_parquet(whole.iter_slices(77_777), whole.height, 43, tmp_path / "parts.parquet")
    assert (tmp_path / "parts.parquet").read_bytes() == (tmp_path / "once.parquet").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_long_table_is_mapped_and_a_short_one_read(tmp_path, monkeypatch):
    whole = table(30_000)
    whole.write_parquet(tmp_path / "table.parquet")
    assert table_parts.read_parquet(tmp_path / "table.parquet").equals(whole)
    assert "table.arrow" not in maps()
    monkeypatch.setattr(table_parts, "_LONGEST_IN_MEMORY", 10_000)
    mapped = table_parts.read_parquet(tmp_path / "table.parquet")
    if Path("/proc/self/maps").exists():
        assert "table.arrow (deleted)" in maps()
    assert mapped.equals(whole)
    assert mapped.filter(pl.col("row") % 7 == 0)["text"].n_unique() == 1


def maps() -> str:
    """The files that are mapped by this process; empty where the system does not tell."""
    told = Path("/proc/self/maps")
    return told.read_text() if told.exists() else ""


def test_scales_of_files_are_those_of_arrays_bit_for_bit():
    values = table(300_001)
    with ColumnFiles(["value"]) as columns:
        for part in values.iter_slices(70_000):
            columns.append(part)
        found = columns.scales()["value"]
    column = values["value"].to_numpy()
    assert found["mean"] == float(column.mean())
    assert found["std"] == float(column.std())
    assert found["quantiles"] == np.quantile(column, np.linspace(0, 1, 101)).tolist()
