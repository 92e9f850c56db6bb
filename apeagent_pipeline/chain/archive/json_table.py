"""JSON documents and JSON lines as tables."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from apeagent_pipeline.chain.archive.problems import ArchiveError, Problems
from apeagent_pipeline.chain.archive.streams import LINE, first_words, open_stream

_MOST_JSON_BYTES = 1 << 31


class JsonTable:
    """A JSON document with a list of objects in it, or one object a line. Read whole."""

    def __init__(self, file: Path, notices: list[str]) -> None:
        self.file = file
        self.notices = notices
        records = _records(file)
        self._columns: dict[str, list[Any]] = {}
        for number, record in enumerate(records):
            for name, value in _flat(record):
                values = self._columns.setdefault(name, [])
                values.extend([None] * (number - len(values)))
                values.append(value)
        self._height = len(records)
        for values in self._columns.values():
            values.extend([None] * (self._height - len(values)))
        self.headers = list(self._columns)

    def batches(self, columns: Sequence[int], problems: Problems) -> Iterator[pl.DataFrame]:
        """All rows of some columns as text."""
        names = self.headers
        yield pl.DataFrame(
            {f"c{at}": pl.Series(self._columns[names[at]], dtype=pl.String()) for at in columns},
        ).with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int64()).alias(LINE))


def _records(file: Path) -> list[dict[str, Any]]:
    try:
        with open_stream(file) as stream:
            content = stream.read(_MOST_JSON_BYTES)
            text = bytes(content).decode("utf-8-sig")
        try:
            # Numbers stay the digits that they are.
            document = json.loads(text, parse_int=str, parse_float=str)
        except json.JSONDecodeError as error:
            if "Extra data" not in str(error):
                raise
            document = [json.loads(line, parse_int=str, parse_float=str) for line in text.splitlines() if line.strip()]
    except (OSError, pa.ArrowException, EOFError, ValueError, RecursionError, MemoryError) as error:
        raise ArchiveError(f"{file} is not a readable JSON file: {first_words(error)}") from error
    found = _find_records(document, 0)
    if found is None:
        failure = document.get("error") if isinstance(document, dict) else None
        told = f"; it holds the error {str(failure)[:200]}" if failure else ""
        raise ArchiveError(f"{file} holds no list of logs or swaps{told}")
    return found


def _find_records(document: Any, depth: int) -> list[dict[str, Any]] | None:
    if isinstance(document, list):
        if document and all(isinstance(each, dict) for each in document):
            answers = [_find_records(each.get("result"), depth + 1) for each in document if "jsonrpc" in each]
            if len(answers) == len(document):
                return [record for answer in answers for record in answer or []]
            return document
        return [] if not document else None
    if isinstance(document, dict) and depth < 4:
        for value in document.values():
            if isinstance(value, dict | list) and (found := _find_records(value, depth + 1)) is not None:
                return found
        if "topics" in document or "amount0" in document:
            return [document]
    return None


def _flat(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str | None]]:
    for name, value in record.items():
        if isinstance(value, dict) and prefix.count(".") < 3:
            yield from _flat(value, f"{prefix}{name}.")
        elif value is None or isinstance(value, str):
            yield prefix + name, value
        elif isinstance(value, bool):
            yield prefix + name, str(value).lower()
        else:
            yield prefix + name, json.dumps(value)
