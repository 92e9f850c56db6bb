"""When an asset is made again by itself."""

from dagster import AssetSelection
from dagster import AutomationCondition as When

from apeagent_pipeline.defs.partitions import DAILY_TAG

WEEKLY = "0 3 * * 0"
"""Sunday, 03:00 UTC: when expensive assets are made anew under the weekly policy."""

RETRY = "*/30 * * * *"
"""What failed is tried again every half hour: soon enough to heal, too seldom to burn a budget."""

WHOLE = AssetSelection.all() - AssetSelection.tag(DAILY_TAG, "daily")
"""The assets that exist or do not. A daily asset always has days that nobody requested."""


def on_change(due: When | None = None) -> When:
    """Made again after the content of an input changed; equal content made again changes nothing.

    A change is kept in mind until the asset was asked for, so none is lost while something is under way, and several
    between two looks are one run. What was asked for in vain is asked for again. An asset waits until each of its
    inputs was made, or is asked for with it.

    Args:
        due: What a change waits for beside that; None: nothing.
    """
    # Also of an input that the same run made: `executed_with_root_target` would leave that change out, but only of the
    # last day of a run, never of a job, and for good if the run is cancelled before it comes to this asset.
    change = When.any_deps_match(When.data_version_changed())
    # What changes between the request and the next look may have come too late for the run that was requested.
    handled = When.initial_evaluation() | (When.newly_requested() & ~change)
    changed = change.since(handled)
    failed = When.execution_failed() & When.cron_tick_passed(RETRY, "UTC")
    idle = ~When.any_deps_missing().allow(WHOLE) & ~When.any_deps_in_progress() & ~When.in_progress()
    label = "an input changed" if due is None else f"an input changed, {due.get_label()}"
    return (((changed if due is None else changed & due) | failed) & idle).with_label(label)


def retraining(policy: str) -> When | None:
    """The condition of an asset that costs hours or money.

    Args:
        policy: ``on_change``, ``weekly`` (on Sundays at 03:00 UTC if an input changed) or ``manual``.
    """
    if policy == "manual":
        return None
    if policy == "on_change":
        return on_change()
    sunday = When.cron_tick_passed(WEEKLY, "UTC").since(When.newly_requested() | When.initial_evaluation())
    return on_change(sunday.with_label("on Sunday"))
