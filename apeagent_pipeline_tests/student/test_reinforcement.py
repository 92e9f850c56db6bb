"""The second stage on a tiny student, through trl's own trainer."""

import json
from pathlib import Path

import polars as pl
import pytest
from pydantic import ValidationError
from safetensors.torch import load_file

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.student.reinforcement import (
    ReinforcementConfig,
    make_trainer,
    outcome_prompts,
    reinforce,
    reinforcement_figure,
)
from apeagent_pipeline_tests.distillation.conftest import make_windows

CONFIG = ReinforcementConfig(
    train_prompts=8,
    test_prompts=4,
    steps=3,
    batch_size=8,
    generations=4,
    warmup_steps=0,
    learning_rate=1e-2,
    max_new_tokens=24,
    checkpoint_seconds=0,
)


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def windows() -> pl.DataFrame:
    return make_windows(300)


@pytest.fixture
def any_text_is_worth_something(monkeypatch: pytest.MonkeyPatch) -> None:
    """A student of random weights never says an answer, and where all rewards are 0 nothing is learned."""

    def rewards(text: str, *others: object) -> dict[str, float]:
        return {"format": len(text) % 5 / 4, "feasibility": 0.0, "outcome": 0.0}

    monkeypatch.setattr("apeagent_pipeline.student.reinforcement.answer_rewards", rewards)


def weights(adapter: Path) -> bytes:
    return (adapter / "adapter_model.safetensors").read_bytes()


def test_a_prompt_cannot_know_the_swaps_that_judge_its_answer(windows: pl.DataFrame) -> None:
    hidden = pl.col("step") >= 24 - CONFIG.hidden_swaps
    other = windows.with_columns(
        price=pl.when(hidden).then(pl.col("price") * 2).otherwise("price"),
        volume_usdc=pl.when(hidden).then(1.0).otherwise("volume_usdc"),
        sqrt_price_x96=pl.when(hidden).then(pl.lit("7")).otherwise("sqrt_price_x96"),
    )
    seen, changed = (outcome_prompts(each, CONFIG, 1) for each in (windows, other))
    later = ("next_sqrt_price_x96", "next_liquidity", "later_price")
    assert seen.drop(later).equals(changed.drop(later))
    assert changed["later_price"].to_list() == [2 * price for price in seen["later_price"]]
    assert set(changed["next_sqrt_price_x96"]) == {"7"}


def test_an_outcome_begins_with_the_swap_after_those_that_are_told(windows: pl.DataFrame) -> None:
    for row in outcome_prompts(windows, CONFIG, 1).to_dicts():
        window = windows.filter(window_id=row["window_id"]).sort("step")
        assert row["price"] == pytest.approx(window["price"][17], abs=0.51)  # as the prompt prints it
        assert row["next_sqrt_price_x96"] == window["sqrt_price_x96"][18]
        assert row["next_liquidity"] == window["liquidity"][18]
        assert row["later_price"] == window["price"][23]


def test_held_out_prompts_share_no_market_with_those_learned_from(windows: pl.DataFrame) -> None:
    prompts = outcome_prompts(windows, CONFIG, 1)
    train, test = (set(prompts.filter(split=split)["condition_id"]) for split in ("train", "test"))
    assert max(train) < min(test)


def test_what_is_impossible_is_refused_with_its_numbers(windows: pl.DataFrame) -> None:
    with pytest.raises(ValueError, match="hidden_swaps=24"):
        outcome_prompts(windows, CONFIG.model_copy(update={"hidden_swaps": 24}), 1)
    with pytest.raises(ValidationError, match=r"batch_size \* accumulation = 12 is not a multiple"):
        ReinforcementConfig(batch_size=12, generations=8)


@pytest.mark.usefixtures("any_text_is_worth_something")
def test_the_divergence_is_measured_from_the_first_stage_and_not_from_the_base(
    tiny_base: Path, tiny_adapter: Path, windows: pl.DataFrame, tmp_path: Path
) -> None:
    prompts = outcome_prompts(windows, CONFIG, 1).filter(split="train")
    trainer = make_trainer(tiny_base, tiny_adapter, prompts, BASE_ETH_USDC, CONFIG, seed=1, checkpoint_dir=tmp_path)
    trained = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert trained
    assert all(".default." in name for name in trained)
    trainer.train()
    divergences = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert divergences[0] == pytest.approx(0, abs=1e-6)
    assert divergences[-1] > 1e-4
    first = load_file(tiny_adapter / "adapter_model.safetensors")
    reference = {name: weight for name, weight in trainer.model.named_parameters() if ".ref." in name}
    assert len(reference) == len(first)
    for name, weight in reference.items():
        assert weight.equal(first[name.replace(".ref.", ".")]), "the reference has moved"


@pytest.mark.usefixtures("any_text_is_worth_something")
def test_a_killed_run_goes_on_to_the_same_adapter(
    tiny_base: Path, tiny_adapter: Path, windows: pl.DataFrame, tmp_path: Path
) -> None:
    def run(name: str, kill_at: int | None = None) -> dict[str, object]:
        steps = []

        def progress(done: int, total: int, **metrics: float) -> None:
            steps.append(done)
            if done == kill_at:
                raise Killed

        out, checkpoints = tmp_path / name, tmp_path / f"{name}-checkpoints"
        curve = reinforce(
            tiny_base,
            tiny_adapter,
            windows,
            BASE_ETH_USDC,
            CONFIG,
            seed=1,
            out=out,
            checkpoint_dir=checkpoints,
            progress=progress,
            base_name="tiny",
        )
        return curve | {"seen": steps}

    whole = run("whole")
    assert whole["steps"] == [1, 2, 3]
    with pytest.raises(Killed):
        run("killed", kill_at=3)
    resumed = run("killed")
    assert resumed["seen"] == [3]
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole") != weights(tiny_adapter)
    written = json.loads((tmp_path / "whole" / "training.json").read_text())
    assert written["held_out"] == whole["held_out"] == resumed["held_out"]
    assert {who: len(parts["outcome"]) for who, parts in written["held_out"].items()} == {
        "first": 4,
        "second": 4,
        "teacher": 4,
    }
    assert json.loads((tmp_path / "whole" / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    assert reinforcement_figure(written).startswith(b"\x89PNG")
