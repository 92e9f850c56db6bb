"""The figure of a quarter: how far each day's market lay from the days of training, with what happened."""

import json
from datetime import date
from pathlib import Path

from apeagent_pipeline.artifacts.store import ArtifactStore
from apeagent_pipeline_tests.benchmarks.quarter.life import Quarter


def draw(quarter: Quarter, path: Path) -> None:
    """Write the figure as PNG.

    A day has left the training market if its largest distance exceeds its limit (the line at 1) and its stability index
    reaches 0.25.
    """
    from matplotlib.figure import Figure

    plan, settings = quarter.daemon.plan, quarter.daemon.settings
    store = ArtifactStore(settings.storage_url, settings.home / "cache" / "artifacts")
    days, largest = [], []
    for day, manifest in sorted(store.manifests("service_report").items(), key=str):
        if day and manifest:
            metrics = json.loads((store.local(manifest) / f"{day}.report.json").read_text())["metrics"]
            if "largest_ks_of_limit" in metrics:
                days.append(date.fromisoformat(day))
                largest.append(metrics["largest_ks_of_limit"])
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(days, largest, "o-", markersize=3, label="largest KS distance, share of its limit")
    axes.axhline(1, color="tab:red", linewidth=1, label="limit")
    planned = {
        "bad day": [plan.bad_day],
        "upgrade": plan.upgrades,
        "move": [plan.move],
        "killed run": [date.fromisoformat(each[:10]) for each in quarter.daemon.resumed],
        "changed market": [plan.change],
    }
    for number, (name, when) in enumerate(planned.items()):
        for which, day in enumerate(when):
            axes.axvline(day, color=f"C{number + 4}", linestyle=":", label=None if which else name)
    told = sorted({day for day, _ in quarter.alerts})
    axes.plot(told, [0.05] * len(told), "v", color="black", label="alert")
    axes.set_ylabel("share of the limit")
    axes.legend(fontsize=7, ncols=4, loc="upper left")
    figure.savefig(path, dpi=110)
