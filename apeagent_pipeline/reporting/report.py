"""A report: numbers that programs read, and a page that people read."""

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Report:
    """What ``synthetic_quality``, ``canary_eval`` and ``backtest`` return.

    Attributes:
        title: Heading of the page.
        metrics: Flat name -> number. A number that could not be computed is left out, never written as 0 or NaN.
        intervals: Metric name -> (low, high) of its confidence interval.
        config: The configuration that produced the numbers, as plain JSON values.
        markdown: The body of the page (tables, explanations); ``![caption](name.png)`` refers to a figure.
        figures: ``name.png`` -> the picture's bytes.
    """

    title: str
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    markdown: str = ""
    figures: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        broken = [name for name, value in self.metrics.items() if not math.isfinite(value)]
        if broken:
            raise ValueError(f"{self.title}: metrics {broken} are not finite numbers; leave out what was not measured")

    def files(self, provenance: Mapping[str, Any]) -> dict[str, bytes]:
        """The report as files: ``report.json``, ``report.md`` and the figures.

        Args:
            provenance: What the report was made from, written into both files.
        """
        document = {
            "metrics": {name: float(value) for name, value in self.metrics.items()},
            "intervals": {name: [float(low), float(high)] for name, (low, high) in self.intervals.items()},
            "provenance": dict(provenance),
            "config": self.config,
        }
        made_from = json.dumps(provenance, indent=2, sort_keys=True)
        page = f"# {self.title}\n\n{self.markdown.strip()}\n\n## Made from\n\n```json\n{made_from}\n```\n"
        return {
            "report.json": (json.dumps(document, indent=2, sort_keys=True) + "\n").encode(),
            "report.md": page.encode(),
            **self.figures,
        }

    def save(self, folder: Path, provenance: Mapping[str, Any]) -> None:
        """Write the files to a folder, each whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files(provenance).items():
            partial = folder / f".{name}.partial"
            partial.write_bytes(content)
            partial.replace(folder / name)

    def inline_markdown(self) -> str:
        """The page with its figures embedded as base64, for viewers that cannot follow a link to a file."""
        page = self.markdown
        for name, picture in self.figures.items():
            page = page.replace(f"({name})", f"(data:image/png;base64,{base64.b64encode(picture).decode()})")
        return page


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A GitHub-style table; cells are text already formatted by the caller."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
