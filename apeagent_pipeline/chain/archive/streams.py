"""Bytes of a file, decompressed by their content."""

import io
import lzma
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
        return io.BufferedReader(_XzFile(file))
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            return pa.CompressedInputStream(pa.OSFile(str(file)), name)
    return pa.OSFile(str(file))


class _XzFile(io.RawIOBase):
    """An xz file. Broken content is an OSError, as with the other compressions."""

    def __init__(self, file: Path) -> None:
        self._file = lzma.open(file)  # noqa: SIM115 (closed in `close`)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return self._file.readinto(buffer)
        except (lzma.LZMAError, EOFError) as error:
            raise OSError(f"broken xz: {error}") from error

    def close(self) -> None:
        self._file.close()
        super().close()


def first_words(error: BaseException) -> str:
    """The start of an error's message, which a library may make very long."""
    return str(error)[:300]
