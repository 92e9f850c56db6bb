"""Whether a column is canonical text throughout, decided faster than by the patterns of `values.RULES`."""

import numpy as np
import polars as pl
import pyarrow as pa

_PIECE_BYTES = 1 << 18
_SMALLEST: dict[str, int | None] = {"amount0": None, "amount1": None, "sqrt_price_x96": 1, "liquidity": 0}
"""Column -> the smallest number that its rule allows; of those that 128 bits hold, all larger ones are allowed."""


def plain_integers(text: pl.Series, kind: type[pl.Int64] | type[pl.Int128]) -> pl.Series | None:
    """The numbers of decimal text, nulls kept; None unless each is written as Python writes it and fits the type."""
    numbers = text.cast(kind(), strict=False)
    if numbers.null_count() != text.null_count():
        return None
    value = pl.col(text.name)
    # What the conversion accepts beyond the notation of `str(int)`.
    odd = (value.str.starts_with("0") & (value.str.len_bytes() > 1)) | value.str.starts_with("-0")
    odd |= value.str.starts_with("+")
    return None if text.to_frame().select(odd.any()).item() else numbers


def is_plain_number(text: pl.Series, name: str) -> bool:
    """Whether each value of an amount, price or liquidity fits its rule; False also where 128 bits do not decide."""
    numbers = plain_integers(text, pl.Int128) if name in _SMALLEST else None
    if numbers is None:
        return False
    low, found = _SMALLEST[name], numbers.min()
    return low is None or found is None or int(found) >= low  # type: ignore[arg-type]


def is_plain_hex(text: pl.Series, size: int) -> bool:
    """Whether each value that is there is ``0x`` and lower-case hex digits, ``size`` characters in all."""
    known = text.drop_nulls() if text.null_count() else text
    shaped = (pl.col("text").str.len_bytes() == size) & pl.col("text").str.starts_with("0x")
    if not known.alias("text").to_frame().select(shaped.all()).item():
        return False
    joined = known.to_arrow().cast(pa.large_string())
    start, end = joined.offset * size, (joined.offset + len(joined)) * size
    digits = np.frombuffer(joined.buffers()[2], np.uint8)[start:end] if len(joined) else np.zeros(0, np.uint8)
    right = 0
    for at in range(0, len(digits), _PIECE_BYTES):
        piece = digits[at : at + _PIECE_BYTES]
        right += int(np.count_nonzero((piece - ord("0") < 10) | (piece - ord("a") < 6)))
    return right == len(digits) - len(known)
