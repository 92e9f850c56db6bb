"""Automation conditions: when the daemon rematerializes an asset.

The daemon follows changed inputs. It does not act on changed code or settings, so an upgrade never starts a training or
pays a teacher; `apeagent status` shows what they made stale, and `apeagent demo` rebuilds it.
"""

from datetime import timedelta

from dagster import AssetSelection
from dagster import AutomationCondition as When

from apeagent_pipeline.defs.partitions import DAILY_TAG, ON_NEW_DAYS, SYNCED

HOST_TAG = "apeagent/host"
"""Tag of every run that built something, with the machine that executes it; with Postgres, runs of other machines are
listed too."""

WEEKLY = "0 3 * * 0"
"""Sunday, 03:00 UTC: when the weekly policy rematerializes expensive assets."""

RETRY, RETRIES_END = "*/30 * * * *", "45 2-23/3 * * *"
"""Failures are retried every half hour, until the next of these three-hourly ticks: what has not recovered by then
fails for a cause that a retry does not mend, and each failure is an alert."""

DAYS_SYNCED = AssetSelection.tag(DAILY_TAG, SYNCED)
"""The daily assets that a sync of some days builds."""

WHOLE = AssetSelection.all() - DAYS_SYNCED - AssetSelection.tag(DAILY_TAG, ON_NEW_DAYS)
"""The assets that exist or do not. A daily asset always has days that nobody requested."""

NEW_DAYS = timedelta(days=31)
"""A day is new for so long: as many days as one night catches up on."""


_LONGEST_CHAIN = 8
"""More than the most inputs of inputs between any two assets that are not daily."""


def on_change(due: When | None = None, read: AssetSelection | None = None, *, is_patient: bool = False) -> When:
    """Rematerialize after the data version of an input changed. An input rebuilt with equal content changes nothing.

    A change stays pending until a run is requested, so no change is lost while a run is in progress; several changes
    cause one run. A failed run is requested again until RETRIES_END. An asset waits until each of its inputs exists or
    is requested together with it.

    Args:
        due: A further condition that a change waits for; None: none.
        read: The inputs whose changes count; None: all.
        is_patient: Whether it also waits while anything its inputs are made from is being built, as is worth it for an
            asset that costs hours: else a pending change would be taken in first, and that of new days once more.
    """
    change = _any_input(When.data_version_changed(), read)
    # A run that builds this asset too reads what it has changed, so the change is handled when this asset is built, and
    # stays pending if the run ends before. Dagster tells such runs for the last day of a range only, and never for a
    # job: what they have built is built once more.
    beside = When.executed_with_root_target()
    by_others = _any_input(When.data_version_changed() & ~beside, read)
    # Dagster remembers a since-condition by an id that does not look into any_deps_match: without another kind of
    # trigger, the two would share one memory.
    by_its_run = _any_input(When.data_version_changed() & beside, read) & ~When.initial_evaluation()
    changed = by_others.since(_handled(by_others)) | by_its_run.since(_handled(by_its_run) | When.newly_updated())
    begun = change if due is None else change | due.newly_true()
    recent = begun.since(When.cron_tick_passed(RETRIES_END, "UTC"))
    failed = When.execution_failed() & When.cron_tick_passed(RETRY, "UTC") & recent
    idle = ~When.any_deps_missing().allow(WHOLE) & ~When.any_deps_in_progress() & ~When.in_progress()
    if is_patient:
        idle &= ~_inputs_about_to_change()
    label = "an input changed" if due is None else f"an input changed, {due.get_label()}"
    return (((changed if due is None else changed & due) | failed) & idle).with_label(label)


def _handled(change: When) -> When:
    """When a change no longer counts, because a run was requested for it, or because it was before our time."""
    # A change between the request and the next evaluation may have come too late for the requested run.
    # An artifact that was registered (see `reconcile`) was built by no run, and was up to date or not before.
    registered = When.newly_updated() & ~When.executed_with_tags(tag_keys={HOST_TAG})
    return When.initial_evaluation() | (When.newly_requested() & ~change) | registered


def _inputs_about_to_change() -> When:
    """Whether an input that is not requested together with the asset depends on one that is built or requested now."""
    moving = When.in_progress() | When.will_be_requested()
    above = When.any_deps_match(moving).allow(WHOLE)
    for _ in range(_LONGEST_CHAIN):
        above = When.any_deps_match(moving | above).allow(WHOLE)
    return When.any_deps_match(~When.will_be_requested() & above).allow(WHOLE)


def _any_input(condition: When, read: AssetSelection | None) -> When:
    """Whether a condition holds for any input, or for any of those in ``read``."""
    found = When.any_deps_match(condition)
    return found if read is None else found.allow(read)


def on_new_day() -> When:
    """Materialize a day after its input days were read or changed, as long as the day is new.

    Other inputs do not count: a new adapter makes no report on a past day out of date. Old days are left to backfills.
    """
    is_new = When.in_latest_time_window(NEW_DAYS).with_label(f"the day is one of the last {NEW_DAYS.days}")
    return on_change(is_new, DAYS_SYNCED)


def retraining(policy: str) -> When | None:
    """The condition of an asset that costs hours or money.

    Args:
        policy: ``on_change``, ``weekly`` (Sundays at 03:00 UTC if an input changed) or ``manual``.
    """
    if policy == "manual":
        return None
    if policy == "on_change":
        return on_change(is_patient=True)
    sunday = When.cron_tick_passed(WEEKLY, "UTC").since(When.newly_requested() | When.initial_evaluation())
    return on_change(sunday.with_label("on Sunday"), is_patient=True)
