"""What the orchestration costs: a step in process and multiprocess, and a backfill of the embedded chain.

Run it with ``python apeagent_pipeline_tests/benchmarks/orchestration.py [DAYS]`` (60 days unless told otherwise). The
time to load the definitions is measured by ``loading.py`` beside it.
"""

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import dagster as dg
from rich.console import Console
from rich.table import Table

from apeagent_pipeline.chain.days import FIRST_DAY, days_between
from apeagent_pipeline.defs.build import build_graph
from apeagent_pipeline.defs.instance import open_instance
from apeagent_pipeline.defs.update import update
from apeagent_pipeline.settings import Settings

STEPS = 4


@dg.op
def nothing() -> None:
    """A step without work: all it costs is orchestration."""


@dg.job(executor_def=dg.in_process_executor)
def in_process() -> None:
    """Steps one after the other in one process."""
    for number in range(STEPS):
        nothing.alias(f"nothing_{number}")()


@dg.job(executor_def=dg.multiprocess_executor.configured({"max_concurrent": 1}))
def multiprocess() -> None:
    """Each step in a process of its own."""
    for number in range(STEPS):
        nothing.alias(f"nothing_{number}")()


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall seconds, and CPU seconds of this process and of those it started."""

    def cpu() -> float:
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    wall, before = time.perf_counter(), cpu()
    work()
    return time.perf_counter() - wall, cpu() - before


def backfill(instance: dg.DagsterInstance, settings: Settings, days: int) -> None:
    """The swaps and features of so many days in one run."""
    graph = build_graph(settings)
    wanted = [str(day) for day in days_between(FIRST_DAY, FIRST_DAY + timedelta(days=days - 1))]
    rounds = update(graph, instance, wanted, only={"raw_swaps", "swap_features"})
    assert all(each.success for each in rounds), [each.errors for each in rounds]
    assert graph.runtime.store.days("swap_features") == wanted


def run(instance: dg.DagsterInstance, job: dg.JobDefinition) -> None:
    """Run a job as a run of its own."""
    with dg.execute_job(dg.reconstructable(job), instance) as result:
        assert result.success


if __name__ == "__main__":
    days = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    table = Table("what", "wall seconds", "CPU seconds", title=f"{os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(home=Path(folder))
        with open_instance(settings) as instance:
            for name, job in (("in process", in_process), ("multiprocess", multiprocess)):
                wall, cpu = timed(lambda job=job: run(instance, job))
                table.add_row(f"a step without work, {name}", f"{wall / STEPS:.2f}", f"{cpu / STEPS:.2f}")
            wall, cpu = timed(lambda: backfill(instance, settings, days))
            table.add_row(f"swaps and features of {days} days, one run", f"{wall:.1f}", f"{cpu:.1f}")
    Console().print(table)
