"""Swaps to files that this project and other tools read without losing a digit."""

import gzip
from pathlib import Path

import polars as pl

from apeagent_pipeline.atomic_files import replacing
from apeagent_pipeline.chain.archive.problems import ArchiveError


def write_swaps(swaps: pl.DataFrame, file: Path) -> None:
    """Write RAW_SWAPS_SCHEMA as Parquet, CSV or JSON lines, by the file's ending.

    Times are ISO 8601 in UTC and amounts decimal text in the text formats.

    Raises:
        ArchiveError: if the ending is another.
    """
    name = file.name.lower()
    text = swaps.with_columns(pl.col("block_timestamp").dt.strftime("%Y-%m-%dT%H:%M:%SZ"))
    with replacing(file) as temporary:
        if name.endswith(".parquet"):
            swaps.write_parquet(temporary)
        elif name.endswith(".csv"):
            text.write_csv(temporary)
        elif name.endswith(".csv.gz"):
            temporary.write_bytes(gzip.compress(text.write_csv().encode(), mtime=0))
        elif name.endswith((".jsonl", ".ndjson")):
            text.write_ndjson(temporary)
        else:
            raise ArchiveError(f"{file} must end in .parquet, .csv, .csv.gz or .jsonl")
