"""The metadata that every asset shows in the UI, by what kind of artifact it is."""

import base64
from collections.abc import Mapping
from typing import Any

import dagster as dg
import polars as pl

from apeagent_pipeline.artifacts.manifest import Manifest
from apeagent_pipeline.artifacts.store import ArtifactStore
from apeagent_pipeline.chain import events, liquidity
from apeagent_pipeline.distillation import prompts, traces
from apeagent_pipeline.evaluation.service import answers
from apeagent_pipeline.gan import swap_execution
from apeagent_pipeline.market import features, windows
from apeagent_pipeline.reporting.foreign_text import markdown_line
from apeagent_pipeline.reporting.report import Report, markdown_table

COLUMNS = {
    **events.COLUMN_DESCRIPTIONS,
    **liquidity.COLUMN_DESCRIPTIONS,
    **features.COLUMN_DESCRIPTIONS,
    **windows.COLUMN_DESCRIPTIONS,
    **swap_execution.COLUMN_DESCRIPTIONS,
    **prompts.COLUMN_DESCRIPTIONS,
    **traces.COLUMN_DESCRIPTIONS,
    **answers.COLUMN_DESCRIPTIONS,
}
"""What each column of a stored table means; shown in the UI. The descriptions stand beside the schemas."""

PROMOTED_NOW, WHY = "promoted", "why"
"""Keys of what `promoted_adapter` says about the newest adapter: whether it is in service, and why or why not."""
_PREVIEW_ROWS = 3
_CELL_CHARACTERS = 24


def picture(caption: str, image: bytes) -> dg.MetadataValue:
    """A PNG as metadata that the UI shows."""
    return dg.MetadataValue.md(f"![{caption}](data:image/png;base64,{base64.b64encode(image).decode()})")


def artifact_metadata(manifest: Manifest, store: ArtifactStore) -> dict[str, Any]:
    """Path, hash, size and origin of an artifact."""
    return {
        **({"experiment": experiments_in_words(manifest.experiments)} if manifest.experiments else {}),
        "path": dg.MetadataValue.path(str(store.path(manifest.asset, manifest.partition))),
        "content_hash": manifest.data_version,
        "size_bytes": sum(file.size for file in manifest.files.values()),
        "inputs": dg.MetadataValue.json(manifest.inputs),
        "config": dg.MetadataValue.json(manifest.config),
    }


def experiments_in_words(experiments: Mapping[str, str]) -> str:
    """Which assets were launched with other options than the profile's, and with which."""
    return "; ".join(f"{asset} was launched with {other}" for asset, other in experiments.items())


def table_metadata(table: pl.DataFrame | pl.LazyFrame, *, partition: bool = False) -> dict[str, Any]:
    """Row count, column schema and a preview of a table. Of a lazy one only the first rows are read."""
    rows = table.lazy().select(pl.len()).collect().item()
    table = table.lazy().head(_PREVIEW_ROWS).collect()
    return {
        "dagster/partition_row_count" if partition else "dagster/row_count": rows,
        "dagster/column_schema": dg.TableSchema(
            columns=[
                dg.TableColumn(name=name, type=str(kind), description=COLUMNS.get(name))
                for name, kind in table.schema.items()
            ]
        ),
        "preview": dg.MetadataValue.md(_preview(table)),
    }


def report_metadata(report: Report) -> dict[str, Any]:
    """The page itself, the headline metrics as numbers that the UI plots over time, and a table of all metrics."""
    shown = [name for name in report.headline or report.metrics if name in report.metrics]
    return {
        "report": dg.MetadataValue.md(report.inline_markdown()),
        **{name: float(f"{report.metrics[name]:.4g}") for name in shown},
        "all figures": dg.MetadataValue.md(report.figures_table()),
    }


def check_metadata(wrong: list[str], figures: Mapping[str, Any]) -> dict[str, Any]:
    """What the page of a check shows: what is wrong, if anything is, and its figures by names in words, rounded."""
    rounded = {name: float(f"{each:.4g}") if isinstance(each, float) else each for name, each in figures.items()}
    return {**({"wrong": wrong} if wrong else {}), **{name.replace("_", " "): each for name, each in rounded.items()}}


def _preview(table: pl.DataFrame) -> str:
    """The first rows, each as a column: a table may have more columns than fit a page."""
    # What a teacher said is shown, not rendered: the browser would ask for a picture's address, for one.
    first = table.head(_PREVIEW_ROWS)
    rows = [[name, *(markdown_line(_cell(value)) for value in first[name])] for name in first.columns]
    return markdown_table(["column", *(f"row {number + 1}" for number in range(first.height))], rows)


def _cell(value: Any) -> str:
    text = "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _CELL_CHARACTERS else text[: _CELL_CHARACTERS - 1] + "…"
