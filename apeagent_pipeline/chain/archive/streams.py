"""Bytes of a file, decompressed by their content."""

from pathlib import Path
from typing import Any

import pyarrow as pa

LINE = "_line"
"""Column with the number of the line or row of a file."""
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}


def open_stream(file: Path) -> Any:
    """A readable stream of the decompressed bytes."""
    with file.open("rb") as raw:
        start = raw.read(6)
    if start.startswith(b"\xfd7zXZ"):
        import lzma

        return lzma.open(file)
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            return pa.CompressedInputStream(pa.OSFile(str(file)), name)
    return pa.OSFile(str(file))


def first_words(error: BaseException) -> str:
    """The start of a library's message."""
    return str(error)[:300]
