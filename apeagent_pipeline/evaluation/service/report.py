"""The report on one day of the adapter in service: rates, worth, drift and page from the answers."""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from apeagent_pipeline.distillation.canary_words import SIDES
from apeagent_pipeline.evaluation.rates import Rate, draw_bars
from apeagent_pipeline.evaluation.service.config import ServiceReportConfig
from apeagent_pipeline.evaluation.service.drift import LARGEST_PSI, Drift, drift_metrics
from apeagent_pipeline.evaluation.statistics import mean_interval
from apeagent_pipeline.reporting.figures import new_figure, png
from apeagent_pipeline.reporting.foreign_text import code_block, markdown_line
from apeagent_pipeline.reporting.report import Report, markdown_table

HEADLINE = (
    "canary_rate",
    "feasible_rate",
    "agreement_plain",
    "agreement_digested",
    "worth_bps",
    "rules_worth_bps",
    "largest_ks_of_limit",
    "largest_psi",
)
_OF_ALL_FORMS = ("canary_rate", "feasible_rate", "agreement")
_SHOWN_ANSWERS = 2


def service_rates(answers: pl.DataFrame) -> dict[str, Rate]:
    """The rates of some answers by name: of all forms, and ``NAME_FORM`` of each; none without answers."""
    found = {}
    groups = {"": answers, **{f"_{form}": each for (form,), each in answers.group_by("form", maintain_order=True)}}
    for end, group in groups.items():
        if group.height:
            found[f"canary_rate{end}"] = Rate.of(group["is_canary"])
            found[f"feasible_rate{end}"] = Rate.of(group["is_feasible"])
            found[f"agreement{end}"] = Rate.of(group["decision"] == group["rules_decision"])
    return found


def service_report(
    day: str,
    answers: pl.DataFrame,
    drift: Mapping[str, Drift],
    config: ServiceReportConfig,
    *,
    seed: int,
    trained_on: Sequence[str],
) -> Report:
    """The report on one day.

    Args:
        day: The day.
        answers: Rows of ``day_answers``.
        drift: Of ``drift_of``; empty if the day could not be compared.
        config: Moments and wordings.
        seed: Of the bootstrap.
        trained_on: The days that the adapter was trained on.
    """
    rates = service_rates(answers)
    metrics = {name: rate.value for name, rate in rates.items()}
    intervals = {name: rate.interval for name, rate in rates.items()}
    for name in ("worth_bps", "rules_worth_bps") if answers.height else ():
        # The forms of a moment share its market, so a moment counts once.
        by_moment = answers.group_by("moment", maintain_order=True).agg(pl.col(name).mean())[name].to_numpy()
        metrics[name], intervals[name] = float(by_moment.mean()), mean_interval(by_moment, seed)
    metrics |= {f"decided_{side.lower()}": float((answers["decision"] == side).sum()) for side in SIDES}
    metrics |= {"refused": float(answers["refused"].sum()), "n_answers": float(answers.height)}
    metrics |= {"was_trained_on": float(day in trained_on), **drift_metrics(drift)}
    figure = f"{day}.service.png"
    return Report(
        title=f"The adapter in service on {day}",
        metrics=metrics,
        intervals=intervals,
        config=config.model_dump(),
        markdown=_page(
            day, answers, rates, drift, metrics=metrics, intervals=intervals, trained_on=trained_on, figure=figure
        ),
        figures={figure: _figure(rates, answers, drift)},
        headline=HEADLINE,
    )


def _page(
    day: str,
    answers: pl.DataFrame,
    rates: Mapping[str, Rate],
    drift: Mapping[str, Drift],
    *,
    metrics: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]],
    trained_on: Sequence[str],
    figure: str,
) -> str:
    if answers.is_empty():
        asked = f"{day} has too few swaps for a single question."
    else:
        adapter, moments = answers["adapter"][0], answers["moment"].n_unique()
        worth = ", ".join(
            f"{who} {metrics[name]:+.1f} bps ({intervals[name][0]:+.1f} to {intervals[name][1]:+.1f})"
            for who, name in (("the adapter", "worth_bps"), ("the rules", "rules_worth_bps"))
        )
        asked = (
            f"Adapter `{adapter}` was asked about {moments} moments of {day}, in {answers['form'].n_unique()} forms. "
            f"Compared with holding, after fee and price impact, a decision gained on average: {worth}. One day is "
            "little evidence; the intervals show how little."
        )
    seen = "The adapter was trained on this day." if day in trained_on else "The adapter was not trained on this day."
    return "\n\n".join(
        [
            f"{asked} {seen}",
            f"![Rates, decisions and drift of {day}]({figure})",
            markdown_table(["rate", "n", "value", "exact 95 % interval"], [[k, *r.row()] for k, r in rates.items()]),
            "## Drift of the market\n\n" + _drift_section(drift, trained_on),
            *(["## Answers\n\n" + _examples(answers)] if answers.height else []),
        ]
    )


def _drift_section(drift: Mapping[str, Drift], trained_on: Sequence[str]) -> str:
    if not drift:
        return "Not measured: the day, or the stored days that the adapter was trained on, have too few swaps."
    rows = [
        [name, f"{each.ks:.3f}", f"{each.limit:.3f}", f"{each.psi:.3f}", "left" if each.has_left else "within"]
        for name, each in drift.items()
    ]
    table = markdown_table(["feature", "KS", "limit of KS", "stability index", "training market"], rows)
    return (
        f"Compared with the {len(trained_on)} days {min(trained_on)} to {max(trained_on)} that the adapter was trained "
        "on. A feature has left the training market if its Kolmogorov-Smirnov distance exceeds the limit that the "
        f"training days make plausible, and its population stability index reaches {LARGEST_PSI:g}.\n\n{table}"
    )


def _examples(answers: pl.DataFrame) -> str:
    rows = answers.group_by("form", maintain_order=True).head(_SHOWN_ANSWERS)
    return "\n\n".join(
        f"> {markdown_line(row['prompt'])}\n\n{code_block(row['answer'])}\n\nThe rules: {row['rules_decision']}; worth "
        f"{row['worth_bps']:+.1f} bps."
        for row in rows.iter_rows(named=True)
    )


def _figure(rates: Mapping[str, Rate], answers: pl.DataFrame, drift: Mapping[str, Drift]) -> bytes:
    figure, axes = new_figure(1, 3, size=(12.0, 3.2))
    by_rate, by_side, by_feature = axes[0]
    by_form = {
        name.replace("_rate", "").replace("_", "\n"): rate for name, rate in rates.items() if name not in _OF_ALL_FORMS
    }
    if by_form:
        draw_bars(by_rate, by_form, show_n=False)
    by_rate.tick_params(axis="x", labelsize=7)
    by_rate.set_title("rates, 95 % intervals")
    places = np.arange(len(SIDES))
    for shift, name, label in ((-0.2, "decision", "adapter"), (0.2, "rules_decision", "rules")):
        by_side.bar(places + shift, [int((answers[name] == side).sum()) for side in SIDES], 0.4, label=label)
    by_side.set_xticks(places, SIDES)
    by_side.set_title("decisions")
    by_side.legend(fontsize=7)
    by_feature.barh(list(drift), [each.ks for each in drift.values()], color="tab:blue", alpha=0.8, label="this day")
    by_feature.plot([each.limit for each in drift.values()], list(drift), "k|", markersize=12, label="limit")
    by_feature.set_title("KS distance from the training days")
    by_feature.tick_params(axis="y", labelsize=7)
    if drift:
        by_feature.legend(fontsize=7)
    return png(figure)
