"""The checks that warn, and hold nothing back: on the adapter in service, and on the markets of the stored days."""

import dagster as dg

from apeagent_pipeline.defs.last_time import seconds_last_time, teacher_cost
from apeagent_pipeline.defs.markets import RAW_SWAPS, REMEDY, markets_in_words, stored_markets
from apeagent_pipeline.defs.metadata import PROMOTED_NOW, WHY
from apeagent_pipeline.defs.resources import Runtime
from apeagent_pipeline.defs.service_days import SERVICE_REPORT, service_reports
from apeagent_pipeline.evaluation.service.verdict import DAYS, expected_rates, warnings
from apeagent_pipeline.reporting.durations import about
from apeagent_pipeline.student.promotion import PROMOTED, find_service, history

RETRAINED = (
    "training_windows", "trained_gan", "synthetic_windows", "synthetic_quality", "teacher_traces",
    "distillation_dataset", "lora_adapter", "canary_eval", "promoted_adapter",
)  # fmt: skip
"""What a retraining builds."""
_DAYS_REMEMBERED = 28


def service_checks(runtime: Runtime) -> list[dg.AssetChecksDefinition]:
    """All checks that warn, but for that of `freshness`."""
    return [_one_market(runtime), _newest_in_service(runtime), _still_good(runtime)]


def _one_market(runtime: Runtime) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=RAW_SWAPS,
        name="one_market",
        description="All stored days hold swaps of one market. Training windows over several markets are refused",
        blocking=False,
    )
    def one_market() -> dg.AssetCheckResult:
        markets = stored_markets(runtime.store)
        several = len(markets) > 1
        told = (
            f"the storage holds {len(markets)} markets: {markets_in_words(markets)}. {REMEDY}" if several else "passed"
        )
        return dg.AssetCheckResult(
            passed=not several,
            severity=dg.AssetCheckSeverity.WARN,
            description=told,
            metadata={market: f"{len(days)} days" for market, days in markets.items()},
        )

    return one_market


def _newest_in_service(runtime: Runtime) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=PROMOTED,
        name="newest_in_service",
        description="The newest adapter went into service. If it did not, the warning gives the reasons",
        blocking=False,
    )
    def newest_in_service(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        event = context.instance.get_latest_materialization_event(dg.AssetKey(PROMOTED))
        made = event.asset_materialization if event else None
        said = {name: each.value for name, each in made.metadata.items()} if made else {}
        newest = runtime.store.manifest("lora_adapter")
        refused = not said.get(PROMOTED_NOW, True)
        told = f"adapter {newest.data_version if newest else ''} was not promoted: {said.get(WHY, 'see its page')}"
        return dg.AssetCheckResult(
            passed=not refused,
            severity=dg.AssetCheckSeverity.WARN,
            description=told if refused else "passed",
            metadata={"in service": find_service(runtime.store).adapter},
        )

    return newest_in_service


def _still_good(runtime: Runtime) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=SERVICE_REPORT,
        name="still_good",
        description="The adapter in service keeps the form of its answers, decides as the rules do, and the "
        "market is like that of its training days. A warning says what to do",
        blocking=False,
    )
    def still_good(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        if not history(runtime.store):
            return dg.AssetCheckResult(passed=True, description="no adapter is in service")
        service = find_service(runtime.store)
        reports = service_reports(runtime.store, service.adapter, _DAYS_REMEMBERED)
        by_rules = runtime.settings.teacher == "rules"
        expected = expected_rates(service.metrics, reports[:-DAYS], by_rules=by_rules)
        found = warnings(reports[-DAYS:], expected)
        told = f"{'; '.join(found)}. {how_to_retrain(runtime, context.instance)}" if found else "passed"
        return dg.AssetCheckResult(
            passed=not found,
            severity=dg.AssetCheckSeverity.WARN,
            description=told if reports else "no report on the adapter in service yet",
            metadata={"adapter": service.adapter, "days": len(reports), "warnings": found},
        )

    return still_good


def how_to_retrain(runtime: Runtime, instance: dg.DagsterInstance) -> str:
    """The command that retrains on the newest stored days, with the time and the teacher's cost of last time."""
    days = runtime.store.days("swap_features")[-runtime.profile.training_windows.days :]
    command = f"`apeagent demo --from {days[0]} --to {days[-1]}`" if days else "`apeagent demo`"
    seconds = seconds_last_time(instance, RETRAINED)
    took = f"{about(sum(seconds.values()))} as measured here before" if seconds else "time not measured here yet"
    by_itself = {
        "on_change": "The daemon also retrains by itself after changed data",
        "weekly": "The daemon retrains on Sundays by itself",
        "manual": "The daemon does not retrain by itself",
    }[runtime.settings.retraining]
    return f"To retrain on the newest days: {command} ({took}; {teacher_cost(runtime)}). {by_itself}."
