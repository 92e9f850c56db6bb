"""How long assets took when they were last built here, from the history of their runs."""

from collections.abc import Iterable

import dagster as dg


def seconds_last_time(instance: dg.DagsterInstance, names: Iterable[str]) -> dict[str, float]:
    """Asset -> how long its newest run took for it; assets that no recorded run made are left out."""
    found = {}
    for name in names:
        event = instance.get_latest_materialization_event(dg.AssetKey(name))
        for stats in instance.get_run_step_stats(event.run_id, [name]) if event else []:
            if stats.start_time and stats.end_time:
                found[name] = stats.end_time - stats.start_time
    return found
