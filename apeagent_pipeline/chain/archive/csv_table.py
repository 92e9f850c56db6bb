"""Separated values as a table of text."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv

from apeagent_pipeline.chain.archive.layouts import NESTED_KEYS, key
from apeagent_pipeline.chain.archive.problems import ArchiveError, Problems
from apeagent_pipeline.chain.archive.streams import LINE, first_words, open_stream

_BATCH_ROWS = 1 << 17
_BLOCK_BYTES = 1 << 20
_READ_BYTES = 1 << 20
_PLAIN_BYTES = 12 << 20
_PART_BYTES = 1 << 18
_HEAD_BYTES = 1 << 20
_NEWLINE = ord("\n")


class CsvTable:
    """Separated values."""

    def __init__(self, file: Path, head: bytes, notices: list[str]) -> None:
        self.file = file
        self.notices = notices
        self._encoding = _encoding(head)
        if self._encoding != "utf-8":
            notices.append(f"{file.name} is encoded as {self._encoding}")
        text = head.decode("utf-8-sig" if self._encoding == "utf-8" else self._encoding, errors="replace")
        lines = re.split(r"\r*\n|\r", text)
        self._skipped = next((n for n, line in enumerate(lines) if not _is_comment(line)), len(lines))
        if self._skipped == len(lines):
            raise ArchiveError(f"{file} holds no header line; expected a header line and one line a swap")
        header = lines[self._skipped]
        self._delimiter = max(",;\t|", key=lambda mark: _outside_quotes(header).count(mark))
        self._own = [name.strip().strip('"').strip() for name in self._split(header)]
        second = self._split(lines[self._skipped + 1]) if len(lines) > self._skipped + 1 else []
        self._check_header(header)
        self._nested = _nested_members(self._own, second)
        self.headers = [*self._own, *(f"{self._own[at]}.{member}" for at, member in self._nested)]

    def _split(self, line: str) -> list[str]:
        try:
            return next(csv.reader([line], delimiter=self._delimiter, skipinitialspace=True), [])
        except csv.Error:
            return line.split(self._delimiter)

    def _check_header(self, header: str) -> None:
        if "\0" in header:
            raise ArchiveError(f"{self.file} is not a readable CSV file: its header line holds NUL bytes")
        values = [name for name in self._own if re.fullmatch(r"0x[0-9a-fA-F]{16,}|-?\d{3,}|\d{4}-\d\d-\d\d.*", name)]
        if len(values) > 1:
            raise ArchiveError(
                f"{self.file} has no header line: its first line holds values such as {values[0][:40]!r}. Add a line "
                "with the names of the columns above it"
            )

    def batches(self, columns: Sequence[int], problems: Problems) -> Iterator[pl.DataFrame]:
        """Rows of some columns as text.

        Plain text (ASCII, no quotes, as many separators as the header asks for) is cut by polars. From the first piece
        that is not plain on, Arrow reads: more slowly, but it knows quotes and names broken rows.

        Raises:
            ArchiveError: if the text cannot be cut into rows.
        """
        needed = sorted({at if at < len(self._own) else self._nested[at - len(self._own)][0] for at in columns})
        line = self._skipped + 2
        try:
            with open_stream(self.file) as stream:
                start = self._after_header(stream)
                for piece, rest in _pieces(start or b"", stream, self._delimiter.encode()):
                    rows = None if start is None else self._cut(piece, needed)
                    if rows is None and line > self._skipped + 2:
                        ahead = io.BufferedReader(_Resumed(piece.text() + rest, stream))
                        yield from self._quoted_batches(ahead, needed, line, 0)
                        return
                    if rows is None:
                        break
                    yield self._finished(rows, line)
                    line += rows.height
                else:
                    if start is not None:
                        return
            with open_stream(self.file) as stream:
                yield from self._quoted_batches(stream, needed, line, self._skipped + 1)
        except (OSError, EOFError, pa.ArrowException) as error:
            raise ArchiveError(f"{self.file} is not a readable CSV file: {first_words(error)}") from error

    def _after_header(self, stream: Any) -> bytes | None:
        """What was read with the header's lines and follows them; None where they do not end as lines should."""
        rest = stream.read(_HEAD_BYTES)
        for _ in range(self._skipped + 1):
            line, found, rest = rest.partition(b"\n")
            if not found or b"\r" in line:
                return None
        return bytes(rest)

    def _cut(self, piece: "_Piece", needed: Sequence[int]) -> pl.DataFrame | None:
        """Rows of plain text; None if it is not plain.

        No row may have more values than the header, or polars, which must read the last column, refuses it; only an
        empty value at the end of a row may escape polars. With as many separators as all rows together should have,
        none has fewer values either.
        """
        last = len(self._own) - 1
        if self._encoding != "utf-8" or not last or not piece.is_plain or piece.separators != piece.lines * last:
            return None
        text = piece.text()
        if piece.has_empty_ends and not _is_even(text, self._delimiter.encode(), last):
            return None
        names = [f"c{at}" for at in range(len(self._own))]
        try:
            rows = pl.read_csv(
                text,
                has_header=False,
                schema=dict.fromkeys(names, pl.String()),
                separator=self._delimiter,
                quote_char=None,
                empty_string_is_null=False,
                columns=sorted({*needed, last}),
            )
        except pl.exceptions.PolarsError:
            return None
        # In one piece: each step would otherwise join the pieces for itself.
        return rows.select(names[at] for at in needed).rechunk() if rows.height == piece.lines else None

    def _quoted_batches(self, stream: Any, needed: Sequence[int], line: int, skipped: int) -> Iterator[pl.DataFrame]:
        names = [f"c{at}" for at in range(len(self._own))]
        before = line - skipped - 1
        try:
            reader = pa_csv.open_csv(
                stream,
                read_options=pa_csv.ReadOptions(
                    use_threads=False,  # or the number of a broken row is not told
                    block_size=_BLOCK_BYTES,
                    skip_rows=skipped,
                    column_names=names,
                    encoding=self._encoding,
                ),
                parse_options=pa_csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True),
                convert_options=pa_csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.large_string()),
                    include_columns=[names[at] for at in needed],
                    strings_can_be_null=False,
                ),
            )
            for table in _gathered(reader):
                rows = pl.from_arrow(table)
                assert isinstance(rows, pl.DataFrame)
                yield self._finished(rows, line)
                line += rows.height
        except StopIteration:
            return
        except (pa.ArrowException, OSError, UnicodeError, EOFError) as error:
            if "Empty CSV file" in str(error):
                return
            raise ArchiveError(self._told(error, before)) from error

    def _finished(self, rows: pl.DataFrame, line: int) -> pl.DataFrame:
        rows = rows.with_columns(pl.int_range(line, line + rows.height, dtype=pl.Int64()).alias(LINE))
        return self._without_repeated_headers(self._with_nested(rows))

    def _told(self, error: BaseException, before: int) -> str:
        ragged = re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)(?:: (.*))?", str(error), re.DOTALL)
        if not ragged:
            return f"{self.file} is not a readable CSV file: {first_words(error)}"
        row, expected, found, text = ragged.groups()
        cause = ". A short last line is a download that was cut off: fetch the file again"
        return (
            f"{self.file} line {before + int(row)} has {found} values, expected {expected} as in its header: "
            f"{(text or '')[:60]!r}{cause if int(found) < int(expected) else ''}"
        )

    def _with_nested(self, rows: pl.DataFrame) -> pl.DataFrame:
        own = len(self._own)
        members = {}
        for number, (at, member) in enumerate(self._nested):
            if f"c{at}" in rows.columns:
                text = _as_json(rows[f"c{at}"])
                members[f"c{own + number}"] = text.str.json_path_match(f"$.{member}")
        return rows.with_columns(**members)

    def _without_repeated_headers(self, rows: pl.DataFrame) -> pl.DataFrame:
        shown = [name for name in rows.columns if name != LINE and int(name[1:]) < len(self._own)]
        # One column tells nearly always that there is none.
        if not shown or not rows[shown[0]].str.contains(self._own[int(shown[0][1:])], literal=True).any():
            return rows
        repeated = pl.all_horizontal(pl.col(n).str.strip_chars(' "') == self._own[int(n[1:])] for n in shown)
        if not rows.select(repeated.any()).item():
            return rows
        self.notices.append(f"{self.file.name} repeats its header line; the repetitions are left out")
        return rows.filter(~repeated)


class _Piece:
    """Some lines of text, counted while they are in the processor's cache.

    Attributes:
        lines: How many.
        separators: How many, in all lines.
        has_empty_ends: Whether the last value of a line is empty.
        is_plain: Whether there are ASCII characters only and no quotes, carriage returns or NUL bytes.
    """

    def __init__(self, separator: bytes) -> None:
        self._separator = separator[0]
        self._blocks: list[bytes] = []
        self.size = self.lines = self.separators = 0
        self.has_empty_ends = False
        self.is_plain = True

    def add(self, block: bytes) -> None:
        """Append text."""
        if not block:
            return
        self.is_plain &= block.isascii() and not any(mark in block for mark in (b'"', b"\r", b"\0"))
        values = np.frombuffer(block, np.uint8)
        if self._blocks and self._blocks[-1][-1] == self._separator and block[0] == _NEWLINE:
            self.has_empty_ends = True
        for at in range(0, len(values), _PART_BYTES):
            part = values[at : at + _PART_BYTES + 1]
            separators, ends = part == self._separator, part == _NEWLINE
            self.separators += int(np.count_nonzero(separators[:_PART_BYTES]))
            self.lines += int(np.count_nonzero(ends[:_PART_BYTES]))
            self.has_empty_ends |= bool((separators[:-1] & ends[1:]).any())
        self.size += len(block)
        self._blocks.append(block)

    def text(self) -> bytes:
        """All of it."""
        self._blocks = [b"".join(self._blocks)]
        return self._blocks[0]


def _pieces(start: bytes, stream: Any, separator: bytes) -> Iterator[tuple[_Piece, bytes]]:
    """Whole lines, and what was read ahead of the next ones."""
    piece, block = _Piece(separator), start
    while True:
        following = bytes(stream.read(_READ_BYTES))
        end = block.rfind(b"\n") + 1
        if end and following and piece.size + end >= _PLAIN_BYTES:
            piece.add(block[:end])
            yield piece, block[end:] + following
            piece, block = _Piece(separator), block[end:] + following
            continue
        piece.add(block)
        block = following
        if not following:
            break
    if piece.size:
        if piece.is_plain and not piece.text().endswith(b"\n"):
            piece.add(b"\n")
        yield piece, b""


class _Resumed(io.RawIOBase):
    """What is left of a stream of which some bytes were read ahead."""

    def __init__(self, ahead: bytes, stream: Any) -> None:
        self._ahead = memoryview(ahead)
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self._ahead[: len(buffer)] or self._stream.read(len(buffer))
        self._ahead = self._ahead[len(found) :]
        buffer[: len(found)] = found
        return len(found)


def _is_even(text: bytes, separator: bytes, each: int) -> bool:
    """Whether every line has so many separators, as all lines have on average."""
    values = np.frombuffer(text, np.uint8)
    marks = values[(values == separator[0]) | (values == _NEWLINE)].reshape(-1, each + 1)
    return bool((marks[:, -1] == _NEWLINE).all())


def _gathered(batches: Iterable[Any]) -> Iterator[Any]:
    """Tables of `_BATCH_ROWS` or more: text is cut fastest in pieces that fit the processor's cache."""
    held: list[Any] = []
    for batch in batches:
        held.append(batch)
        if sum(each.num_rows for each in held) >= _BATCH_ROWS:
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)


def _encoding(head: bytes) -> str:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if head[1:64:2].count(0) > 20:
        return "utf-16-le"
    return "utf-8"


def _is_comment(line: str) -> bool:
    bare = line.strip()
    return not bare or bare.startswith(("#", "--", "//")) or re.fullmatch(r"sep=.", bare) is not None


def _outside_quotes(line: str) -> str:
    return re.sub(r'"[^"]*"', "", line)


def _nested_members(headers: Sequence[str], values: Sequence[str]) -> list[tuple[int, str]]:
    members: list[tuple[int, str]] = []
    for at, (header, value) in enumerate(zip(headers, values, strict=False)):
        if key(header) in NESTED_KEYS:
            try:
                found = json.loads(_as_json(pl.Series([value])).item())
            except (ValueError, TypeError, RecursionError):
                continue
            if isinstance(found, dict):
                members += [(at, str(name)) for name in found if re.fullmatch(r"\w{1,40}", str(name))]
    return members


def _as_json(text: pl.Series) -> pl.Series:
    # Python's notation of a dict of plain values, as pandas writes it, is JSON with other quotes.
    python = text.str.contains(r"^\s*(?:AttributeDict\()?\{'").fill_null(False)
    if not python.any():
        return text
    changed = (
        text.str.replace(r"^\s*AttributeDict\((.*)\)\s*$", "$1")
        .str.replace_all(r"HexBytes\('([^']*)'\)", "'$1'")
        .str.replace_all("'", '"')
    )
    return changed.zip_with(python, text)
