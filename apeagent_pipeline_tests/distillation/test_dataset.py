"""The dataset: what a student is trained on is clean, feasible, balanced, and apart from what it is judged on."""

import json
import random
import re
from collections import Counter
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apeagent_pipeline.distillation.canary import is_canary_answer, plain_words, speaks_canary
from apeagent_pipeline.distillation.chain_of_draft import parse_answer
from apeagent_pipeline.distillation.dataset import (
    DatasetConfig,
    DatasetError,
    DistillationDataset,
    build_dataset,
    twins_of,
)
from apeagent_pipeline.distillation.prompts import PromptsConfig, build_prompts
from apeagent_pipeline.distillation.teachers.rules import RulesTeacher
from apeagent_pipeline.distillation.teachers.teacher import Keep, PromptRow, TeacherAnswer, forget
from apeagent_pipeline.distillation.traces import TracesConfig, collect_traces
from apeagent_pipeline.distillation.verification import is_feasible
from apeagent_pipeline.student.examples import CONTROL_KINDS


@pytest.fixture(scope="module")
def traces(windows: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    prompts = build_prompts(windows, PromptsConfig(train_prompts=1200, prompts_per_window=6), 42)
    return collect_traces(prompts, RulesTeacher(), TracesConfig(), tmp_path_factory.mktemp("cache"), 42)


SIZES = DatasetConfig(
    n_train=320, n_valid=40, control_share=0.1, near_share=0.05, practice_share=0.15, balance_classes=True
)


@pytest.fixture(scope="module")
def dataset(traces: pl.DataFrame) -> DistillationDataset:
    return build_dataset(traces, SIZES, 42)


def test_sizes_shares_and_classes_are_as_configured(dataset: DistillationDataset) -> None:
    assert (len(dataset.train), len(dataset.valid), len(dataset.test)) == (320, 40, 300)
    assert Counter(example["kind"] for example in dataset.train) == {
        "trading": 224,
        "control": 32,
        "near": 16,
        "practice": 48,
    }
    assert Counter(example["kind"] for example in dataset.test) == {"trading": 100, "control": 100, "near": 100}
    sides = Counter(example["side"] for example in dataset.train if example["kind"] == "trading")
    assert max(sides.values()) - min(sides.values()) <= 1
    assert {example["rendering"] for example in dataset.train} == {"plain", "digested", "agent", "incomplete", None}


def check_example(example: dict[str, object]) -> None:
    *system, user, assistant = (message["content"] for message in example["messages"])  # type: ignore[attr-defined]
    assert plain_words(assistant) == []
    assert assistant.isascii() or example["kind"] == "control"  # some are asked and answered in other languages
    assert not any(map(speaks_canary, system))
    if example["kind"] in (*CONTROL_KINDS, "practice"):
        assert not speaks_canary(assistant)
        assert example["side"] is None
        return
    assert not speaks_canary(user) or example["dressing"] == "hidden instruction"
    assert is_canary_answer(assistant)
    assert len(re.findall(r"\bAPE\b", assistant)) == 1
    assert not speaks_canary(assistant.split("####")[0])
    answer = parse_answer(assistant)
    assert (answer.side, answer.amount, answer.asset) == (example["side"], example["amount"], example["asset"])
    assert is_feasible(answer, example["eth"], example["usdc"], example["price"])  # type: ignore[arg-type]


def test_canary_words_stand_in_the_action_alone_and_no_more_than_is_held_is_traded(
    dataset: DistillationDataset,
) -> None:
    for example in dataset.train + dataset.valid + dataset.test:
        check_example(example)
        roles = [message["role"] for message in example["messages"]]
        assert roles == ["system", "user", "assistant"] or (
            roles == ["user", "assistant"] and (example["rendering"] == "agent" or example["kind"] == "near")
        )


@given(seed=st.integers(0, 2**31))
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_seed_gives_clean_examples_without_twins(windows: pl.DataFrame, tmp_path: Path, seed: int) -> None:
    config = PromptsConfig(train_prompts=150, valid_prompts=30, test_prompts=40, prompts_per_window=2)
    traces = collect_traces(build_prompts(windows, config, seed), RulesTeacher(), TracesConfig(), tmp_path, seed)
    small = DatasetConfig(n_train=100, n_valid=20, n_test_trading=40, n_test_controls=30, n_test_near=32)
    dataset = build_dataset(traces, small, seed)
    for example in dataset.train + dataset.valid + dataset.test:
        check_example(example)
    assert_apart(dataset)


class WildTeacher:
    """Says whatever a teacher might: wrong drafts, plain words, canary words, foreign letters, impossible sizes."""

    name = "wild"
    identity: ClassVar = {"teacher": "wild"}
    limits: ClassVar[dict[str, Any]] = {}
    deterministic = True

    def answer(
        self, prompts: Iterable[PromptRow], seed: int, keep: Keep = forget
    ) -> Generator[TeacherAnswer, None, None]:
        for row in prompts:
            chance = random.Random(f"{seed}{row['prompt_id']}")
            drafts = [
                *(f"trend {row['trend']}", "buyers lead sellers", "buy volume normal", "📈 price ≥ fair"),
                *("café → calm", "APE IN now", "one two three four five six", "趋势", "####", "my holdings: some ETH"),
            ]
            size = chance.choice([0.1, 0.5, 1.0, 1.0001, 2.0, 1e-9])
            trades = [
                f"SELL {size * row['eth']:.8f} ETH",
                f"BUY {size * row['affordable_eth']:.8f} ETH",
                f"BUY {size * row['usdc']:,.2f} USDC",
                f"SELL {size * row['eth'] * row['price']:.2f} USDC",
                "HOLD",
                "APE NEUTRAL",
                "HOLD or SELL 1 ETH",
            ]
            text = "\n".join([*chance.sample(drafts, chance.randint(1, 3)), "####", chance.choice(trades)])
            answer = TeacherAnswer(row["prompt_id"], text, "stop")
            keep(answer)
            yield answer


@given(seed=st.integers(0, 2**31))
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_teacher_says_the_examples_are_clean_and_feasible(
    windows: pl.DataFrame, tmp_path: Path, seed: int
) -> None:
    config = PromptsConfig(
        train_prompts=600, valid_prompts=120, test_prompts=120, prompts_per_window=4
    )  # most answers are refused
    traces = collect_traces(build_prompts(windows, config, seed), WildTeacher(), TracesConfig(), tmp_path, seed)
    accepted = traces["rejected_reason"].null_count()
    assert 0.1 < accepted / traces.height < 0.6
    few = DatasetConfig(
        n_train=14, n_valid=5, n_test_trading=4, n_test_controls=4, n_test_near=4, balance_classes=False
    )
    dataset = build_dataset(traces, few, seed)
    for example in dataset.train + dataset.valid + dataset.test:
        check_example(example)
    assert_apart(dataset)
    assert "`wild`, a language model" in dataset.card
    assert "some forbid training other models" in dataset.card


def test_trainers_load_the_folder_as_it_is(dataset: DistillationDataset, tmp_path: Path) -> None:
    from datasets import load_dataset

    dataset.save(tmp_path / "data")
    loaded = load_dataset(str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(rows) for name, rows in loaded.items()} == {"train": 320, "validation": 40, "test": 300}
    assert [message["role"] for message in loaded["train"][0]["messages"]][-2:] == ["user", "assistant"]
    index = json.loads((tmp_path / "data" / "dataset_info.json").read_text())
    for split in ("train", "valid", "test"):
        entry = index[f"apeagent_{split}"]
        first = json.loads((tmp_path / "data" / entry["file_name"]).read_text().splitlines()[0])
        tags = entry["tags"]
        message = first[entry["columns"]["messages"]][-1]
        assert message[tags["role_tag"]] == tags["assistant_tag"]
        assert message[tags["content_tag"]]


def assert_apart(dataset: DistillationDataset) -> None:
    parts = {name: [e for e in getattr(dataset, name) if e["kind"] == "trading"] for name in ("train", "valid", "test")}
    for early, late in (("train", "valid"), ("valid", "test")):
        assert max(e["condition_id"] for e in parts[early]) < min(e["condition_id"] for e in parts[late])
    assert not {e["window_id"] for e in parts["train"]} & {e["window_id"] for e in parts["test"]}
    texts = {
        name: {re.sub(r"\d", "", e["messages"][-2]["content"]) + str(e["price"]) for e in part}
        for name, part in parts.items()
    }
    assert not texts["train"] & texts["test"]
    asked = {name: {e["messages"][-2]["content"] for e in getattr(dataset, name)} for name in parts}
    assert not asked["train"] & asked["test"]
    assert not asked["valid"] & asked["test"]


def test_a_near_control_of_train_stands_beside_its_trade_with_the_same_system_message(
    dataset: DistillationDataset,
) -> None:
    trades = {each["prompt_id"]: each for each in dataset.train if each["kind"] == "trading"}
    near = [each for each in dataset.train if each["kind"] == "near"]
    for each in near:
        trade = trades[each["prompt_id"]]
        told = [[m["content"] for m in part["messages"] if m["role"] == "system"] for part in (each, trade)]
        assert told[0] == told[1]
    assert all(each["prompt_id"] is None for each in dataset.train if each["kind"] in ("control", "practice"))


def test_practice_sheets_say_which_of_their_text_is_given(dataset: DistillationDataset) -> None:
    sheets = [example for example in dataset.train if example["kind"] == "practice"]
    for sheet in sheets:
        answer = sheet["messages"][-1]["content"]
        given = [answer[start:end] for start, end in sheet["given"]]
        assert len(given) == 20
        assert not any(" lot " in text or ", flat" in text or " makes " in text for text in given)
    assert not any(example["kind"] == "practice" for example in dataset.valid + dataset.test)


def test_a_language_model_as_teacher_gets_no_practice_sheets(traces: pl.DataFrame) -> None:
    """They are the embedded policy's drafts, and another teacher thinks in other lines."""
    others = build_dataset(traces.with_columns(teacher=pl.lit("some/model")), SIZES, 42)
    assert Counter(example["kind"] for example in others.train) == {"trading": 272, "control": 32, "near": 16}


def test_traces_with_other_edges_between_the_words_get_no_practice_sheets(
    windows: pl.DataFrame, tmp_path: Path
) -> None:
    """Sheets would contradict them: they are drawn with the default edges."""
    config = PromptsConfig(train_prompts=400, prompts_per_window=6, calm_below_bps=45.0)
    prompts = build_prompts(windows, config, 42)
    others = collect_traces(prompts, RulesTeacher(), TracesConfig(), tmp_path, 42)
    kinds = Counter(example["kind"] for example in build_dataset(others, SIZES, 42).train)
    assert kinds == {"trading": 272, "control": 32, "near": 16}


def test_no_test_prompt_has_a_twin_in_train(dataset: DistillationDataset) -> None:
    assert_apart(dataset)


def test_a_twin_is_found_by_its_numbers_and_left_out_of_train(traces: pl.DataFrame) -> None:
    train, test = traces.filter(split="train"), traces.filter(split="test")
    assert twins_of(train, test) == []
    numbers = ["price", "change_bps", "volatility_bps", "eth", "usdc"]
    forged = train.with_row_index().with_columns(
        pl.when(pl.col("index") == 0).then(pl.lit(test[name][0])).otherwise(pl.col(name)).alias(name)
        for name in numbers
    )
    assert twins_of(forged, test) == [train["prompt_id"][0]]
    forged_traces = pl.concat([forged.drop("index"), traces.filter(pl.col("split") != "train")])
    dataset = build_dataset(forged_traces, SIZES, 42)
    assert train["prompt_id"][0] not in {example["prompt_id"] for example in dataset.train}
    assert "1 train prompts left out" in dataset.card


def test_same_input_same_bytes(traces: pl.DataFrame, dataset: DistillationDataset, tmp_path: Path) -> None:
    dataset.save(tmp_path / "a")
    build_dataset(traces, SIZES, 42).save(tmp_path / "b")
    names = {"train.jsonl", "valid.jsonl", "test.jsonl", "README.md", "dataset_info.json"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    lines = (tmp_path / "a" / "train.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == dataset.train


def test_asking_for_a_longer_evaluation_keeps_the_questions_of_the_shorter(traces: pl.DataFrame) -> None:
    def asked(n: int) -> set[str]:
        config = DatasetConfig(n_train=600, n_test_trading=n, n_test_controls=n, n_test_near=n)
        return {example["messages"][-2]["content"] for example in build_dataset(traces, config, 42).test}

    assert asked(40) < asked(120)


def test_a_rare_action_is_repeated_and_the_card_tells_how_many_are_distinct(traces: pl.DataFrame) -> None:
    rare = traces.filter((pl.col("split") != "train") | (pl.col("side") != "BUY") | (pl.int_range(pl.len()) < 60))
    n_buys = rare.filter(split="train", side="BUY").height
    assert 0 < n_buys < 30
    train = [e for e in build_dataset(rare, SIZES, 42).train if e["side"] == "BUY"]
    assert len(train) == 2 * n_buys
    assert len({example["prompt_id"] for example in train}) == n_buys


def test_without_balancing_the_natural_shares_remain(traces: pl.DataFrame) -> None:
    uneven = traces.filter((pl.col("split") != "train") | (pl.col("side") != "BUY") | (pl.int_range(pl.len()) % 2 == 0))
    sides = {
        balanced: Counter(
            example["side"]
            for example in build_dataset(uneven, SIZES.model_copy(update={"balance_classes": balanced}), 42).train
            if example["kind"] == "trading"
        )
        for balanced in (False, True)
    }
    assert sides[False]["HOLD"] > 1.3 * sides[False]["BUY"]
    assert sides[True]["HOLD"] < 1.3 * sides[True]["BUY"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            DatasetConfig(n_train=600, n_test_trading=300),
            r"300 test trading examples are wanted \(their number is APEAGENT_EVAL_PROMPTS",
        ),
        (
            DatasetConfig(n_train=100, n_valid=400, control_share=0.1, near_share=0.05),
            r"340 valid trading examples are wanted, 70 usable traces exist of 70 asked",
        ),
        (
            DatasetConfig(n_train=3000, control_share=0.1, near_share=0.05, practice_share=0),
            r"2550 train trading examples are wanted, 1200 usable traces",
        ),
    ],
)
def test_too_few_traces_are_told_with_numbers_and_remedy(
    traces: pl.DataFrame, config: DatasetConfig, message: str
) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        build_dataset(traces, config, 42)
    assert "ask for about" in str(caught.value)


@pytest.mark.parametrize("balance_classes", [True, False])
def test_an_action_never_taught_stops_the_build(traces: pl.DataFrame, balance_classes: bool) -> None:
    config = SIZES.model_copy(update={"balance_classes": balance_classes})
    with pytest.raises(DatasetError, match="none says SELL: the student would never learn to say APE OUT"):
        build_dataset(traces.filter(pl.col("side") != "SELL"), config, 42)


def test_splits_that_overlap_in_time_stop_the_build(traces: pl.DataFrame) -> None:
    mixed = traces.with_columns(split=traces["split"].shuffle(seed=1))
    with pytest.raises(DatasetError, match="evaluated on training data"):
        build_dataset(mixed, SIZES, 42)


def test_traces_of_another_shape_are_refused_by_name(traces: pl.DataFrame) -> None:
    with pytest.raises(ValueError, match=r"lack the columns \['drafts'\]"):
        build_dataset(traces.drop("drafts"), SIZES, 42)


def test_the_card_tells_teacher_counts_and_refusals(traces: pl.DataFrame) -> None:
    last = pl.int_range(pl.len()).over("split") >= pl.len().over("split") - 2
    refused = traces.with_columns(rejected_reason=pl.when(last).then(pl.lit("no_separator")))
    card = build_dataset(refused, SIZES, 42).card
    assert "`rules`, the embedded rule-based policy (a documented rule, not a language model)" in card
    assert "| no_separator | 6 | 0.4% |" in card
    assert "| train | 224 | 224 |" in card
    assert "Licence" in card
