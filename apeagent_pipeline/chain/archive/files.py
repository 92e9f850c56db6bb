"""Which files an archive consists of: every file of a folder is read or named as not read."""

import re
from pathlib import Path
from typing import NamedTuple

from apeagent_pipeline.chain.archive.problems import ArchiveError

_COMPRESSIONS = (".gz", ".zst", ".zstd", ".bz2", ".xz")
_TABLES = (".csv", ".tsv", ".txt", ".parquet", ".pq", ".parq", ".json", ".jsonl", ".ndjson")
_CONTAINERS = {
    ".zip": "unpack it",
    ".tar": "unpack it",
    ".tgz": "unpack it",
    ".7z": "unpack it",
    ".rar": "unpack it",
    ".xlsx": "a spreadsheet keeps 15 digits of a number; export the swaps as CSV or Parquet from their source",
    ".xls": "a spreadsheet keeps 15 digits of a number; export the swaps as CSV or Parquet from their source",
    ".ods": "a spreadsheet keeps 15 digits of a number; export the swaps as CSV or Parquet from their source",
    ".feather": "write it as Parquet (pandas: read_feather(...).to_parquet(...))",
    ".arrow": "write it as Parquet (pandas: read_feather(...).to_parquet(...))",
    ".ipc": "write it as Parquet (polars: read_ipc(...).write_parquet(...))",
    ".avro": "write it as Parquet (polars: read_avro(...).write_parquet(...))",
    ".orc": "write it as Parquet",
    ".pkl": "write it as Parquet (pandas: to_parquet)",
    ".pickle": "write it as Parquet (pandas: to_parquet)",
    ".db": "export its table as CSV or Parquet",
    ".sqlite": "export its table as CSV (sqlite3 -csv -header)",
    ".duckdb": "export its table (DuckDB: COPY ... TO 'swaps.parquet')",
    ".part": "the download is not complete; fetch it again",
    ".crdownload": "the download is not complete; fetch it again",
}


class ArchiveFiles(NamedTuple):
    """The files of an archive.

    Attributes:
        tables: To be read, in the order of their paths.
        skipped: (name, why it is not read).
    """

    tables: tuple[Path, ...]
    skipped: tuple[tuple[str, str], ...]


def archive_files(path: Path) -> ArchiveFiles:
    """Find the tables of an archive: one file, or all files of a folder and its subfolders.

    Raises:
        ArchiveError: if there is none, or one that may hold swaps cannot be read.
    """
    if path.is_dir():
        return _of_folder(path)
    if not path.is_file():
        raise ArchiveError(
            f"the swap archive {path} does not exist; set APEAGENT_SWAPS_ARCHIVE to a CSV, Parquet or JSON file or to "
            "a folder of them"
        )
    if remedy := _CONTAINERS.get(path.suffix.lower()):
        raise ArchiveError(f"the swap archive {path} is not a table in a supported format: {remedy}")
    return ArchiveFiles((path,), ())


def _of_folder(folder: Path) -> ArchiveFiles:
    tables: list[Path] = []
    skipped: list[tuple[str, str]] = []
    for file in sorted(_walk(folder, folder, skipped)):
        name = str(file.relative_to(folder))
        if file.name.startswith((".", "_")):
            skipped.append((name, "hidden"))
        elif file.name.endswith(".manifest.json"):
            skipped.append((name, "a manifest"))
        elif remedy := _CONTAINERS.get(file.suffix.lower()):
            raise ArchiveError(f"{file} may hold swaps but cannot be read: {remedy}, or move it out of the folder")
        elif not _is_table(file) and not file.is_dir():
            skipped.append((name, "no table"))
        elif not file.is_file() or not file.resolve().is_relative_to(folder.resolve()):
            raise ArchiveError(
                f"{file} is not a file of the archive's own folder; remove it from there, or replace links by the "
                "files they point to (cp -rL FOLDER COPY)"
            )
        else:
            tables.append(file)
    if not tables:
        named = ", ".join(f"{name} ({why})" for name, why in skipped[:10])
        raise ArchiveError(
            f"the swap archive folder {folder} holds no .csv, .parquet or .json file"
            f"{'; not read: ' + named if named else ''}"
        )
    return ArchiveFiles(tuple(tables), tuple(skipped))


def _walk(folder: Path, root: Path, skipped: list[tuple[str, str]]) -> list[Path]:
    found: list[Path] = []
    children = sorted(folder.iterdir())
    if not children and folder != root:
        skipped.append((str(folder.relative_to(root)), "an empty folder"))
    for child in children:
        if child.is_dir() and not child.is_symlink():
            if child.name.startswith((".", "_")):
                skipped.append((str(child.relative_to(root)), "a hidden folder"))
            else:
                found += _walk(child, root, skipped)
        else:
            found.append(child)
    return found


def _is_table(file: Path) -> bool:
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    return bool(suffixes) and suffixes[-1] in _TABLES


def natural_order(files: tuple[Path, ...]) -> list[Path]:
    """Sorted so that ``swaps_9`` comes before ``swaps_10``."""
    return sorted(files, key=lambda file: [(int(part), "") if part.isdigit() else (-1, part) for part in _parts(file)])


def _parts(file: Path) -> list[str]:
    return [part for part in re.split(r"(\d+)", str(file)) if part]
