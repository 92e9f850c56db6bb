"""Whether the adapter in service is still good: what the newest service reports say against what was promised.

A measure has decayed if even the favourable end of its exact `CONFIDENCE` interval is below what was expected by more
than its tolerance, on the newest day alone (a sudden change) or on the last `DAYS` days together (a slow one). The
confidence is high because the question is asked of several measures every night.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import polars as pl

from apeagent_pipeline.evaluation.rates import Rate
from apeagent_pipeline.evaluation.service.drift import Drift
from apeagent_pipeline.evaluation.service.report import service_rates
from apeagent_pipeline.evaluation.statistics import clopper_pearson

DAYS = 7
CONFIDENCE = 0.999
TOLERANCE = {"canary_rate": 0.05, "feasible_rate": 0.05, "agreement": 0.1}
"""By how much a rate may lie below the expected one: the prompts of service are not those of the evaluation."""

_SAYS = {
    "canary_rate": "the form of the answers deteriorates: canary answers",
    "feasible_rate": "the answers deteriorate: actions that the holdings pay for",
    "agreement": "decisions deviate from the rules: agreement",
}


class DayReport(NamedTuple):
    """What the verdict reads of one service report."""

    day: str
    answers: pl.DataFrame
    drift: Mapping[str, Drift]


def expected_rates(
    promised: Mapping[str, float], earlier: Sequence[DayReport], *, by_rules: bool
) -> Mapping[str, float]:
    """What each measure should be: name of `service_rates` -> rate.

    Args:
        promised: Metrics of the canary report that the adapter was promoted with.
        earlier: Reports of the adapter from before the days that are judged.
        by_rules: Whether the teacher was the embedded policy. Otherwise the promised agreement is not one with the
            rules, and that of the earlier reports is taken.
    """
    names = {**promised, **{"canary_rate": promised.get("canary_rate_adapter")}}
    found = {name: float(value) for name, value in names.items() if value is not None and _measure(name)}
    found = {name: value for name, value in found.items() if by_rules or _measure(name) != "agreement"}
    pooled = service_rates(pl.concat([each.answers for each in earlier])) if earlier else {}
    found = {**{name: rate.value for name, rate in pooled.items() if _measure(name) == "agreement"}, **found}
    # A form by itself says more than all forms together, of which the evaluation asks others.
    by_form = {_measure(name) for name in found if name not in TOLERANCE}
    return {name: value for name, value in found.items() if name not in TOLERANCE or name not in by_form}


def warnings(newest: Sequence[DayReport], expected: Mapping[str, float]) -> list[str]:
    """What is no longer as it was, one sentence each; empty if all is well.

    Args:
        newest: Reports of one adapter, the newest last, at most `DAYS`.
        expected: Of `expected_rates`.
    """
    if not newest:
        return []
    return [*_decayed(newest, expected), *_left(newest[-1])]


def _decayed(newest: Sequence[DayReport], expected: Mapping[str, float]) -> Iterator[str]:
    spans = {newest[-1].day: newest[-1:]}
    if len(newest) > 1:
        spans[f"{newest[0].day} to {newest[-1].day}"] = newest
    told = set()
    for span, reports in spans.items():
        for name, rate in service_rates(pl.concat([each.answers for each in reports])).items():
            measure = _measure(name)
            if measure is None or name not in expected or name in told:
                continue
            high = clopper_pearson(rate.k, rate.n, CONFIDENCE)[1]
            if high < expected[name] - TOLERANCE[measure]:
                told.add(name)
                form = name.removeprefix(measure).strip("_")
                yield (
                    f"{_SAYS[measure]}{f' in the form {form}' if form else ''} {_told(rate)} on {span}, "
                    f"expected {expected[name]:.0%}"
                )


def _left(report: DayReport) -> Iterator[str]:
    left = {name: each for name, each in report.drift.items() if each.has_left}
    if left:
        features = ", ".join(
            f"{name} (KS {each.ks:.2f}, limit {each.limit:.2f}; PSI {each.psi:.2f})" for name, each in left.items()
        )
        yield f"the market of {report.day} lies outside the range of the training days: {features}"


def _told(rate: Rate) -> str:
    return f"{rate.fraction} ({rate.value:.0%})"


def _measure(name: str) -> str | None:
    """The measure of a rate's name, such as ``agreement`` of ``agreement_plain``; None: it is not judged."""
    forms = ("", "_plain", "_digested", "_agent")
    return next((each for each in TOLERANCE if name in {f"{each}{form}" for form in forms}), None)
