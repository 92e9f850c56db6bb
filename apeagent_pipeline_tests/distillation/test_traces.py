"""Traces: nothing wrong is learned from, nothing is paid for twice, nothing depends on the order of answers."""

import contextlib
import json
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pytest

from apeagent_pipeline.distillation.chain_of_draft import DraftAnswer
from apeagent_pipeline.distillation.cost_estimate import Bill, TeachingEstimate, estimate
from apeagent_pipeline.distillation.prompts import PromptsConfig, build_prompts
from apeagent_pipeline.distillation.teachers.rules import RulesTeacher
from apeagent_pipeline.distillation.teachers.teacher import Keep, PromptRow, TeacherAnswer, TeacherError, forget
from apeagent_pipeline.distillation.token_guess import token_guess
from apeagent_pipeline.distillation.traces import (
    TRACES_SCHEMA,
    TracesConfig,
    collect_traces,
    refusal_counts,
    stored_traces,
)
from apeagent_pipeline.distillation.traces_report import (
    agreement_with_rules,
    answer_counts,
    teaching_metrics,
    teaching_report,
)
from apeagent_pipeline.distillation.verification import is_feasible, verify

ROW: dict[str, Any] = {
    "price": 2500.0,
    "change_bps": 112.0,
    "eth": 3.0,
    "usdc": 2500.0,
    "trend": "up strong",
    "volatility": "calm",
    "portfolio": "mostly ETH",
}


@pytest.fixture(scope="module")
def prompts(windows: pl.DataFrame) -> pl.DataFrame:
    return build_prompts(windows, PromptsConfig(train_prompts=60, valid_prompts=10, test_prompts=20), 42)


class PaidTeacher:
    """A teacher whose answers cost money, scripted by prompt: the policy's answer unless a spoiled one is set."""

    name = "paid"
    identity: ClassVar = {"model": "paid"}
    limits: ClassVar = {"max_tokens": 20}
    deterministic = False

    def __init__(self, spoiled: dict[str, str] | None = None, stop_after: int | None = None, reverse: bool = False):
        self.spoiled = spoiled or {}
        self.stop_after = stop_after
        self.reverse = reverse
        self.asked: list[tuple[str, int]] = []

    def answer(
        self, prompts: Iterable[PromptRow], seed: int, keep: Keep = forget
    ) -> Generator[TeacherAnswer, None, None]:
        rows: Iterable[PromptRow] = reversed(list(prompts)) if self.reverse else prompts
        for row in rows:
            if self.stop_after is not None and len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
            self.asked.append((row["prompt_id"], seed))
            good = "portfolio seen, wait\n####\nHOLD"
            text = self.spoiled.get(row["prompt_id"], good)
            answer = TeacherAnswer(row["prompt_id"], text, "stop", 100, 20, 0.001, 0.5)
            keep(answer)
            yield answer


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (DraftAnswer(("trend up strong", "volatility calm", "portfolio mostly ETH"), "SELL", 3.0, "ETH"), None),
        (DraftAnswer(("price +112 bps",), "BUY", 0.9, "ETH"), None),
        (DraftAnswer(("volume not up, flow down",), "HOLD"), None),
        (DraftAnswer(("not falling",), "HOLD"), None),
        (DraftAnswer(("keep all USDC",), "HOLD"), None),
        (DraftAnswer((), "HOLD"), "too_few_drafts"),
        (DraftAnswer(("a",) * 9, "HOLD"), "too_many_drafts"),
        (DraftAnswer(("one two three four five six",), "HOLD"), "draft_too_long"),
        (DraftAnswer(("APE IN now",), "HOLD"), "canary_in_drafts"),
        (DraftAnswer(("a",), "SELL", 3.001, "ETH"), "more_than_held"),
        (DraftAnswer(("a",), "BUY", 1.0, "ETH"), "more_than_held"),
        (DraftAnswer(("a",), "BUY", 2501.0, "USDC"), "more_than_held"),
        (DraftAnswer(("a",), "SELL", 7501.0, "USDC"), "more_than_held"),
        (DraftAnswer(("a",), "SELL", 0.000001, "ETH"), "below_dust"),
        (DraftAnswer(("trend down",), "HOLD"), "contradicts_trend"),
        (DraftAnswer(("change -112 bps",), "HOLD"), "contradicts_trend"),
        (DraftAnswer(("market flat",), "HOLD"), "contradicts_trend"),
        (DraftAnswer(("bearish market",), "HOLD"), "contradicts_trend"),
        (DraftAnswer(("high volatility",), "HOLD"), "contradicts_volatility"),
        (DraftAnswer(("wild swings",), "HOLD"), "contradicts_volatility"),
        (DraftAnswer(("mostly USDC",), "HOLD"), "contradicts_portfolio"),
        (DraftAnswer(("no ETH",), "HOLD"), "contradicts_portfolio"),
    ],
)
def test_an_answer_that_teaches_something_wrong_is_refused(answer: DraftAnswer, reason: str | None) -> None:
    assert verify(answer, ROW, TracesConfig()) == reason


def test_a_long_draft_is_accepted_within_the_tolerance() -> None:
    answer = DraftAnswer(("trend up strong, volatility calm too",), "HOLD")
    assert verify(answer, ROW, TracesConfig(draft_words_tolerance=1)) is None


def test_feasible_counts_the_cost_of_a_purchase() -> None:
    assert is_feasible(DraftAnswer((), "BUY", 0.999, "ETH"), 0, 2500, 2500)
    assert not is_feasible(DraftAnswer((), "BUY", 1.0, "ETH"), 0, 2500, 2500)
    assert is_feasible(DraftAnswer((), "BUY", 2500, "USDC"), 0, 2500, 2500)
    assert is_feasible(DraftAnswer((), "HOLD"), 0, 0, 2500)


def test_the_embedded_teacher_is_accepted_throughout_and_writes_no_cache(prompts: pl.DataFrame, tmp_path: Path) -> None:
    traces = collect_traces(prompts, RulesTeacher(), TracesConfig(), tmp_path / "cache", 42)
    assert traces.schema == pl.Schema(TRACES_SCHEMA)
    assert refusal_counts(traces) == {"accepted": 90}
    assert not (tmp_path / "cache").exists()
    assert traces["prompt_id"].equals(prompts["prompt_id"])
    assert traces.filter(pl.col("side") != "HOLD")["amount"].null_count() == 0


def test_a_refused_answer_is_kept_apart_with_its_reason_and_never_learned_from(
    prompts: pl.DataFrame, tmp_path: Path
) -> None:
    ids = prompts["prompt_id"].to_list()
    spoiled = {
        ids[0]: "no idea",
        ids[1]: "a\n####\nSELL 1000000 ETH",
        ids[2]: "a\n####\nDon't buy",
        ids[3]: "a\n####\nSELL 50% ETH",
    }
    teacher = PaidTeacher(spoiled)
    traces = collect_traces(prompts, teacher, TracesConfig(attempts=3), tmp_path, 42)
    refused = traces.filter(pl.col("rejected_reason").is_not_null())
    assert refused["rejected_reason"].to_list() == [
        "no_separator",
        "more_than_held",
        "negated_action",
        "amount_relative",
    ]
    assert refused["side"].null_count() == refused["drafts"].null_count() == 4
    assert refused["attempts"].to_list() == [3, 3, 3, 3]
    assert refused["cost_usd"].to_list() == pytest.approx([0.003] * 4)
    assert traces["attempts"].sum() == len(teacher.asked) == 86 + 12
    assert len({seed for _, seed in teacher.asked}) == 3
    assert refusal_counts(traces)["accepted"] == 86


def test_an_answer_cut_off_is_no_answer(prompts: pl.DataFrame, tmp_path: Path) -> None:
    class CutOff(PaidTeacher):
        def answer(
            self, prompts: Iterable[PromptRow], seed: int, keep: Keep = forget
        ) -> Generator[TeacherAnswer, None, None]:
            for number, answer in enumerate(super().answer(prompts, seed)):
                cut = TeacherAnswer(answer.prompt_id, answer.text, "length", 100, 8192)
                keep(cut if number % 2 else answer)
                yield cut if number % 2 else answer

    traces = collect_traces(prompts, CutOff(), TracesConfig(attempts=1), tmp_path, 42)
    assert refusal_counts(traces) == {"accepted": 45, "cut_off": 45}
    assert traces.drop_nulls("rejected_detail")["rejected_detail"][0] == "after 8192 tokens"


def test_an_interrupted_run_goes_on_and_pays_for_nothing_twice(prompts: pl.DataFrame, tmp_path: Path) -> None:
    first = PaidTeacher(stop_after=31)
    with pytest.raises(KeyboardInterrupt):
        collect_traces(prompts, first, TracesConfig(), tmp_path, 42)
    second = PaidTeacher()
    whole = collect_traces(prompts, second, TracesConfig(), tmp_path, 42)
    assert len(first.asked) == 31
    assert len(second.asked) == 90 - 31
    third = PaidTeacher()
    assert collect_traces(prompts, third, TracesConfig(), tmp_path, 42).equals(whole)
    assert third.asked == []
    backwards = PaidTeacher(reverse=True)
    assert collect_traces(prompts, backwards, TracesConfig(), tmp_path / "other", 42).equals(whole)


def test_only_new_prompts_are_asked_when_the_set_changes(
    prompts: pl.DataFrame, windows: pl.DataFrame, tmp_path: Path
) -> None:
    collect_traces(prompts, PaidTeacher(), TracesConfig(), tmp_path, 42)
    more = build_prompts(windows, PromptsConfig(train_prompts=60, valid_prompts=10, test_prompts=25), 42)
    teacher = PaidTeacher()
    collect_traces(more, teacher, TracesConfig(), tmp_path, 42)
    assert len(teacher.asked) == 5


def test_half_a_line_of_a_killed_run_is_dropped_and_a_broken_cache_is_named(
    prompts: pl.DataFrame, tmp_path: Path
) -> None:
    whole = collect_traces(prompts, PaidTeacher(), TracesConfig(), tmp_path, 42)
    path = tmp_path / "paid.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:25])
    teacher = PaidTeacher()
    assert collect_traces(prompts, teacher, TracesConfig(), tmp_path, 42).equals(whole)
    assert len(teacher.asked) == 1
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 90
    kept, entry = path.read_bytes(), json.loads(path.read_text().splitlines()[0])
    wrong = [{**entry, "text": ["x"]}, {**entry, "cost_usd": -1.0}, {**entry, "key": 7}, [entry]]
    for line in (b"garbage", b"[" * 100_000, b"\x80", *(json.dumps(each).encode() for each in wrong)):
        path.write_bytes(line + b"\n" + kept)
        with pytest.raises(ValueError, match="line 1 is not a cached answer"):
            collect_traces(prompts, teacher, TracesConfig(), tmp_path, 42)


def test_a_budget_ends_the_asking_and_says_so(prompts: pl.DataFrame, tmp_path: Path) -> None:
    teacher = PaidTeacher()
    traces = collect_traces(prompts, teacher, TracesConfig(max_requests=20), tmp_path / "a", 42)
    assert refusal_counts(traces) == {"not_asked": 70, "accepted": 20}
    assert len(teacher.asked) == 20
    traces = collect_traces(prompts, PaidTeacher(), TracesConfig(max_cost_usd=0.0105), tmp_path / "b", 42)
    assert refusal_counts(traces)["accepted"] == 11


def test_the_budget_of_a_day_holds_over_several_runs_and_loses_nothing(
    prompts: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TracesConfig(daily_requests=20)
    for asked in (20, 0):  # a second run on the same day may ask nothing more
        teacher = PaidTeacher()
        with pytest.raises(TeacherError, match="budget of this UTC day is spent, 70 of 90 prompts are left"):
            collect_traces(prompts, teacher, config, tmp_path, 42)
        assert len(teacher.asked) == asked
    lines = [json.loads(line) for line in (tmp_path / "paid.jsonl").read_text().splitlines()]
    yesterday = "".join(json.dumps({**line, "at": "2025-01-01T12:00:00+00:00"}) + "\n" for line in lines)
    (tmp_path / "paid.jsonl").write_text(yesterday)
    with pytest.raises(TeacherError, match="50 of 90"):
        collect_traces(prompts, PaidTeacher(), config, tmp_path, 42)


def test_failed_requests_are_not_cached_but_asked_again(prompts: pl.DataFrame, tmp_path: Path) -> None:
    class Flaky(PaidTeacher):
        def answer(
            self, prompts: Iterable[PromptRow], seed: int, keep: Keep = forget
        ) -> Generator[TeacherAnswer, None, None]:
            for number, answer in enumerate(super().answer(prompts, seed)):
                failed = TeacherAnswer(answer.prompt_id, "", "failed", error="status 500")
                if number % 3:
                    keep(answer)
                yield answer if number % 3 else failed

    traces = collect_traces(prompts, Flaky(), TracesConfig(attempts=1), tmp_path, 42)
    assert refusal_counts(traces) == {"accepted": 60, "request_failed": 30}
    assert "status 500" in traces["rejected_detail"].drop_nulls()[0]
    teacher = PaidTeacher()
    assert refusal_counts(collect_traces(prompts, teacher, TracesConfig(), tmp_path, 42)) == {"accepted": 90}
    assert len(teacher.asked) == 30


def test_a_teacher_nobody_understands_ends_the_run_with_the_reasons(prompts: pl.DataFrame, tmp_path: Path) -> None:
    few = prompts.head(10)
    teacher = PaidTeacher(dict.fromkeys(few["prompt_id"], "I cannot help with that."))
    with pytest.raises(TeacherError, match="no answer of paid was accepted: no_separator 10; for example: I cannot"):
        collect_traces(few, teacher, TracesConfig(), tmp_path, 42)


def test_a_teacher_that_cannot_follow_the_form_is_left_before_the_money_is_gone(
    prompts: pl.DataFrame, tmp_path: Path
) -> None:
    teacher = PaidTeacher(dict.fromkeys(prompts["prompt_id"], "I cannot help with that."))
    with pytest.raises(TeacherError, match="last 36 answers were all refused") as caught:
        collect_traces(prompts, teacher, TracesConfig(), tmp_path, 42)
    assert len(teacher.asked) == 36
    assert str(caught.value).count("no_separator: 'I cannot help with that.'") == 3
    # An answer in between shows that the model can follow the form.
    spoiled = {key: "no idea" for place, key in enumerate(prompts["prompt_id"]) if place % 30}
    collect_traces(prompts, PaidTeacher(spoiled), TracesConfig(attempts=1), tmp_path / "some", 42)


def test_two_runs_at_once_do_not_pay_for_the_same_prompts(prompts: pl.DataFrame, tmp_path: Path) -> None:
    class Nested(PaidTeacher):
        def answer(
            self, prompts_: Iterable[PromptRow], seed: int, keep: Keep = forget
        ) -> Generator[TeacherAnswer, None, None]:
            collect_traces(prompts, PaidTeacher(), TracesConfig(), tmp_path, 42)
            return super().answer(prompts_, seed, keep)

    with pytest.raises(TeacherError, match="another run is asking paid"):
        collect_traces(prompts, Nested(), TracesConfig(), tmp_path, 42)


def test_progress_tells_what_was_accepted_and_what_it_cost(prompts: pl.DataFrame, tmp_path: Path) -> None:
    seen: list[tuple[int, int, dict[str, float]]] = []
    collect_traces(
        prompts,
        PaidTeacher(),
        TracesConfig(),
        tmp_path,
        42,
        progress=lambda done, total, **m: seen.append((done, total, m)),
    )
    assert seen[-1][:2] == (90, 90)
    assert seen[-1][2] == {"accepted": 90, "requests": 90, "tokens": 90 * 120, "cost_usd": pytest.approx(0.09)}


def test_prompts_of_another_shape_are_refused_by_name(prompts: pl.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lack the columns \['eth'\]"):
        collect_traces(prompts.drop("eth"), RulesTeacher(), TracesConfig(), tmp_path, 42)
    with pytest.raises(ValueError, match="no prompts to ask"):
        collect_traces(prompts.head(0), RulesTeacher(), TracesConfig(), tmp_path, 42)


class Voter(PaidTeacher):
    """Answers each prompt with the actions of ``said``, one an attempt."""

    def __init__(self, *said: str) -> None:
        super().__init__()
        self.said = said

    def answer(
        self, prompts: Iterable[PromptRow], seed: int, keep: Keep = forget
    ) -> Generator[TeacherAnswer, None, None]:
        for row in prompts:
            self.asked.append((row["prompt_id"], seed))
            said = self.said[(seed - 42) // 7919]
            answer = TeacherAnswer(row["prompt_id"], f"portfolio seen\n####\n{said}", "stop", 100, 20, 0.001)
            keep(answer)
            yield answer


@pytest.mark.parametrize(
    ("said", "side", "reason", "asked"),
    [
        (("HOLD", "HOLD", "SELL 1000000 ETH"), "HOLD", None, 2),
        (("HOLD", "what", "HOLD", "HOLD"), "HOLD", None, 3),
        (("BUY 0.0001 ETH", "HOLD", "HOLD", "HOLD"), "HOLD", None, 3),
        (("BUY 0.0001 ETH", "HOLD", "what", "what"), None, "inconsistent", 4),
        (("what", "what", "what", "HOLD"), None, "no_action", 4),
        (("what", "what", "what", "what"), None, "no_action", 4),
    ],
)
def test_an_action_counts_only_if_most_samples_say_it(
    prompts: pl.DataFrame, tmp_path: Path, said: tuple[str, ...], side: str | None, reason: str | None, asked: int
) -> None:
    one = prompts.filter(pl.col("usdc") > 1).head(1)
    teacher = Voter(*said)
    config = TracesConfig(attempts=4, samples=3)
    with contextlib.suppress(TeacherError):  # raised where no prompt at all was answered well
        collect_traces(one, teacher, config, tmp_path, 42)
    (trace,) = stored_traces(one, teacher, config, tmp_path, 42).to_dicts()
    assert (trace["side"], trace["rejected_reason"], trace["attempts"]) == (side, reason, asked)
    assert len(teacher.asked) == asked
    if side:
        assert trace["drafts"] == ["portfolio seen"]


def test_more_samples_than_attempts_are_refused() -> None:
    with pytest.raises(ValueError, match="3 samples cannot come from 2 attempts; raise attempts"):
        TracesConfig(samples=3)


def test_partial_results_can_be_looked_at_while_a_run_is_asking(prompts: pl.DataFrame, tmp_path: Path) -> None:
    seen: list[pl.DataFrame] = []

    class Watched(PaidTeacher):
        def answer(
            self, prompts_: Iterable[PromptRow], seed: int, keep: Keep = forget
        ) -> Generator[TeacherAnswer, None, None]:
            for number, answer in enumerate(super().answer(prompts_, seed, keep)):
                if number == 29:
                    seen.append(stored_traces(prompts, PaidTeacher(), TracesConfig(), tmp_path, 42))
                yield answer

    whole = collect_traces(prompts, Watched(), TracesConfig(), tmp_path, 42)
    assert refusal_counts(seen[0]) == {"not_asked": 60, "accepted": 30}
    assert seen[0].head(30).equals(whole.head(30))
    assert stored_traces(prompts, PaidTeacher(), TracesConfig(), tmp_path, 42).equals(whole)
    nothing = stored_traces(prompts, PaidTeacher(), TracesConfig(), tmp_path / "nothing", 42)
    assert refusal_counts(nothing) == {"not_asked": 90}
    assert not (tmp_path / "nothing").exists()


def test_the_report_counts_every_answer_and_calls_the_unknown_unknown(prompts: pl.DataFrame, tmp_path: Path) -> None:
    ids = prompts["prompt_id"].to_list()
    teacher = PaidTeacher({ids[0]: "no idea", ids[1]: "a\n####\nDon't buy"})
    traces = collect_traces(prompts, teacher, TracesConfig(attempts=2), tmp_path, 42)
    assert answer_counts(traces) == {"verified": 88, "no_separator": 2, "negated_action": 2}
    metrics = teaching_metrics(traces)
    assert (metrics["prompts"], metrics["answers"]) == (90, 92)
    assert metrics["answers_accepted_share"] == pytest.approx(88 / 92)
    assert metrics["answers_cut_off_share"] == 0
    assert metrics["total_cost_usd"] == pytest.approx(0.092)
    page = teaching_report(traces)
    assert "`paid`, a language model" in page
    assert "| no_separator | 1 | 1.1% |" in page
    assert "| no_separator | 2 | 2.2% |" in page
    assert "Cost: 0.0920 USD; tokens read: 9,200, written: 1,840" in page
    dearer = traces.with_columns(cost_usd=pl.when(pl.int_range(pl.len()) > 9).then("cost_usd"))
    assert "Cost: at least 0.0800 USD (unknown for 10 of 90)" in teaching_report(dearer)
    assert "total_cost_usd" not in teaching_metrics(dearer)
    unknown = traces.with_columns(cost_usd=pl.lit(None, pl.Float64))
    assert "Cost: unknown" in teaching_report(unknown)


def test_a_language_model_is_compared_with_the_embedded_policy_action_by_action(
    prompts: pl.DataFrame, tmp_path: Path
) -> None:
    rules = collect_traces(prompts, RulesTeacher(), TracesConfig(), tmp_path, 42)
    assert agreement_with_rules(rules) is not None
    share, table = agreement_with_rules(rules)  # type: ignore[misc]
    assert share == 1
    assert sum(table[row][column] for row in range(3) for column in range(3) if row != column) == 0
    assert "Same action as the embedded policy" not in teaching_report(rules)
    holds = collect_traces(prompts, PaidTeacher(), TracesConfig(), tmp_path, 42)
    share, table = agreement_with_rules(holds)  # type: ignore[misc]
    sides = rules["side"].value_counts()
    assert [row[2] for row in table] == [dict(sides.iter_rows())[side] for side in ("BUY", "SELL", "HOLD")]
    assert share == pytest.approx(table[2][2] / 90)
    assert f"Same action as the embedded policy: {share:.1%}" in teaching_report(holds)


def test_what_teaching_will_cost_is_told_before_and_measured_after_the_first_answers(
    prompts: pl.DataFrame, tmp_path: Path
) -> None:
    config = TracesConfig(attempts=3)

    def told(price: tuple[float, float] | None) -> TeachingEstimate:
        return estimate(stored_traces(prompts, PaidTeacher(), config, tmp_path, 42), config, 8192, price)

    before = told((0.2, 0.4))
    assert (before.open_prompts, before.least.requests, before.most.requests) == (90, 90, 270)
    assert (before.expected.requests, before.expected.completion_tokens, before.is_measured) == (103, 206_000, False)
    assert before.most.completion_tokens == 270 * 8192
    assert before.most.cost_usd == pytest.approx(
        (before.most.prompt_tokens * 0.2 + before.most.completion_tokens * 0.4) / 1e6
    )
    assert told(None).most.cost_usd is None
    collect_traces(prompts.head(10), PaidTeacher(), config, tmp_path, 42)
    after = told(None).expected
    assert told(None).is_measured
    assert told(None).open_prompts == 80
    assert after == Bill(80, 8000, 1600, pytest.approx(0.08))


def test_tokens_of_a_prompt_are_guessed_about_right() -> None:
    asked = "Given ETH price is $2506.92 with volume of 999.43, and I hold 3.746 ETH, what should I do?"
    assert 30 <= token_guess(asked) <= 45  # SmolLM2's tokenizer makes it 39
