"""The quick check of hashes looks at the buffers of polars; it must decide as the pattern does, however they lie."""

import random
import re

import polars as pl
import pytest

from apeagent_pipeline.chain.archive.canonical import is_plain_hex


def digits(number: int) -> str:
    return "0x" + random.Random(number).randbytes(32).hex()


HASHES = pl.Series([digits(number) for number in range(300)])
WRONG = [HASHES[5][:-1] + mark for mark in "gGA/:`x\0"] + [HASHES[5][:-1], HASHES[5] + "0", "0X" + HASHES[5][2:], ""]
LAYOUTS = {
    "side by side": HASHES,
    "a part": HASHES.slice(17, 40),
    "every second": HASHES.gather_every(2),
    "backwards": HASHES.reverse(),
    "repeated": HASHES.gather([3, 1, 3, 3, 299]),
    "far apart": HASHES.gather([0, 299]),
    "in pieces, with a null": pl.concat([HASHES, pl.Series([None], dtype=pl.String()), HASHES.head(3)]),
    "with text between": (HASHES + "zz--").str.head(66),
    "overlapping": pl.concat([pl.Series(["0x" + "a" * 90]).str.slice(at, 66) for at in (0, 1)]),
    "none": HASHES.clear(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_column_of_hashes_is_plain_where_each_fits_the_pattern(layout: str) -> None:
    column = LAYOUTS[layout]
    for shown in [column, *(pl.concat([column, pl.Series([wrong])]) for wrong in WRONG)]:
        expected = all(re.fullmatch("0x[0-9a-f]{64}", value) for value in shown if value is not None)
        assert is_plain_hex(shown, 66) is expected
        assert is_plain_hex(shown.rechunk(), 66) is expected
