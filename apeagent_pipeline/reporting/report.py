"""A report: metrics for programs and a page for people."""

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apeagent_pipeline.atomic_files import write_atomically


@dataclass(frozen=True)
class Report:
    """The result of ``synthetic_quality``, ``canary_eval`` and ``backtest``.

    Attributes:
        title: Heading of the page.
        metrics: Name -> finite number. Leave out a metric that could not be computed; do not write 0 or NaN.
        intervals: Metric name -> (low, high) of its confidence interval.
        config: The configuration that produced the metrics, as JSON values.
        markdown: The body of the page (tables, explanations); ``![caption](name.png)`` refers to a figure.
        figures: ``name.png`` -> PNG bytes.
        headline: Names of the few metrics that answer the reader's question; empty: all. A viewer shows these as
            numbers, and every metric in `figures_table`.
    """

    title: str
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    markdown: str = ""
    figures: dict[str, bytes] = field(default_factory=dict)
    headline: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        broken = [name for name, value in self.metrics.items() if not math.isfinite(value)]
        if broken:
            raise ValueError(
                f"{self.title}: the metrics {broken} are not finite; leave out metrics that were not measured"
            )

    def figures_table(self) -> str:
        """Every metric with its interval as a Markdown table, rounded to four digits."""
        rows = [
            [
                name.replace("_", " "),
                f"{value:.4g}",
                "{:.4g} to {:.4g}".format(*self.intervals[name]) if name in self.intervals else "",
            ]
            for name, value in self.metrics.items()
        ]
        return markdown_table(["figure", "value", "95 % interval"], rows)

    def files(self, provenance: Mapping[str, Any]) -> dict[str, bytes]:
        """Render the report as files: ``report.json``, ``report.md`` and the figures.

        Args:
            provenance: The inputs of the report, written into both files.
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
        """Write the files into a folder, each atomically."""
        for name, content in self.files(provenance).items():
            write_atomically(folder / name, content)

    def inline_markdown(self) -> str:
        """The page with its figures embedded as base64, for viewers that cannot open linked files."""
        page = self.markdown
        for name, picture in self.figures.items():
            page = page.replace(f"({name})", f"(data:image/png;base64,{base64.b64encode(picture).decode()})")
        return page


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """Build a GitHub-style table; the caller formats the cells, and bars in them are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
