"""A report must say what was measured and nothing that was not."""

import json

import pytest

from apeagent_pipeline.defs.metadata import report_metadata
from apeagent_pipeline.reporting.figures import new_figure, png
from apeagent_pipeline.reporting.report import Report, markdown_table


def test_a_number_that_could_not_be_computed_cannot_enter_a_report() -> None:
    with pytest.raises(ValueError, match="ks_mean"):
        Report("quality", {"ks_mean": float("nan"), "mmd": 0.1})


def test_programs_find_metrics_intervals_provenance_and_config() -> None:
    report = Report("canary", {"canary_rate_adapter": 1.0}, {"canary_rate_adapter": (0.96, 1.0)}, {"n": 100}, "page")
    files = report.files({"inputs": {"lora_adapter": "abc"}})
    document = json.loads(files["report.json"])
    assert document["metrics"] == {"canary_rate_adapter": 1.0}
    assert document["intervals"] == {"canary_rate_adapter": [0.96, 1.0]}
    assert document["provenance"]["inputs"] == {"lora_adapter": "abc"}
    assert document["config"] == {"n": 100}
    assert b"lora_adapter" in files["report.md"]


def test_the_same_data_gives_the_same_picture_so_that_reports_can_be_compared() -> None:
    pictures = []
    for _ in range(2):
        figure, axes = new_figure()
        axes[0, 0].plot([1, 2, 3])
        pictures.append(png(figure))
    assert pictures[0] == pictures[1]
    assert pictures[0].startswith(b"\x89PNG")


def test_figures_are_seen_in_the_ui_without_any_file() -> None:
    report = Report("quality", {}, markdown="![paths](paths.png)", figures={"paths.png": b"png"})
    assert report.inline_markdown() == "![paths](data:image/png;base64,cG5n)"


def test_a_cell_with_a_bar_does_not_break_the_table() -> None:
    assert markdown_table(["a"], [["x|y"]]).splitlines()[2] == "| x\\|y |"


def test_the_asset_page_shows_the_headline_as_rounded_numbers_and_every_metric_in_one_table() -> None:
    report = Report(
        "quality", {"auc": 0.50123456, "ks": 0.0151515, "rows": 3800.0}, {"auc": (0.48, 0.52)}, headline=("auc",)
    )
    shown = report_metadata(report)
    assert list(shown) == ["report", "auc", "all figures"]
    assert shown["auc"] == 0.5012
    assert "| auc | 0.5012 | 0.48 to 0.52 |\n| ks | 0.01515 |  |\n| rows | 3800 |  |" in shown["all figures"].value
