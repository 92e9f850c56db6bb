"""What building assets took last time: seconds, from the history of their runs, and the teacher's bill."""

from collections.abc import Iterable

import dagster as dg

from apeagent_pipeline.defs.resources import Runtime


def seconds_last_time(instance: dg.DagsterInstance, names: Iterable[str]) -> dict[str, float]:
    """Asset -> how long its newest run took for it; assets that no recorded run made are left out."""
    found = {}
    for name in names:
        event = instance.get_latest_materialization_event(dg.AssetKey(name))
        for stats in instance.get_run_step_stats(event.run_id, [name]) if event else []:
            if stats.start_time and stats.end_time:
                found[name] = stats.end_time - stats.start_time
    return found


def teacher_cost(runtime: Runtime) -> str:
    """What the teacher's answers cost, in words."""
    if runtime.settings.teacher == "rules":
        return "the teacher costs nothing"
    manifest = runtime.store.manifest("teacher_traces")
    cost = runtime.store.table(manifest).collect()["cost_usd"].sum() if manifest else None
    told = f"its answers cost {cost:,.2f} USD last time; " if cost else ""
    return f"the teacher is paid: {told}`apeagent teach --dry-run` shows the cost before anything is asked"
