"""A simulated quarter: nights, weekly retraining, killed runs, upgrades, a bad day, a move, a changed market.

Run it with ``python -m apeagent_pipeline_tests.benchmarks.quarter [--days 90]``. The clock is simulated; schedule,
automation conditions, sensors, retries and runs are the daemon's own. The models are tiny, so this shows how the parts
work together and which alerts come; it says nothing about the form and the decisions of a real adapter. It exits with 1
unless the change is told within two days, at most two alerts have no planted cause, every killed run is resumed, every
promotion is explained, and every manual step was asked for.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from unittest import mock

import dagster as dg
from rich.console import Console
from rich.table import Table

from apeagent_pipeline.artifacts.store import ArtifactStore
from apeagent_pipeline.chain.days import FIRST_DAY
from apeagent_pipeline.defs.instance import open_instance
from apeagent_pipeline.defs.service_checks import RETRAINED
from apeagent_pipeline.student.promotion import PROMOTED, history
from apeagent_pipeline_tests.benchmarks.quarter.figure import draw
from apeagent_pipeline_tests.benchmarks.quarter.life import Quarter, live
from apeagent_pipeline_tests.benchmarks.quarter.plan import SIZES_TIMES, Plan

LATEST, MOST_FALSE = 2, 2
"""Days after which the change must be told; false alerts at most."""

Rows = list[tuple[str, str | int | None, str | int | None]]


def without_cause(quarter: Quarter) -> list[tuple[date, str]]:
    """The alerts before the change that neither the bad day nor a killed run nor a refused candidate explains."""
    plan = quarter.daemon.plan
    return [
        (day, text)
        for day, text in quarter.alerts
        if day < plan.change and day != plan.bad_day and "is gone" not in text and "was not promoted" not in text
    ]


def told_on(quarter: Quarter) -> int | None:
    """The day of the changed market, from 1, on which the first alert tells of it; None: none does."""
    change = quarter.daemon.plan.change
    days = [(day - change).days + 1 for day, text in quarter.alerts if day >= change and "outside the range" in text]
    return min(days, default=None)


def promotions(quarter: Quarter) -> list[tuple[bool, str, bool]]:
    """Each candidate, the newest last: whether it went into service, why or why not, and whether that is known."""
    found = []
    with open_instance(quarter.daemon.settings) as instance:
        filled = instance.fetch_materializations(dg.AssetKey(PROMOTED), limit=1_000).records[::-1]
        for record in filled:
            assert record.asset_materialization is not None
            values = {name: each.value for name, each in record.asset_materialization.metadata.items()}
            if "promoted" in values:
                why = str(values.get("why", ""))
                found.append((bool(values["promoted"]), why, len(why.split()) > 2))
    return found


def verdict(quarter: Quarter) -> tuple[Rows, bool]:
    """The table of the quarter, and whether it shows what it must."""
    plan, daemon = quarter.daemon.plan, quarter.daemon
    last, lived = quarter.last, (quarter.last - FIRST_DAY).days + 1
    store = ArtifactStore(daemon.settings.storage_url, daemon.settings.home / "cache" / "artifacts")
    candidates, past, late = promotions(quarter), history(store), told_on(quarter)
    explained = sum(known for _, _, known in candidates)
    dated = sum(bool(each.trained_on and each.metrics) for each in past)
    false, resumed = without_cause(quarter), sum("the retry succeeded" in each for each in daemon.resumed)
    stale = quarter.stale(last)
    waiting = [each for each in stale if each.asset in RETRAINED and each.changed_inputs]
    reports = store.days("service_report")
    rows: Rows = [
        ("days read", plan.first, len(store.days("raw_swaps"))),
        ("days with a report on the adapter in service", None, f"{len(reports)} of {lived - plan.first} nights"),
        ("runs", None, daemon.runs),
        ("manual steps, each asked for by an alert or by `apeagent status` after an upgrade", None, len(quarter.steps)),
        ("calm days before the change", None, (plan.change - FIRST_DAY).days - plan.first),
        ("alerts before the change without a planted cause", None, len(false)),
        (f"the change (trades {SIZES_TIMES:g} times larger) is told on its day", None, late),
        ("runs killed; resumed by the retry", None, f"{len(daemon.resumed)}; {resumed}"),
        ("candidates; promoted", None, f"{len(candidates)}; {len(past)}"),
        ("candidates with a reason; promotions with their days of training", None, f"{explained}; {dated}"),
        ("artifacts out of date at the end; of these waiting for Sunday", None, f"{len(stale)}; {len(waiting)}"),
        *((name, f"{value:.1f}", f"{quarter.end[name]:.1f}") for name, value in quarter.start.items()),
    ]
    met = (
        late is not None
        and late <= LATEST
        and len(false) <= MOST_FALSE
        and resumed == len(daemon.resumed) == len(plan.crashes)
        and explained == len(candidates)
        and dated == len(past)
    )
    return rows, met


def main() -> int:
    """Live through the quarter and show what happened."""
    parser = argparse.ArgumentParser(description="A simulated quarter with tiny models.")
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--first", type=int, default=14, help="days of the first training")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no night later than so many minutes on")
    parser.add_argument("--figure", type=Path, help="PNG of the daily distances from the market of training")
    given = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict("os.environ", {"DAGSTER_HOME": ""}):
        begun, busy = time.monotonic(), time.process_time()
        quarter = live(Plan(given.days, given.first), Path(folder), console.print, given.minutes)
        took = f"{time.monotonic() - begun:.0f} s, {time.process_time() - busy:.0f} s of them computing"
        rows, met = verdict(quarter)
        if given.figure:
            draw(quarter, given.figure)
        for day, text in sorted(quarter.notes + quarter.steps):
            console.print(f"{day}: {text}")
        for line in quarter.daemon.resumed:
            console.print(line)
        for each in quarter.stale(quarter.last):
            console.print(f"out of date at the end: {each.name}, {each.reason}")
        for day, text in without_cause(quarter):
            console.print(f"without a cause, {day}: {text}")
        for promoted, why, _ in promotions(quarter):
            console.print(f"{'promoted' if promoted else 'refused'}: {why}")
    lived = (quarter.last - FIRST_DAY).days + 1
    table = Table("", "start", "end", title=f"{lived} of {given.days} days, tiny models, {took}")
    for name, start, end in rows:
        table.add_row(name, *("" if cell is None else str(cell) for cell in (start, end)))
    console.print(table)
    console.print(",\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
