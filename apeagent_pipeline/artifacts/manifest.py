"""What an artifact says about itself: its files, inputs, configuration and data version."""

import hashlib
import io
import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
ASSET = re.compile("[A-Za-z0-9_]+")
_FILE = re.compile(r"(?:[\w.@+ -]{1,200}/){0,8}[\w.@+ -]{1,200}", re.ASCII)


class StoredFile(BaseModel):
    """One file of an artifact."""

    size: int = Field(description="Size in bytes")
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
    experiments: dict[str, str] = Field(
        {},
        description="Asset -> in words, the options that its run was launched with instead of the profile's; of this "
        "artifact and of everything that it was made from",
    )
    inputs: dict[str, str] = Field({}, description="Upstream artifact -> its data version")
    days: list[str] = Field(
        [],
        description="Days of swap_features that it was made from, itself or by way of its inputs; not of daily assets",
    )
    files: dict[FileName, StoredFile]
    folder: FileName | Literal[""] = Field(
        "", description="Subfolder of the asset's folder that holds the files; empty: the asset's folder itself"
    )
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


def describe(content: bytes | Path) -> StoredFile:
    """Size and hash of a file or of its content."""
    if isinstance(content, bytes):
        return StoredFile(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    with content.open("rb") as file:
        return StoredFile(size=content.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())
