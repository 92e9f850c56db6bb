"""How artifacts lie on disk or in an object store, and how each says what it was made from.

A daily table is ``{root}/{asset}/{YYYY-MM-DD}.parquet``; everything else is the folder ``{root}/{asset}/``. Beside each
lies a manifest (``{YYYY-MM-DD}.manifest.json`` or ``manifest.json``): the files with their hashes, the inputs with
their data versions, the configuration. The manifest is written last, so an artifact whose manifest does not fit its
files was interrupted half-way and counts as missing.
"""

import hashlib
import io
import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import psutil
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from upath import UPath

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_ASSET = re.compile("[A-Za-z0-9_]+")
_FILE = re.compile(r"(?:[\w.@+ -]{1,200}/){0,8}[\w.@+ -]{1,200}", re.ASCII)


class StorageError(RuntimeError):
    """An artifact cannot be read or written; the message names it and the remedy."""


class StoredFile(BaseModel):
    """One file of an artifact."""

    size: int = Field(description="Bytes")
    sha256: str


def _below_the_folder(name: str) -> str:
    # A manifest may come from a bucket that others write to; its names are read, written and removed.
    if not _FILE.fullmatch(name) or any(not part.strip(".") for part in name.split("/")):
        raise ValueError(f"{name!r} is not the name of a file below the artifact's folder")
    return name


FileName = Annotated[str, AfterValidator(_below_the_folder)]


class Manifest(BaseModel):
    """What an artifact consists of and what it was made from."""

    model_config = ConfigDict(frozen=True)

    asset: str
    partition: str | None = None
    data_version: str = Field(
        pattern="^[A-Za-z0-9]+$", description="Hash of the content; equal content has an equal version"
    )
    code_version: str = Field(description="Version of the asset's code, and a hash of its configuration")
    config: dict[str, Any] = {}
    inputs: dict[str, str] = Field({}, description="Upstream artifact -> its data version")
    files: dict[FileName, StoredFile]
    rows: int | None = None
    package_version: str = version("apeagent_pipeline")
    created_at: str = ""


def digest(value: Any) -> str:
    """The first 16 hex digits of the SHA-256 of a JSON value; equal values have equal digests."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def parquet_bytes(table: pl.DataFrame) -> bytes:
    """The table as Parquet; the same rows give the same bytes."""
    buffer = io.BytesIO()
    table.write_parquet(buffer, compression="zstd", statistics=True, row_group_size=1 << 17)
    return buffer.getvalue()


class ArtifactStore:
    """Reads and publishes artifacts below one root, a local folder or an fsspec URL."""

    def __init__(self, root: str, cache: Path) -> None:
        """Nothing is read or written yet.

        Args:
            root: Folder or fsspec URL of all artifacts.
            cache: Local folder for copies of remote artifacts.
        """
        self.root = UPath(root)
        self.cache = cache

    @property
    def _is_local(self) -> bool:
        return self.root.protocol in ("", "file")

    def folder(self, asset: str) -> UPath:
        """Where an asset's files lie.

        Raises:
            StorageError: That is not the name of an asset.
        """
        if not _ASSET.fullmatch(asset):
            raise StorageError(
                f"{asset!r} is not an asset: expected a name such as raw_swaps, with a day after a slash"
            )
        return self.root / asset

    def path(self, asset: str, partition: str | None = None) -> UPath:
        """What to show people: the day's table, or the asset's folder."""
        return self.folder(asset) / f"{_day(partition)}.parquet" if partition else self.folder(asset)

    def _manifest_path(self, asset: str, partition: str | None) -> UPath:
        return self.folder(asset) / (f"{_day(partition)}.manifest.json" if partition else "manifest.json")

    def manifest(self, asset: str, partition: str | None = None) -> Manifest | None:
        """The manifest of a whole artifact, or None if it is missing, torn or was deleted in part."""
        try:
            manifest = Manifest.model_validate_json(self._manifest_path(asset, partition).read_text())
            sizes = {name: (self.folder(asset) / name).stat().st_size for name in manifest.files}
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, UnicodeDecodeError, ValidationError):
            return None
        return manifest if all(sizes[name] == file.size for name, file in manifest.files.items()) else None

    def days(self, asset: str) -> list[str]:
        """The days of which a table is stored, in order."""
        folder = self.folder(asset)
        if not folder.exists():
            return []
        return sorted(path.stem for path in folder.glob("*.parquet") if _DAY.fullmatch(path.stem))

    def scan(self, asset: str, partition: str | None = None) -> pl.LazyFrame:
        """An asset's table, read when collected.

        Raises:
            StorageError: There is no such table.
        """
        path = self.path(asset, partition) if partition else self.folder(asset) / f"{asset}.parquet"
        if not path.exists():
            raise StorageError(f"{path} does not exist: materialize {asset} {partition or ''} first".rstrip())
        return pl.scan_parquet(str(path)) if self._is_local else pl.scan_parquet(io.BytesIO(path.read_bytes()))

    def local_folder(self, asset: str) -> Path:
        """The asset's folder as a local path; a remote one is copied to the cache once per data version.

        Raises:
            StorageError: There is no whole artifact, or a remote file has not the hash in its manifest.
        """
        manifest = self.manifest(asset)
        if manifest is None:
            raise StorageError(f"{self.folder(asset)} holds no complete artifact: materialize {asset} first")
        if self._is_local:
            return Path(str(self.folder(asset)))
        copy = self.cache / asset / manifest.data_version
        if not copy.exists():
            aside = copy.with_name(f".{copy.name}.{uuid.uuid4().hex}")
            try:
                for name, stored in manifest.files.items():
                    (aside / name).parent.mkdir(parents=True, exist_ok=True)
                    (aside / name).write_bytes((self.folder(asset) / name).read_bytes())
                    if _describe(aside / name) != stored:
                        raise StorageError(
                            f"{self.folder(asset) / name} is not the file that its manifest describes: materialize "
                            f"{asset} again"
                        )
                aside.replace(copy)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        return copy

    def publish_table(self, table: pl.DataFrame, **made_from: Any) -> Manifest:
        """Publish one table; keyword arguments are fields of the manifest (asset, partition, inputs, ...)."""
        name = f"{made_from.get('partition') or made_from['asset']}.parquet"
        return self._publish({name: parquet_bytes(table)}, rows=table.height, **made_from)

    def publish_bytes(self, files: Mapping[str, bytes], **made_from: Any) -> Manifest:
        """Publish an artifact of small files."""
        return self._publish(files, **made_from)

    def publish_folder(self, folder: Path, **made_from: Any) -> Manifest:
        """Publish every file below a local folder."""
        files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        return self._publish(files, **made_from)

    def _publish(
        self, files: Mapping[str, bytes | Path], *, asset: str, partition: str | None = None, **rest: Any
    ) -> Manifest:
        stored = {name: _describe(content) for name, content in files.items()}
        manifest = Manifest(
            asset=asset,
            partition=partition,
            data_version=digest({name: file.sha256 for name, file in stored.items()}),
            files=stored,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            **rest,
        )
        previous = None if partition else self.manifest(asset)
        self._put(asset, files)
        manifest_name = self._manifest_path(asset, partition).name
        self._put(asset, {manifest_name: (manifest.model_dump_json(indent=2) + "\n").encode()})
        for name in set(previous.files if previous else ()) - set(stored):
            (self.folder(asset) / name).unlink(missing_ok=True)
        return manifest

    def _put(self, asset: str, files: Mapping[str, bytes | Path]) -> None:
        """Write files so that each is the old or the new one at any moment; locally all change within moments."""
        if not self._is_local:
            for name, content in files.items():  # an object store's put is atomic by itself
                (self.folder(asset) / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
            return
        folder = Path(str(self.folder(asset)))
        aside: dict[Path, Path] = {}
        try:
            for name, content in files.items():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                _remove_what_the_dead_left(target)
                aside[target] = target.with_name(f".{target.name}.{os.getpid()}.{uuid.uuid4().hex}.tmp")
                with aside[target].open("wb") as file:
                    if isinstance(content, bytes):
                        file.write(content)
                    else:
                        with content.open("rb") as source:
                            shutil.copyfileobj(source, file, 1 << 22)
                    file.flush()
                    os.fsync(file.fileno())
            for target, path in aside.items():
                path.replace(target)
        finally:
            for path in aside.values():
                path.unlink(missing_ok=True)


def _day(partition: str) -> str:
    if not _DAY.fullmatch(partition):
        raise StorageError(f"{partition!r} is not a day: expected a partition such as 2025-01-21")
    return partition


def _remove_what_the_dead_left(target: Path) -> None:
    """Remove temporary files for this target whose writer was killed; its process id stands in their name."""
    for path in target.parent.glob(f".{target.name}.*.tmp"):
        pid = path.name.removeprefix(f".{target.name}.").split(".")[0]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            path.unlink(missing_ok=True)


def _describe(content: bytes | Path) -> StoredFile:
    if isinstance(content, bytes):
        return StoredFile(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    with content.open("rb") as file:
        return StoredFile(size=content.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())
