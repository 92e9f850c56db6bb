"""Whether a column is canonical text throughout, decided faster than by the patterns of `values.RULES`.

polars keeps a text as a view of 16 bytes: its length, its first four bytes, and the place of the whole in a buffer that
many texts share (Arrow's ``string_view``). Lengths and first bytes decide much, and the buffers are read in one piece.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

_PIECE_BYTES = 1 << 18
_WIDEST_SPACE = 16
_FEWEST_TEXTS = 2048
"""In a buffer; where they are fewer, texts are copied faster than many buffers are looked at."""
_SMALLEST: dict[str, int | None] = {"amount0": None, "amount1": None, "sqrt_price_x96": 1, "liquidity": 0}
"""Column -> the smallest number that its rule allows; of those that 128 bits hold, all larger ones are allowed."""


def plain_integers(text: pl.Series, kind: type[pl.Int64] | type[pl.Int128]) -> pl.Series | None:
    """The numbers of decimal text, nulls kept; None unless each is written as Python writes it and fits the type."""
    numbers = text.cast(kind(), strict=False)
    if numbers.null_count() != text.null_count():
        return None
    known = text.drop_nulls() if text.null_count() else text
    if not len(known):
        return numbers
    views, _ = _views(known)
    length, first, second = views.view("<u4")[:, 0], views[:, 4], views[:, 5]
    # What the conversion accepts beyond the notation of `str(int)`.
    odd = ((first == ord("0")) & (length > 1)) | ((first == ord("-")) & (second == ord("0"))) | (first == ord("+"))
    return None if odd.any() else numbers


def plain_numbers(text: pl.Series, name: str) -> pl.Series | None:
    """Amounts, prices or liquidities whose text fits their rule, as Int128; None also where 128 bits do not decide."""
    numbers = plain_integers(text, pl.Int128) if name in _SMALLEST else None
    if numbers is None:
        return None
    low, found = _SMALLEST[name], numbers.min()
    return numbers if low is None or found is None or int(found) >= low else None  # type: ignore[arg-type]


def is_plain_hex(text: pl.Series, size: int) -> bool:
    """Whether each value that is there is ``0x`` and lower-case hex digits, ``size`` characters in all."""
    known = text.drop_nulls() if text.null_count() else text
    if not len(known):
        return True
    views, buffers = _views(known)
    places = views.view("<i4")
    if (places[:, 0] != size).any():
        return False
    if all(content is not None and _is_hex(content, size, step) for content, step in _grids(places, buffers, size)):
        return True
    # The texts do not lie side by side, or one between them is not plain.
    joined = known.to_arrow().cast(pa.large_string())
    start, end = joined.offset * size, (joined.offset + len(joined)) * size
    return _is_hex(np.frombuffer(joined.buffers()[2], np.uint8)[start:end], size, size)


def _views(text: pl.Series) -> tuple[np.ndarray, list[Any]]:
    """The views of texts, uint8 [n, 16], and the buffers that they point to. There is a text, and none is null."""
    array = text.to_arrow(compat_level=pl.CompatLevel.newest())
    _, views, *buffers = array.buffers()
    return np.frombuffer(views, np.uint8, 16 * len(array), 16 * array.offset).reshape(-1, 16), buffers


def _grids(places: np.ndarray, buffers: list[Any], size: int) -> Iterator[tuple[np.ndarray | None, int]]:
    """Parts of the buffers that hold, together, all texts of a size, and the distance between the texts of each.

    Args:
        places: int32 [n, 4]: length, first bytes, buffer, offset.
        buffers: That are pointed to.
        size: Of each text.

    Yields:
        A part that begins and ends with a text, uint8, and the distance. None where a part is no such grid.
    """
    number, offset = places[:, 2], np.ascontiguousarray(places[:, 3])
    ends = np.r_[np.flatnonzero(number[1:] != number[:-1]) + 1, len(number)]
    used = np.unique(number[ends - 1]).tolist()
    if len(used) > 1 and len(used) * _FEWEST_TEXTS > len(number):
        yield None, size
        return
    runs = np.split(offset, ends[:-1]) if len(ends) == len(used) else [offset[number == one] for one in used]
    numbers = number[ends - 1].tolist() if len(ends) == len(used) else used
    for one, offsets in zip(numbers, runs, strict=True):
        low, high = int(offsets.min()), int(offsets.max())
        if high - low > (size + _WIDEST_SPACE) * len(offsets):
            yield None, size
            continue
        steps = _steps(offsets, low, high)
        step = int(steps.min()) if len(steps) else size
        is_grid = size <= step <= size + _WIDEST_SPACE and (step == steps.max(initial=step) or not (steps % step).any())
        content = np.frombuffer(buffers[one], np.uint8, high - low + size, low)
        yield (content if is_grid else None), step


def _steps(offsets: np.ndarray, low: int, high: int) -> np.ndarray:
    """The distances between different offsets, in their order."""
    steps = np.diff(offsets)
    if (steps > 0).all():
        return steps
    is_start = np.zeros(high - low + 1, bool)
    is_start[offsets - low] = True
    return np.diff(np.flatnonzero(is_start))


def _is_hex(content: np.ndarray, size: int, step: int) -> bool:
    """Whether bytes are texts as `is_plain_hex` wants them, one every ``step`` bytes; between them may be anything."""
    marks = content[1::step]
    if (content[::step] != ord("0")).any() or (marks != ord("x")).any():
        return False
    between = sum(_hex_digits(content[place::step]) for place in range(size, step))
    found = sum(_hex_digits(content[at : at + _PIECE_BYTES]) for at in range(0, len(content), _PIECE_BYTES))
    return found - between == len(marks) * (size - 1)


def _hex_digits(content: np.ndarray) -> int:
    return int(np.count_nonzero((content - ord("0") < 10) | (content - ord("a") < 6)))
