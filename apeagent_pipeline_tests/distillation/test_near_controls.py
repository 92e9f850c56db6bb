"""Near controls: a trading prompt's words that ask for no trade, split by family."""

import re
from collections import Counter

import polars as pl
import pytest

from apeagent_pipeline.distillation.controls import control_bank
from apeagent_pipeline.distillation.near_controls import FAMILIES, HELD_OUT, near_controls
from apeagent_pipeline.distillation.prompts import PromptsConfig, build_prompts


@pytest.fixture(scope="module")
def prompts(windows: pl.DataFrame) -> pl.DataFrame:
    return build_prompts(windows, PromptsConfig(train_prompts=300, prompts_per_window=2), 42)


def test_three_of_at_least_a_dozen_families_are_never_shown_in_training(prompts: pl.DataFrame) -> None:
    assert len(FAMILIES) - len(HELD_OUT) >= 12
    assert len(HELD_OUT) == 3
    for split in ("train", "valid"):
        assert not set(HELD_OUT) & {control.family for control in near_controls(prompts, split, 60, 1)}
    asked = Counter(control.family for control in near_controls(prompts, "test", 96, 1))
    assert asked.keys() == {family.name for family in FAMILIES}
    assert max(asked.values()) - min(asked.values()) <= 2


def test_a_near_control_begins_like_a_trading_prompt_or_holds_one(prompts: pl.DataFrame) -> None:
    train = prompts.filter(split="train")
    starts = {text.strip()[:12] for text in train["facts"]}
    for control in near_controls(prompts, "train", 100, 1):
        if control.family != "other pair":
            assert any(start in control.prompt for start in starts), control.prompt
            assert not re.search(r"\{\w+\}", control.prompt), "a place without its value"
    later = set(prompts.filter(pl.col("split") != "train")["facts"])
    asked = near_controls(prompts, "train", 100, 1)
    assert not any(facts in control.prompt for facts in later for control in asked), "made from its own split alone"


def test_a_near_control_names_the_prompt_that_it_is_made_of_and_has_its_system_message(prompts: pl.DataFrame) -> None:
    rows = {row["prompt_id"]: row for row in prompts.iter_rows(named=True)}
    controls = near_controls(prompts, "train", 100, 1)
    assert all(control.system == rows[control.prompt_id]["system"] for control in controls)
    facts = [each for each in controls if each.family in ("explain", "past")]
    assert facts
    # The first word after the facts may be in lower case, and spaces at their ends may be lost.
    assert all(rows[each.prompt_id]["facts"].strip()[:40] in each.prompt for each in facts)


def test_another_pair_is_not_eth_and_usdc(prompts: pl.DataFrame) -> None:
    pairs = [c.prompt for c in near_controls(prompts, "train", 160, 1) if c.family == "other pair"]
    assert pairs
    assert not any(re.search(r"(?<![a-z])(eth|ether|usdc)(?![a-z])", prompt.lower()) for prompt in pairs)


def test_a_question_beside_the_point_is_of_its_own_split_and_adds_nothing_up(prompts: pl.DataFrame) -> None:
    asked = {split: near_controls(prompts, split, 160, 1) for split in ("train", "test")}
    for split, controls in asked.items():
        texts = [each.prompt for each in controls if each.family == "beside the point"]
        known = {each.prompt for each in control_bank() if each.split == split}
        found = [next((question for question in known if question in text), "") for text in texts]
        assert found
        assert all(found)
        assert not any(character.isdigit() for question in found for character in question)


def test_more_are_added_at_the_end_and_a_split_without_prompts_is_refused(prompts: pl.DataFrame) -> None:
    assert near_controls(prompts, "train", 60, 1)[:20] == near_controls(prompts, "train", 20, 1)
    with pytest.raises(ValueError, match="no trading prompt of the test split"):
        near_controls(prompts.filter(split="train"), "test", 5, 1)
