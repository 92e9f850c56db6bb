"""Text that polars cuts gives the same rows, and the same errors, as Arrow gives."""

import random
from pathlib import Path

import polars as pl
import pytest

from apeagent_pipeline.chain.archive import csv_table
from apeagent_pipeline.chain.archive.problems import ArchiveError, Problems
from apeagent_pipeline.chain.archive.reading import open_table

VALUES = ("", "1", "-22", " x", "0xab", "a b", "7")
BREAKS = (
    lambda line: line + ",",
    lambda line: line.rpartition(",")[0],
    lambda line: f'"{line}"',
    lambda line: line + "\r",
    lambda line: line.replace("1", '"1"'),
    lambda line: "",
    lambda line: line + "é",
    lambda line: line + "\0",
    lambda line: line.replace(",", '"', 1),
)


def text(chance: random.Random) -> str:
    columns = chance.randint(1, 5)
    lines = [",".join("abcde"[:columns])]
    lines += [",".join(chance.choice(VALUES) for _ in range(columns)) for _ in range(chance.randint(0, 12))]
    for _ in range(chance.choice([0, 0, 1, 2]) if len(lines) > 1 else 0):
        at = chance.randrange(1, len(lines))
        lines[at] = chance.choice(BREAKS)(lines[at])
    if len(lines) > 3 and chance.random() < 0.3:  # As many values as there should be, but not in each row.
        longer, shorter = chance.sample(range(1, len(lines)), 2)
        lines[longer] += chance.choice([",", ",1"])
        lines[shorter] = lines[shorter].rpartition(",")[0]
    start = chance.choice(["", "", "# a comment\n", "\ufeff"])
    end = chance.choice(["", "\n", "\n\n"])
    return start + chance.choice(["\n", "\n", "\n", "\r\n", "\r"]).join(lines) + end


def found(file: Path, every: int) -> object:
    try:
        table = open_table(file)
        if table is None:
            return None
        batches = list(table.batches(range(0, len(table.headers), every), Problems(file)))
        return table.headers, [row for batch in batches for row in batch.rows()], table.notices
    except ArchiveError as error:
        return str(error)


@pytest.mark.parametrize("size", [24, 60, 1 << 20])
def test_plain_text_is_cut_as_arrow_cuts_it(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_PLAIN_BYTES", "_READ_BYTES"):
        monkeypatch.setattr(csv_table, name, size)
    chance = random.Random(size)
    file = tmp_path / "swaps.csv"
    for _ in range(150):
        content, every = text(chance), chance.choice([1, 2])
        file.write_bytes(content.encode())
        fast = found(file, every)
        with monkeypatch.context() as patch:
            patch.setattr(csv_table.CsvTable, "_cut", lambda *_: None)
            assert fast == found(file, every), content


def test_a_broken_row_after_many_plain_ones_is_named_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_PLAIN_BYTES", "_READ_BYTES"):
        monkeypatch.setattr(csv_table, name, 1 << 12)
    file = tmp_path / "swaps.csv"
    lines = ["a,b", *(f"{at},x" for at in range(10_000)), "1,2,3", *(f"{at},x" for at in range(10_000))]
    file.write_text("\n".join(lines))
    with pytest.raises(ArchiveError, match="line 10002 has 3 values, expected 2"):
        pl.concat(open_table(file).batches([0], Problems(file)))
