import json
import random

import pytest

from apeagent_pipeline.distillation.canary_words import SIDES
from apeagent_pipeline.evaluation import ablations
from apeagent_pipeline.evaluation.ablations import (
    drop_controls,
    drop_deciding_words,
    drop_drafts,
    run_ablations,
    shuffle_labels,
)
from apeagent_pipeline.evaluation.canary.config import CanaryEvalConfig
from apeagent_pipeline.student.examples import answer_of, prompt_of
from apeagent_pipeline.student.fine_tuning import FineTuningConfig, fine_tune
from apeagent_pipeline_tests.evaluation.test_canary import control, trading, write_dataset
from apeagent_pipeline_tests.student.tiny_qwen2 import build_tiny_qwen2

RECIPE = FineTuningConfig(steps=2, valid_every=2, valid_examples=2, last_blocks=1)
CONFIG = CanaryEvalConfig(n_trading=3, n_controls=3, max_new_tokens=8)
EXAMPLES = [trading(side) for side in SIDES] * 4 + [control()] * 3


def changed(change, split="train"):
    return change(EXAMPLES, split, random.Random(1))


def test_shuffling_moves_actions_between_prompts_and_touches_neither_drafts_nor_controls_nor_the_test():
    def parts(examples):
        return zip(*(answer_of(example).partition("####")[::2] for example in examples), strict=True)

    shuffled = changed(shuffle_labels)
    (drafts, actions), (drafts_before, actions_before) = parts(shuffled), parts(EXAMPLES)
    assert drafts == drafts_before
    assert sorted(actions) == sorted(actions_before)
    assert actions != actions_before
    assert shuffled[-3:] == EXAMPLES[-3:]
    assert changed(shuffle_labels, "test") == EXAMPLES


def test_the_deciding_words_leave_the_prompt_and_its_numbers_stay():
    text = "ETH is $2500: trend up (+12 bps), volatility calm (8 bps), portfolio mostly ETH. I hold 1 ETH."
    example = {**trading("BUY"), "trend": "up", "volatility": "calm", "portfolio": "mostly ETH"}
    example["messages"] = [{"role": "user", "content": text}, example["messages"][-1]]
    (without,) = drop_deciding_words([example], "test", random.Random(1))
    said = prompt_of(without)[-1]["content"]
    assert said == "ETH is $2500: trend (+12 bps), volatility (8 bps), portfolio. I hold 1 ETH."
    assert answer_of(without) == answer_of(example)


def test_controls_leave_the_training_alone_and_a_direct_answer_has_no_drafts():
    assert len(changed(drop_controls)) == len(EXAMPLES) - 3
    assert changed(drop_controls, "test") == EXAMPLES
    for before, after in zip(EXAMPLES, changed(drop_drafts), strict=True):
        assert answer_of(after) == (
            answer_of(before)[answer_of(before).find("####") :] if before["side"] else answer_of(before)
        )


@pytest.mark.slow
def test_ablations_killed_half_way_go_on_and_train_no_student_twice(tmp_path, monkeypatch):
    base, dataset = build_tiny_qwen2(tmp_path / "base"), write_dataset(tmp_path / "dataset")
    fine_tune(base, dataset, RECIPE, 1, tmp_path / "adapter", checkpoint_dir=tmp_path / "checkpoints")
    monkeypatch.setattr(ablations, "_CHAIN_TOKENS", 4)
    trained = []

    def counted(base, dataset, *rest, **named):
        if len(trained) == 2:
            trained.append("killed")
            raise KeyboardInterrupt
        trained.append(dataset.parent.name)
        return fine_tune(base, dataset, *rest, **named)

    monkeypatch.setattr(ablations, "fine_tune", counted)
    arguments = (base, tmp_path / "adapter", dataset, RECIPE, CONFIG)
    options = {"seed": 5, "work": tmp_path / "work"}
    with pytest.raises(KeyboardInterrupt):
        run_ablations(*arguments, **options)
    told = []
    report = run_ablations(*arguments, **options, progress=lambda done, total, **_: told.append((done, total)))
    assert trained == ["shuffled_labels", "no_deciding_words", "killed", "no_controls", "direct_answer"]
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]
    for name in ("as_trained", *ablations.ABLATIONS):
        assert {f"agreement_{name}", f"control_leak_rate_{name}"} <= report.intervals.keys()
    assert "points from chance" in report.markdown
    assert run_ablations(*arguments, **options) == report
    assert len(trained) == 5
    # Another choice of prompts must not be answered with what was kept.
    monkeypatch.setattr(ablations, "fine_tune", lambda *_, **__: (_ for _ in ()).throw(InterruptedError))
    with pytest.raises(InterruptedError):
        run_ablations(*arguments, **options | {"seed": 6})
    # Nor with what an ablation of another kind left.
    monkeypatch.undo()
    assert run_ablations(*arguments, **options | {"seed": 6}).metrics
    monkeypatch.setitem(ablations.ABLATIONS, "shuffled_labels", ("without drafts", drop_drafts))
    monkeypatch.setattr(ablations, "fine_tune", lambda *_, **__: (_ for _ in ()).throw(InterruptedError))
    with pytest.raises(InterruptedError):
        run_ablations(*arguments, **options | {"seed": 6})
    assert json.loads((tmp_path / "work" / "as_trained.json").read_text())["counts"]
