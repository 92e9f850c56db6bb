import json

import pytest

from apeagent_pipeline.evaluation.canary.config import CanaryEvalConfig
from apeagent_pipeline.evaluation.own_prompts import OwnPrompt, PromptsFileError, evaluate_prompts, read_prompts
from apeagent_pipeline.student.fine_tuning import FineTuningConfig, fine_tune
from apeagent_pipeline_tests.evaluation.test_canary import write_dataset
from apeagent_pipeline_tests.student.tiny_qwen2 import build_tiny_qwen2


def test_a_text_has_a_prompt_a_line_and_jsonl_says_what_is_right(tmp_path):
    text, lines = tmp_path / "own.txt", tmp_path / "own.jsonl"
    text.write_text("\ufeffWhat now?\n\n  {not json}\n")
    assert read_prompts(text) == [OwnPrompt("What now?"), OwnPrompt("{not json}")]
    lines.write_text('{"prompt": "Buy?", "side": "BUY"}\n\n{"prompt": "Bread?", "kind": "control"}\n')
    assert read_prompts(lines) == [OwnPrompt("Buy?", "trading", "BUY"), OwnPrompt("Bread?", "control")]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 2: not a JSON object"),
        ("[1]", 'line 2: expected an object whose "prompt"'),
        ('{"prompt": " "}', 'line 2: expected an object whose "prompt"'),
        ('{"prompt": "x", "kind": "other"}', "line 2: kind 'other'; expected one of trading, control"),
        ('{"prompt": "x", "side": "buy"}', "line 2: side 'buy'; expected one of BUY, SELL, HOLD"),
        ('{"prompt": "x", "side": "BUY", "kind": "control"}', "none for a control"),
    ],
)
def test_a_line_that_is_no_prompt_is_named_with_its_number(tmp_path, line, told):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"prompt": "x"}) + "\n" + line + "\n")
    with pytest.raises(PromptsFileError) as error:
        read_prompts(path)
    assert told in str(error.value)


def test_a_file_that_is_missing_empty_or_no_text_says_so(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "picture.txt").write_bytes(b"\x89PNG\xff\xfe")
    for name, told in (("missing.txt", "no such file"), ("empty.txt", "no prompts"), ("picture.txt", "UTF-8")):
        with pytest.raises(PromptsFileError, match=told):
            read_prompts(tmp_path / name)


def test_own_prompts_are_asked_of_base_and_adapter_and_shown_with_both_answers(tmp_path):
    base, dataset = build_tiny_qwen2(tmp_path / "base"), write_dataset(tmp_path / "dataset")
    recipe = FineTuningConfig(steps=2, valid_every=2, valid_examples=2)
    fine_tune(base, dataset, recipe, 1, tmp_path / "adapter", checkpoint_dir=tmp_path / "checkpoints")
    prompts = [OwnPrompt("What is 2 + 2?", "control"), OwnPrompt("What now?"), OwnPrompt("And now?", "trading", "BUY")]
    told = []
    report = evaluate_prompts(
        base, tmp_path / "adapter", prompts, CanaryEvalConfig(max_new_tokens=8), lambda *done, **_: told.append(done)
    )
    assert told[-1] == (6, 6)
    assert report.metrics["n_prompts"] == 3
    assert report.metrics["agreement_adapter"] == 0.0
    assert report.intervals["control_leak_rate_adapter"][1] == pytest.approx(0.975)
    assert all(f"> {prompt.text}" in report.markdown for prompt in prompts)
    report.save(tmp_path / "report", {"adapter": "a"})
    assert json.loads((tmp_path / "report" / "report.json").read_text())["metrics"] == report.metrics
