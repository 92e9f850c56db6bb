"""Tables that are read, computed and written a part at a time, in bounded memory."""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl

_GROUP_ROWS = 122_880
_LONGEST_IN_MEMORY = 500_000


class Part(NamedTuple):
    """Rows of a table between some of their neighbours.

    Attributes:
        table: The rows with the neighbours before and after them.
        before: How many of the rows are neighbours before.
        height: How many rows the part itself has.
    """

    table: pl.DataFrame
    before: int
    height: int

    def own(self, table: pl.DataFrame) -> pl.DataFrame:
        """The part's own rows of a table with as many rows as `table`."""
        return table.slice(self.before, self.height)


def in_batches(tables: Iterable[pl.DataFrame], rows: int) -> Iterator[pl.DataFrame]:
    """The rows of ``tables`` in tables of ``rows`` to ``2 * rows`` rows; the last may have fewer, but at least one."""
    held: list[pl.DataFrame] = []
    for table in tables:
        for piece in table.iter_slices(rows):
            held.append(piece)
            if sum(each.height for each in held) >= rows:
                yield pl.concat(held)
                held = []
    if held:
        yield pl.concat(held)


def between_neighbours(tables: Iterable[pl.DataFrame], before: int, after: int) -> Iterator[Part]:
    """Each table with the ``before`` rows before and the ``after`` rows after it, as far as there are any.

    Args:
        tables: Each but the last has at least as many rows as ``before`` and ``after``.
        before: Rows before.
        after: Rows after.
    """
    remaining = iter(tables)
    earlier, now = None, next(remaining, None)
    while now is not None:
        later = next(remaining, None)
        previous = now.clear() if earlier is None else earlier.tail(before)
        following = now.clear() if later is None else later.head(after)
        yield Part(pl.concat([previous, now, following]), previous.height, now.height)
        earlier, now = now, later


def in_sizes(tables: Iterable[pl.DataFrame], sizes: Iterable[int]) -> Iterator[pl.DataFrame]:
    """The rows of ``tables`` in tables of exactly these sizes, which add up to all rows."""
    remaining, held = iter(tables), []
    available = 0
    for size in sizes:
        while available < size:
            held.append(next(remaining))
            available += held[-1].height
        joined = pl.concat(held)
        yield joined[:size].rechunk()
        held, available = [joined[size:]], available - size


def write_parquet(tables: Iterable[pl.DataFrame], height: int, last: int, path: Path) -> None:
    """Write tables of together ``height`` rows as one Parquet file.

    The file has the bytes that ``polars.DataFrame.write_parquet`` writes of one table in two chunks, of which the
    second has ``last`` rows. Data versions are hashes of files, so they do not depend on how a table was computed.
    """
    last = min(last, height)
    sizes = [*_row_groups(height - last), last]
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        pieces = [Path(scratch) / f"{number:06}.arrow" for number in range(len(sizes))]
        for piece, table in zip(pieces, in_sizes(tables, sizes), strict=True):
            table.write_ipc(piece, record_batch_size=table.height)
        # An Arrow file is mapped, not read, and each is released before the next but one is needed.
        pl.scan_ipc(pieces).sink_parquet(path)


def read_parquet(path: Path) -> pl.DataFrame:
    """The table of a file. A long one is mapped from an uncompressed temporary file, not read.

    The system then keeps in memory what is used and what fits. The temporary file has no name any more when this
    returns, and is gone with the table.
    """
    import pyarrow as pa

    scanned = pl.scan_parquet(path)
    if scanned.select(pl.len()).collect().item() <= _LONGEST_IN_MEMORY:
        return scanned.collect()
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "table.arrow"
        scanned.sink_ipc(copy, compression="uncompressed")
        # Since its version 2 polars reads Arrow files; Arrow's own reader maps them.
        with pa.memory_map(str(copy)) as file:
            table = pl.from_arrow(pa.ipc.open_file(file).read_all(), rechunk=False)
    assert isinstance(table, pl.DataFrame)
    return table


def _row_groups(rows: int) -> list[int]:
    """Rows of each row group into which polars cuts a chunk: equal ones, as near as possible to its usual size."""
    if rows == 0:
        return []
    fewest = max(1, rows // _GROUP_ROWS)
    count = min((fewest, fewest + 1), key=lambda groups: abs(rows // groups - _GROUP_ROWS))
    size, larger = divmod(rows, count)
    return [size + 1] * larger + [size] * (count - larger)
