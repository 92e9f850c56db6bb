"""The daily score: what was answered, what it was worth, whether the market moved, and when that is told."""

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.amm.price import sqrt_price_x96_from_price
from apeagent_pipeline.evaluation.service.answers import SERVICE_SCHEMA, day_answers
from apeagent_pipeline.evaluation.service.comparison import comparison_report, differences, paired
from apeagent_pipeline.evaluation.service.config import ServiceReportConfig
from apeagent_pipeline.evaluation.service.drift import Drift, drift_from, drift_metrics, drift_of, population_stability
from apeagent_pipeline.evaluation.service.report import service_report
from apeagent_pipeline.evaluation.service.verdict import DAYS, DayReport, expected_rates, warnings
from apeagent_pipeline.student.generation import Answer
from apeagent_pipeline_tests.evaluation.service_days import day_of_swaps

CONFIG = ServiceReportConfig(moments=6, window=8, horizon=6)
GOOD, GARBLED = "trend up\n####\nAPE NEUTRAL", "I would rather not say."
PROMISED = {"canary_rate_adapter": 1.0, "canary_rate_plain": 1.0, "canary_rate_digested": 0.98, "agreement_plain": 0.9}


class Scripted:
    """A student that gives one answer to everything."""

    def __init__(self, said: str | Callable[[str], str]) -> None:
        self.said = said if callable(said) else lambda prompt: str(said)
        self.asked: list[str] = []

    def answers(self, prompts, *, max_new_tokens):
        self.asked += [chat[-1]["content"] for chat in prompts]
        return [Answer(self.said(chat[-1]["content"]), 9, "end_token") for chat in prompts]


def answered(said: str | Callable[[str], str], adapter: str = "first", seed: int = 1) -> pl.DataFrame:
    return day_answers(Scripted(said), adapter, day_of_swaps(seed), BASE_ETH_USDC, CONFIG)


def day_report(day: str, *, canary: int = 12, agreeing: int = 11, n: int = 12, drift=None) -> DayReport:
    """A report of ``n`` answers in each form, of which so many are canary answers and agree with the rules."""
    rows = [
        {
            "form": form, "is_canary": number < canary, "is_feasible": True, "refused": False,
            "decision": "HOLD" if number < agreeing else "BUY", "rules_decision": "HOLD",
        }
        for form in ("plain", "digested")
        for number in range(n)
    ]  # fmt: skip
    return DayReport(day, pl.DataFrame(rows), drift or {})


def test_every_moment_is_asked_once_in_every_form_with_fixed_portfolios() -> None:
    student = Scripted(GOOD)
    answers = day_answers(student, "first", day_of_swaps(1), BASE_ETH_USDC, CONFIG)
    assert answers.schema == pl.Schema(SERVICE_SCHEMA)
    assert dict(answers["form"].value_counts().iter_rows()) == {"plain": 6, "digested": 6}
    assert len(set(student.asked)) == 12
    assert answers["is_canary"].all()
    assert answers["worth_bps"].abs().max() == 0, "holding is worth as much as holding"
    again = day_answers(Scripted(GARBLED), "second", day_of_swaps(1), BASE_ETH_USDC, CONFIG)
    assert again["prompt"].to_list() == answers["prompt"].to_list()
    assert not again["is_canary"].any()
    assert set(again["decision"]) == {"unreadable"}


def test_a_trade_on_a_flat_market_is_worth_less_than_holding_by_fee_and_impact() -> None:
    flat = day_of_swaps(1).with_columns(
        price=pl.lit(2500.0), sqrt_price_x96=pl.lit(str(sqrt_price_x96_from_price(2500.0, BASE_ETH_USDC)))
    )
    answers = day_answers(Scripted("sell\n####\nAPE OUT 0.3 ETH"), "first", flat, BASE_ETH_USDC, CONFIG)
    traded = answers.filter(~pl.col("refused"))
    assert traded.height > 0
    assert (traded["worth_bps"] < -0.3).all()  # 0.05 % of 750 of 10,000 USDC, and the impact


def test_a_quiet_day_has_a_report_without_answers() -> None:
    answers = day_answers(Scripted(GOOD), "first", day_of_swaps(1).head(14), BASE_ETH_USDC, CONFIG)
    assert answers.is_empty()
    report = service_report("2025-02-01", answers, {}, CONFIG, seed=1, trained_on=[])
    assert "too few swaps" in report.markdown
    assert report.metrics["n_answers"] == 0


def test_the_report_has_rates_worth_and_drift_and_says_whether_the_day_was_trained_on() -> None:
    drift = drift_of(day_of_swaps(9), [day_of_swaps(seed) for seed in range(4)])
    report = service_report("2025-02-01", answered(GOOD), drift, CONFIG, seed=1, trained_on=["2025-02-01"])
    assert set(report.headline) <= report.metrics.keys()
    assert report.metrics["canary_rate"] == report.metrics["was_trained_on"] == 1
    assert drift_from(report.metrics) == drift
    assert "was trained on this day" in report.markdown
    assert report.figures.keys() == {"2025-02-01.service.png"}
    other = service_report("2025-02-02", answered(GOOD), drift, CONFIG, seed=1, trained_on=["2025-02-01"])
    assert other.metrics["was_trained_on"] == 0


def test_a_day_like_the_training_days_has_not_drifted_and_another_market_has() -> None:
    training = [day_of_swaps(seed) for seed in range(10)]
    calm = [drift_of(day_of_swaps(100 + seed), training) for seed in range(10)]
    assert not any(each.has_left for day in calm for each in day.values())
    wild = drift_of(day_of_swaps(200, volatility=1.5e-3), training)
    assert {name for name, each in wild.items() if each.has_left} == {"volatility", "tick_change"}
    large = drift_of(day_of_swaps(200, size=800.0), training)
    assert {name for name, each in large.items() if each.has_left} == {"volume_usdc", "liquidity_usage"}
    assert drift_of(day_of_swaps(1).head(20), training) == {}
    assert drift_of(day_of_swaps(1), training[:1]) == {}
    assert drift_metrics({}) == {}


def test_the_stability_index_is_0_for_the_same_and_grows_with_the_distance() -> None:
    rng = np.random.default_rng(1)
    usual = rng.normal(size=20_000)
    assert population_stability(rng.normal(size=5_000), usual) < 0.01
    assert 0.25 < population_stability(rng.normal(0.6, 1, 5_000), usual) < population_stability(usual + 2, usual)
    assert population_stability(np.zeros(100), np.zeros(1_000)) == pytest.approx(0, abs=0.02)


def test_a_good_adapter_is_not_warned_about() -> None:
    reports = [day_report(f"2025-02-0{day}", canary=11 + day % 2) for day in range(1, 8)]
    assert warnings(reports, expected_rates(PROMISED, [], by_rules=True)) == []
    assert warnings([], {}) == []


def test_a_sudden_decay_is_told_on_its_first_day_and_a_slow_one_within_a_week() -> None:
    expected = expected_rates(PROMISED, [], by_rules=True)
    good = [day_report(f"2025-02-0{day}") for day in range(1, DAYS)]
    told = warnings([*good, day_report("2025-02-07", canary=4)], expected)
    assert any(
        "the form of the answers deteriorates: canary answers in the form plain 4/12 (33%) on 2025-02-07" in each
        for each in told
    )
    slow = [day_report(f"2025-02-0{day}", canary=9) for day in range(1, DAYS + 1)]
    assert warnings(slow[-1:], expected) == [], "three of twelve on one day may be chance"
    assert any("2025-02-01 to 2025-02-07" in each for each in warnings(slow, expected))


def test_deviating_decisions_are_held_against_the_promise_or_against_earlier_days_of_another_teacher() -> None:
    off = [day_report("2025-02-07", agreeing=2)]
    (told,) = warnings(off, expected_rates(PROMISED, [], by_rules=True))
    assert "decisions deviate from the rules: agreement in the form plain 2/12" in told
    assert warnings(off, expected_rates(PROMISED, [], by_rules=False)) == []
    earlier = [day_report(f"2025-01-0{day}") for day in range(1, 8)]
    assert warnings(off, expected_rates(PROMISED, earlier, by_rules=False))


def test_a_market_that_left_is_told_with_its_features() -> None:
    drift = {"volatility": Drift(0.6, 0.2, 1.4), "buys": Drift(0.01, 0.05, 0.0)}
    (told,) = warnings([day_report("2025-02-07", drift=drift)], {})
    assert told == (
        "the market of 2025-02-07 lies outside the range of the training days: volatility (KS 0.60, limit 0.20; "
        "PSI 1.40)"
    )
    assert warnings([day_report("2025-02-07", drift={"volatility": Drift(0.6, 0.7, 1.4)})], {}) == []


def test_two_equal_adapters_are_not_distinguishable_and_a_silent_one_is() -> None:
    first = answered(GOOD)
    same = comparison_report(("first", "second"), paired(first, answered(GOOD, "second")), CONFIG, 1, {})
    assert "not distinguishable** in any measure" in same.markdown
    silent = differences(paired(first, answered(GARBLED, "second")), 1)
    assert silent["canary_rate"].is_distinguishable
    assert (silent["canary_rate"].first, silent["canary_rate"].second) == (1, 0)
    assert silent["canary_rate"].row("canary_rate")[-1] == "the first is higher"
    assert not silent["worth_bps"].is_distinguishable, "neither traded"


def test_one_answer_more_of_many_is_not_distinguishable() -> None:
    first = answered(GOOD)
    second = first.with_columns(is_canary=pl.int_range(pl.len()) > 0)
    found = differences(paired(first, second), 1)["canary_rate"]
    assert found.second < found.first
    assert not found.is_distinguishable
    assert found.interval == pytest.approx((-1 / 12, 0.95 / 12))


def test_only_the_same_questions_are_paired() -> None:
    first, other_day = answered(GOOD), answered(GOOD, "second", seed=2)
    assert paired(first, other_day).is_empty()
