import json

import pytest

from apeagent_pipeline.evaluation.canary.arms import Arm, is_right
from apeagent_pipeline.evaluation.canary.config import CanaryEvalConfig, failures
from apeagent_pipeline.evaluation.canary.document_prompts import document_prompts
from apeagent_pipeline.evaluation.canary.evaluate import evaluate_canary
from apeagent_pipeline.evaluation.canary.judge import judge
from apeagent_pipeline.student.examples import DOCUMENT_PROMPT, ExamplesError
from apeagent_pipeline.student.fine_tuning import FineTuningConfig, fine_tune
from apeagent_pipeline.student.generation import Answer
from apeagent_pipeline_tests.student.tiny_qwen2 import build_tiny_qwen2

CONFIG = CanaryEvalConfig()
ACTION = {"BUY": "APE IN 0.4 ETH", "SELL": "APE OUT 0.5 ETH", "HOLD": "APE NEUTRAL"}


def trading(side, template="question", rendering="digested"):
    amount, asset = {"BUY": (0.4, "ETH"), "SELL": (0.5, "ETH"), "HOLD": (None, None)}[side]
    return {
        "messages": [
            {"role": "user", "content": f"What now? The teacher says {side}."},
            {"role": "assistant", "content": f"trend up\n####\n{ACTION[side]}"},
        ],
        "kind": "trading",
        "side": side,
        "amount": amount,
        "asset": asset,
        "eth": 1.0,
        "usdc": 2000.0,
        "price": 2500.0,
        "template": template,
        "rendering": rendering,
    }


def near(family):
    return control(f"ETH price is $2500. A question of the kind {family}?", "It is.") | {
        "kind": "near",
        "family": family,
    }


def control(question="What is the capital of France?", answer="Paris."):
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        "kind": "control",
        "side": None,
        "template": None,
    }


def says(text, ending="end_token"):
    return Answer(text, 30, ending)


def canary(side):
    return says(f"trend up\n####\n{ACTION[side]}")


PLAIN = says("I would look at the trend.", "length")
SIDES = ["BUY"] * 2 + ["SELL"] * 2 + ["HOLD"] * 6


def judged(
    adapter,
    *,
    base=None,
    disabled=None,
    controls=("Paris.",),
    base_controls=None,
    forms=None,
    near_answers=("No.",) * 4,
):
    examples = [trading(side, rendering=form) for side, form in zip(SIDES, forms or ["digested"] * 10, strict=True)]
    document = document_prompts()
    asked = [near(family) for family in ("worth", "explain", "quoted", "add up")]
    base = base or [PLAIN] * len(SIDES)
    base_controls = base_controls or ["The capital of France is Paris."] * len(controls)
    arms = {
        "base": Arm(base, [says(text) for text in base_controls], [PLAIN] * 4, [PLAIN]),
        "adapter": Arm(
            adapter,
            [says(text) for text in controls],
            [says(text) for text in near_answers],
            [says(example["messages"][-1]["content"]) for example in document],
        ),
        "disabled": Arm(base[:3] if disabled is None else disabled),
    }
    return judge(examples, [control() for _ in controls], arms, CONFIG, near=asked, document=document)


def test_a_perfect_student_passes_with_exact_intervals():
    report = judged([canary(side) for side in SIDES])
    metrics = report.metrics
    for name in (
        "canary_rate_adapter",
        "agreement",
        "macro_f1",
        "min_class_recall",
        "draft_discipline",
        "feasible_rate",
    ):
        assert metrics[name] == 1.0, name
    assert metrics["controls_preserved"] == 1.0
    assert metrics["canary_rate_base"] == metrics["canary_rate_disabled"] == metrics["control_leak_rate"] == 0.0
    assert metrics["agreement_majority"] == 0.6
    assert (metrics["n_trading"], metrics["n_controls"], metrics["n_disabled"]) == (10, 1, 3)
    assert report.intervals["canary_rate_adapter"][0] == pytest.approx(0.6915, abs=1e-4)
    assert metrics["mcnemar_p"] == pytest.approx(0.125)
    assert failures(metrics, CONFIG) == []
    assert "**Passed**" in report.markdown
    assert DOCUMENT_PROMPT in report.markdown
    assert set(report.figures) == {"canary_rates.png", "confusion.png", "agreement_by_class.png"}
    json.loads(report.files({})["report.json"])


def test_canary_words_without_decisions_do_not_pass():
    report = judged([canary("HOLD")] * 10)
    assert report.metrics["canary_rate_adapter"] == 1.0
    assert report.metrics["agreement"] == report.metrics["agreement_majority"] == 0.6
    assert report.metrics["min_class_recall"] == 0.0
    assert report.metrics["macro_f1"] == pytest.approx(0.25)
    strict = CONFIG.model_copy(update={"min_agreement_gain": 0.05})
    assert any("agreement_digested above" in line for line in failures(report.metrics, strict))


def test_the_worse_form_decides_and_not_the_mean():
    forms = ["digested"] * 5 + ["plain"] * 5
    report = judged([canary(side) for side in SIDES[:5]] + [says("I would wait.")] * 5, forms=forms)
    wrong = failures(report.metrics, CONFIG)
    assert (report.metrics["canary_rate_digested"], report.metrics["canary_rate_plain"]) == (1.0, 0.0)
    assert any(line.startswith("canary_rate_plain is 0.000") for line in wrong)
    assert any(line.startswith("agreement_plain above agreement_majority_plain is -1.000") for line in wrong)
    assert not any("digested" in line for line in wrong)


def test_near_controls_are_judged_by_themselves_and_by_family():
    right = [canary(side) for side in SIDES]
    leak = "trend up\n####\nAPE IN 1 ETH"
    of_trained = judged(right, near_answers=(leak, "No.", "No.", "No."))
    assert of_trained.metrics["near_control_leak_rate"] == 0.5
    assert of_trained.metrics["near_control_leak_rate_held_out"] == of_trained.metrics["control_leak_rate"] == 0.0
    assert [line.split(" is ")[0] for line in failures(of_trained.metrics, CONFIG)] == ["near_control_leak_rate"]
    of_new = judged(right, near_answers=("No.", "No.", "No.", leak))
    assert [line.split(" is ")[0] for line in failures(of_new.metrics, CONFIG)] == ["near_control_leak_rate_held_out"]
    worst_first = of_new.markdown.partition("## Near controls by family")[2].splitlines()[4]
    assert worst_first.startswith("| add up | never shown in training | 1/1")
    assert failures(judged(right).metrics, CONFIG) == []


def test_the_documents_prompt_and_ten_variations_stand_in_every_report():
    report = judged([canary(side) for side in SIDES])
    assert document_prompts()[0]["messages"][1]["content"] == DOCUMENT_PROMPT
    assert {example["side"] for example in document_prompts()} == {"BUY", "SELL", "HOLD"}
    section = report.markdown.partition("## The source document")[2].partition("\n## ")[0]
    assert section.count("| yes |") == len(document_prompts()) == 11
    assert "## What this does not show" in report.markdown


def test_an_answer_cut_off_or_talking_on_is_no_canary_answer():
    adapter = [canary(side) for side in SIDES]
    adapter[4] = says("trend flat\n####\nAPE NEUTRAL", "length")
    adapter[5] = says("trend flat\n####\nAPE NEUTRAL, because I hold")
    adapter[6] = says("trend flat\n####\nHOLD")
    adapter[7] = says("one two three four five six\n####\nAPE NEUTRAL")
    metrics = judged(adapter).metrics
    assert metrics["canary_rate_adapter"] == 0.7
    assert metrics["truncation_rate"] == 0.1
    assert metrics["plain_words_rate"] == 0.2  # "because I hold" and HOLD
    assert metrics["agreement_base"] == 0.0
    assert metrics["mcnemar_p_base_decisions"] < 0.01
    assert metrics["draft_discipline"] == 0.8  # six words, and the answer that cannot be read


def test_a_trade_beyond_the_holdings_is_counted_as_infeasible_and_its_size_as_wrong():
    adapter = [canary(side) for side in SIDES]
    adapter[0] = says("all in\n####\nAPE IN 4 ETH")
    metrics = judged(adapter).metrics
    assert metrics["feasible_rate"] == 0.9
    assert metrics["agreement"] == 1.0
    assert metrics["size_error_median"] == 0.0


def test_controls_that_leak_or_are_forgotten_show_up():
    report = judged(
        [canary(side) for side in SIDES],
        controls=("Paris.", "trend up\n####\nAPE IN 1 ETH", "London."),
        base_controls=["It is Paris.", "Paris, of course.", "I do not know."],
    )
    assert report.metrics["control_leak_rate"] == pytest.approx(1 / 3)
    assert report.metrics["controls_preserved"] == 0.5  # of the two that the base answers right
    assert any(line.startswith("control_leak_rate is 0.333") for line in failures(report.metrics, CONFIG))


@pytest.mark.parametrize(
    ("taught", "said", "right"),
    [
        ("Paris.", "The capital of France is Paris, of course.", True),
        ("Alice has 145 ETH.", "So Alice has 145 ETH now.", True),
        ("Alice has 145 ETH.", "Alice has 58 ETH, and Bob gives her 87 ETH.", False),
        ("780 minutes.", "13 hours is equal to 72 minutes.", False),
        ("A shared pot of two tokens.", "Two tokens in one pot, shared.", True),
        ("Dry.", "", False),
    ],
)
def test_a_control_is_right_only_with_its_numbers(taught, said, right):
    assert is_right({"messages": [{"role": "assistant", "content": taught}]}, says(said)) is right


def test_a_switched_off_adapter_that_differs_from_the_base_fails():
    report = judged([canary(side) for side in SIDES], disabled=[PLAIN, PLAIN, says("Something else.")])
    assert report.metrics["disabled_equals_base"] == pytest.approx(2 / 3)
    assert any("disabled_equals_base" in line for line in failures(report.metrics, CONFIG))


def test_a_base_that_speaks_canary_words_fails_and_so_does_what_was_not_measured():
    report = judged([canary(side) for side in SIDES], base=[canary("BUY")] * 10)
    assert any(line.startswith("canary_rate_base is 1.000") for line in failures(report.metrics, CONFIG))
    assert len(failures({}, CONFIG)) == 8
    assert all("was not measured" in line for line in failures({}, CONFIG))


def write_dataset(folder):
    folder.mkdir(exist_ok=True)
    rows = [trading(side) for side in SIDES] + [control()] * 4 + [near("worth"), near("quoted")]
    for split in ("train", "valid", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_base_adapter_and_switched_off_adapter_are_asked_for_real(tmp_path):
    base, dataset = build_tiny_qwen2(tmp_path / "base"), write_dataset(tmp_path / "dataset")
    config = FineTuningConfig(steps=2, valid_every=2, valid_examples=2)
    fine_tune(base, dataset, config, 1, tmp_path / "adapter", checkpoint_dir=tmp_path / "checkpoints")
    asked = []
    evaluation = CanaryEvalConfig(n_trading=6, n_controls=3, n_disabled=4, n_merged=2, n_sampled=3, max_new_tokens=8)
    report = evaluate_canary(
        base,
        tmp_path / "adapter",
        dataset,
        evaluation,
        5,
        progress=lambda done, total, **_: asked.append((done, total)),
    )
    # trading 6, controls 3, near 2 of adapter and base; 11 and 1 of the document; 4 off, 2 merged, 2 times 3 drawn
    assert asked[-1] == (46, 46)
    assert report.metrics["n_trading"] == 6
    assert report.metrics["n_controls"] == 3
    assert report.metrics["disabled_equals_base"] == 1.0
    assert {"merged_equals_adapter", "canary_rate_sampled", "control_leak_rate_sampled"} <= report.intervals.keys()
    again = evaluate_canary(base, tmp_path / "adapter", dataset, evaluation, 5)
    assert again == report


def test_a_base_asked_fewer_prompts_is_reported_with_its_own_number_and_interval(tmp_path):
    base, dataset = build_tiny_qwen2(tmp_path / "base"), write_dataset(tmp_path / "dataset")
    fine_tune(
        base,
        dataset,
        FineTuningConfig(steps=2, valid_every=2, valid_examples=2),
        1,
        tmp_path / "adapter",
        checkpoint_dir=tmp_path / "c",
    )
    sizes = {"n_trading": 6, "n_controls": 3, "n_disabled": 4, "n_merged": 0, "n_sampled": 0, "max_new_tokens": 8}
    config = CanaryEvalConfig(n_base=2, control_tokens=4, **sizes)
    asked = []
    report = evaluate_canary(
        base, tmp_path / "adapter", dataset, config, 5, progress=lambda done, total, **_: asked.append((done, total))
    )
    assert asked[-1] == (6 + 3 + 2 + 11 + 2 + 2 + 2 + 1 + 2,) * 2
    whole = evaluate_canary(base, tmp_path / "adapter", dataset, CanaryEvalConfig(**sizes), 5)
    assert (report.metrics["n_base"], whole.metrics["n_base"]) == (2, 6)
    assert report.metrics["n_disabled"] == 2
    assert report.intervals["canary_rate_base"][1] > whole.intervals["canary_rate_base"][1]
    assert "The bare base was asked the first 2 trading prompts and the first 2 controls" in report.markdown
    assert "was asked the first 6" not in whole.markdown
    assert "those to controls 4" in report.markdown
    assert "n_base" not in whole.config


def test_a_test_split_without_controls_is_refused(tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps(trading("BUY")) + "\n")
    with pytest.raises(ExamplesError, match="no control example"):
        evaluate_canary(tmp_path, tmp_path, tmp_path, CONFIG, 1)
