"""Two real processes on this machine, over gloo."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from apeagent_pipeline.student import fine_tuning
from apeagent_pipeline.student.fine_tuning import FineTuningConfig, fine_tune
from apeagent_pipeline.workers import WorkerError
from apeagent_pipeline_tests.student.short_of_memory import fine_tune_with_room_for_one, in_float32

CONFIG = FineTuningConfig(
    steps=6, batch_size=4, valid_every=3, valid_examples=12, last_blocks=1, warmup_steps=1, checkpoint_seconds=0
)


def trade(number, drafts):
    said = "Price rising\n" * drafts + "####\nAPE IN 0.4 ETH"
    return {"kind": "trade", "side": "BUY", "messages": turns(f"ETH is ${2500 + number}.", said)}


def turns(prompt, answer):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Answers of very different lengths, so that a mean over processes is not the mean over tokens; and a control."""
    folder = tmp_path_factory.mktemp("uneven")
    control = {"kind": "control", "messages": turns("What is APE IN?", "Four.")}
    rows = {
        "train": [*(trade(number, number % 5) for number in range(23)), control],
        # Alike: the validation loss is a mean over batches, and a smaller batch is another mean.
        "valid": [trade(number, 1) for number in range(12)],
    }
    for split, examples in rows.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples))
    return folder


def gradient_norms(checkpoints):
    """Of every step: Adam hides from weights and losses whether all gradients are too large by a factor."""
    log = EventAccumulator(str(checkpoints / "logs")).Reload()
    return {event.step: event.value for event in log.Scalars("train/grad_norm")}


@pytest.mark.slow
def test_two_processes_learn_what_one_does_even_when_the_memory_of_one_ends(
    tiny_base, uneven, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(fine_tuning, "make_trainer", in_float32(fine_tuning.make_trainer))
    expected = fine_tune(tiny_base, uneven, CONFIG, 1, tmp_path / "alone", checkpoint_dir=tmp_path / "c1")
    told = []
    monkeypatch.setattr(fine_tuning, "_fine_tune", fine_tune_with_room_for_one)
    config = CONFIG.model_copy(update={"workers": 2})
    curve = fine_tune(
        tiny_base,
        uneven,
        config,
        1,
        tmp_path / "together",
        checkpoint_dir=tmp_path / "c2",
        progress=lambda done, *_, **__: told.append(done),
    )
    assert (
        "out of memory with batch_size=4: going on with {'batch_size': 2, 'accumulation': 2}" in capfd.readouterr().err
    )
    assert told.count(1) == 1, "they began anew instead of going on from the last checkpoint"
    assert curve["steps"] == [1, 2, 3, 4, 5, 6]
    for name in ("loss", "valid_loss", "valid_canary_rate", "valid_agreement"):
        assert curve[name] == pytest.approx(expected[name], rel=1e-4), name
    assert gradient_norms(tmp_path / "c2") == pytest.approx(gradient_norms(tmp_path / "c1"), rel=1e-3)
    alone, together = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("alone", "together"))
    for name, weight in alone.items():
        torch.testing.assert_close(together[name], weight, rtol=1e-3, atol=1e-4)


def test_a_batch_that_cannot_be_dealt_is_refused_before_anything_starts(tiny_base, uneven, tmp_path):
    config = CONFIG.model_copy(update={"workers": 3})
    with pytest.raises(WorkerError, match="batch_size=4 cannot be divided evenly among 3 processes; make it"):
        fine_tune(tiny_base, uneven, config, 1, tmp_path / "out", checkpoint_dir=tmp_path / "checkpoints")
