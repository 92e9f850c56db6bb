"""Which columns of a file hold what, by their headers."""

from collections.abc import Sequence
from pathlib import Path

from apeagent_pipeline.chain.archive.layouts import (
    COLUMN_KEYS,
    NESTED_KEYS,
    REQUIRED_COLUMNS,
    SWAP_COLUMNS,
    UNUSABLE,
    key,
    layout_of,
    unusable,
)
from apeagent_pipeline.chain.archive.problems import ArchiveError

_GENERAL_KEYS = frozenset(
    {
        "hash",
        "transaction",
        "transactionid",
        "tx",
        "block",
        "blockid",
        "timestamp",
        "unixtimestamp",
        "datetime",
        "time",
        "ts",
        "chain",
        "from",
        "to",
        "fromaddress",
        "toaddress",
        "origin",
        "pool",
        "name",
        "event",
        "address",
    }
)
"""Headers that mean a column only where no other header of the file does."""


def header_keys(headers: Sequence[str]) -> list[str]:
    """The key of each header; of a member of an object, that of the member."""
    keys = []
    for header in headers:
        parent, _, member = header.rpartition(".")
        keys.append(key(member) if parent and key(parent.rpartition(".")[2]) in NESTED_KEYS else key(header))
    return keys


class Columns:
    """Which columns of a file hold what.

    Args:
        file: Named in errors.
        headers: As they stand in the file.

    Raises:
        ArchiveError: if the layout cannot become swaps, or a column is missing or ambiguous.
    """

    def __init__(self, file: Path, headers: Sequence[str]) -> None:
        self.file = file
        self.headers = list(headers)
        self.keys = header_keys(headers)
        known = {*self.keys, *(key(header.partition(".")[0]) for header in headers)}
        if entry := unusable(known, UNUSABLE):
            raise ArchiveError(f"{file} is {entry.name}, which cannot be imported: {entry.reason}. {entry.instead}")
        layout = layout_of(known)
        self.layout = layout.name if layout else "own column names"
        self.found = {name: at for name in COLUMN_KEYS if (at := self._positions(name))}
        for name, own in (layout.extra if layout else {}).items():
            if name not in self.found and own in self.keys:
                self.found[name] = [self.keys.index(own)]
        self.raw = "data" in self.found and (
            "topics" in self.found or {"topic0", "topic1", "topic2"} <= set(self.found)
        )
        for name in SWAP_COLUMNS if self.raw else ("data", "topics", "topic0", "topic1", "topic2"):
            self.found.pop(name, None)
        self._check_missing()

    def _positions(self, name: str) -> list[int]:
        specific = [
            at for one in COLUMN_KEYS[name] if one not in _GENERAL_KEYS for at, k in enumerate(self.keys) if k == one
        ]
        if specific:
            return specific
        general = [at for one in COLUMN_KEYS[name] for at, k in enumerate(self.keys) if k == one]
        return general[:1]

    def _check_missing(self) -> None:
        required = ("block_number", "transaction_hash") if self.raw else REQUIRED_COLUMNS
        missing = [name for name in required if name not in self.found]
        if missing:
            shown = ", ".join(self.headers)[:500]
            what = "a pool id (add a column pool_id)" if missing == ["pool_id"] else ", ".join(missing)
            raise ArchiveError(
                f"{self.file} lacks {what}; its columns are {shown}. Export the missing values too, or rename the "
                "columns that hold them; docs/swaps-from-files.md lists the supported layouts"
            )

    def positions(self) -> list[int]:
        """All columns that are needed."""
        return sorted({at for found in self.found.values() for at in found})

    def is_general(self, name: str) -> bool:
        """Whether a column was found by a header that may mean something else."""
        return self.keys[self.found[name][0]] in _GENERAL_KEYS

    def header(self, name: str) -> str:
        """What the file calls a column."""
        return self.headers[self.found[name][0]] if name in self.found else name
