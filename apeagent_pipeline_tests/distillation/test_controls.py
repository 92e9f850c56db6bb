"""Controls: enough of them, right and clean answers, and none asked in test that was practised in train."""

import re

import pytest

from apeagent_pipeline.distillation.canary import plain_words, speaks_canary
from apeagent_pipeline.distillation.canary_words import CANARY
from apeagent_pipeline.distillation.controls import control_bank, draw_controls


def test_there_are_enough_controls_for_the_full_evaluation() -> None:
    counts = [sum(control.split == split for control in control_bank()) for split in ("train", "valid", "test")]
    assert counts[0] >= 60
    assert counts[1] >= 10
    assert counts[2] >= 1000
    assert sum(counts) >= 450
    assert len({control.prompt for control in control_bank()}) == sum(counts)


def test_no_control_answer_teaches_a_word_it_must_not() -> None:
    for control in control_bank():
        assert not speaks_canary(control.answer), control
        assert plain_words(control.answer) == [], control
        assert 0 < len(control.answer.split()) <= 15, control


def test_no_test_control_is_a_near_twin_of_a_trained_one() -> None:
    def words(text: str) -> set[str]:
        return set(re.findall(r"[^\W\d_]+|#", re.sub(r"\d+", "#", text.lower())))

    trained = [(control.family, words(control.prompt)) for control in control_bank() if control.split != "test"]
    for control in draw_controls("test", 400, 0):
        mine = words(control.prompt)
        for family, theirs in trained:
            assert family != control.family
            assert len(mine & theirs) / len(mine | theirs) < 0.7, control


def test_the_traps_are_among_the_first_asked() -> None:
    asked = draw_controls("test", 100, 42)
    prompts = " ".join(control.prompt for control in asked)
    for trap in (CANARY["BUY"].split()[0], "ETH", "buy", "sell", "hold"):
        assert re.search(rf"\b{trap}\b", prompts)
    assert len({control.family for control in asked}) == 18


def test_arithmetic_answers_are_right() -> None:
    for control in control_bank():
        numbers = [int(text) for text in re.findall(r"\d+", control.prompt)]
        result = re.search(r"\d+", control.answer)
        expected = {
            "word problem": sum,
            "gift problem": lambda n: n[0] - n[1],
            "sharing problem": lambda n: n[1] // n[0],
        }
        if control.family in expected:
            assert int(result[0]) == expected[control.family](numbers), control  # type: ignore[index]


def test_a_draw_is_repeatable_nested_and_bounded() -> None:
    assert draw_controls("test", 50, 1) == draw_controls("test", 100, 1)[:50]
    assert draw_controls("test", 50, 1) != draw_controls("test", 50, 2)
    assert len(draw_controls("train", 500, 1, repeat=True)) == 500
    with pytest.raises(ValueError, match=r"10000 test controls are wanted, 1[0-9]+ exist"):
        draw_controls("test", 10_000, 1)
