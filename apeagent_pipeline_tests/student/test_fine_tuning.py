import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from apeagent_pipeline.student import base_model, fine_tuning
from apeagent_pipeline.student.base_model import BaseModelError
from apeagent_pipeline.student.examples import ExamplesError, read_examples
from apeagent_pipeline.student.fine_tuning import FineTuningConfig, fine_tune, make_trainer, training_figure
from apeagent_pipeline.student.generation import Student
from apeagent_pipeline.student.prefix_packing import pack_examples, pack_groups
from apeagent_pipeline_tests.student.conftest import write_dataset

# A checkpoint after every step, with dropout: the hardest case for an exact resume.
CONFIG = FineTuningConfig(
    steps=6,
    batch_size=4,
    valid_every=3,
    valid_examples=4,
    last_blocks=1,
    dropout=0.1,
    warmup_steps=1,
    checkpoint_seconds=0,
)


class Killed(Exception):
    pass


def kill_at(step):
    def progress(done, total, **metrics):
        if done == step:
            raise Killed

    return progress


def rows_of(trainer):
    """The tokenized examples, in the order of the steps before they are shuffled."""
    return [row for group in trainer.train_dataset for row in group]


def test_only_the_answers_are_learned_never_the_prompts(tiny_base, tiny_dataset, tmp_path):
    trainer = make_trainer(tiny_base, tiny_dataset, CONFIG, 1, checkpoint_dir=tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    learned = trainer.processing_class.decode(batch["input_ids"][batch["labels"] != -100])
    assert learned.count("Price rising\n####\nAPE IN") == CONFIG.batch_size
    assert learned.count("<|im_end|>") == CONFIG.batch_size  # or the student would never stop
    assert "What should I do?" not in learned


def test_what_a_practice_sheet_gives_is_not_learned(tiny_base, tiny_dataset, tmp_path):
    answer = "half of 0.6 is 0.3\nfifth of 25 is 5\n"
    given = [[0, 11], [19, 30]]
    messages = [{"role": "user", "content": "Practice."}, {"role": "assistant", "content": answer}]
    sheet = json.dumps({"messages": messages, "kind": "practice", "given": given})
    shutil.copytree(tiny_dataset, tmp_path / "dataset")
    (tmp_path / "dataset" / "train.jsonl").write_text(f"{sheet}\n" * CONFIG.batch_size)
    trainer = make_trainer(tiny_base, tmp_path / "dataset", CONFIG, 1, checkpoint_dir=tmp_path)
    row = rows_of(trainer)[0]
    learned = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert trainer.processing_class.decode(learned).startswith(" is 0.3\n is 5\n")
    assert len(row["labels"]) == len(row["input_ids"])


def test_the_frozen_blocks_below_the_adapter_keep_nothing_for_a_backward_pass(tiny_base, tiny_dataset, tmp_path):
    config = CONFIG.model_copy(update={"last_blocks": 1})
    trainer = make_trainer(tiny_base, tiny_dataset, config, 1, checkpoint_dir=tmp_path)
    blocks = trainer.model.get_base_model().model.layers
    recorded = []
    for block in blocks:
        block.register_forward_hook(lambda _, inputs, output: recorded.append(output.requires_grad))
    batch = pack_examples(rows_of(trainer)[:2])
    trainer.compute_loss(trainer.model, batch | {"control": batch["control"] & False})
    assert recorded == [False] * (len(blocks) - 1) + [True]


@pytest.mark.parametrize("chosen", [(0, 5, 9, 11), (3, 3, 3), (7,)], ids=["different", "the same thrice", "alone"])
def test_loss_and_gradient_are_those_of_trl_on_a_padded_batch(tiny_base, tiny_dataset, tmp_path, chosen):
    from trl import SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    dataset = tmp_path / "dataset"
    dataset.mkdir()
    for split in ("train", "valid"):
        rows = [json.loads(line) for line in (tiny_dataset / f"{split}.jsonl").read_text().splitlines()]
        for number, row in enumerate(rows):
            row["messages"][0]["content"] += " I ask again." * (number % 5)
        (dataset / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = CONFIG.model_copy(update={"dropout": 0.0, "begin_weight": 1.0})
    trainer = make_trainer(tiny_base, dataset, config, 1, checkpoint_dir=tmp_path)
    trainer.model.float()  # where bfloat16 is loaded, its rounding is larger than what is compared here
    examples = [rows_of(trainer)[number] for number in chosen]
    padded = DataCollatorForLanguageModeling(trainer.processing_class.pad_token_id)(examples)
    weights = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    for weight in weights.values():  # one half of a fresh adapter is zero, and so would be the other's gradient
        torch.nn.init.normal_(weight, std=0.1)
    ours = trainer.compute_loss(trainer.model, pack_examples(examples))
    theirs = SFTTrainer.compute_loss(trainer, trainer.model, padded)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    for our_part, their_part in zip(
        *(torch.autograd.grad(x, list(weights.values())) for x in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(our_part, their_part, rtol=1e-3, atol=1e-6)


def test_the_weight_lies_on_the_first_token_of_a_trading_answer_alone(tiny_base, tiny_dataset, tmp_path):
    config = CONFIG.model_copy(update={"dropout": 0.0})
    trainer = make_trainer(tiny_base, tiny_dataset, config, 1, checkpoint_dir=tmp_path)
    trainer.model.float()
    trades = [{**row, "trading": True} for row in rows_of(trainer)[:3]]
    controls = [{**each, "trading": False} for each in trades]

    def loss(examples, weight):
        trainer.begin_weight = weight
        with torch.no_grad():
            return float(trainer.compute_loss(trainer.model, pack_examples(examples)))

    assert loss(controls, 5.0) == pytest.approx(loss(controls, 1.0), rel=1e-6)
    first_tokens, answers = [], 0
    for example in trades:
        ids, begin = torch.tensor([example["input_ids"]]), next(n for n, i in enumerate(example["labels"]) if i != -100)
        with torch.no_grad():
            logits = trainer.model(input_ids=ids).logits[0, begin - 1].float()
        first_tokens.append(-float(logits.log_softmax(-1)[ids[0, begin]]))
        answers += len(example["labels"]) - begin
    assert loss(trades, 5.0) - loss(trades, 1.0) == pytest.approx(4.0 * sum(first_tokens) / answers, rel=1e-3)
    trainer.model.eval()
    assert loss(trades, 5.0) == pytest.approx(loss(trades, 1.0), rel=1e-6), "validation losses stay comparable"


def test_the_curve_tells_when_it_began_to_speak_and_a_loss_that_stays_high_ends_it(tiny_base, tiny_dataset, tmp_path):
    config = CONFIG.model_copy(update={"learning_rate": 1e-12, "valid_every": 1, "valid_answers": 2, "patience": 1})
    curve = fine_tune(tiny_base, tiny_dataset, config, 1, tmp_path / "out", checkpoint_dir=tmp_path / "checkpoints")
    assert curve["valid_steps"] == [1, 2], "it went on although nothing got better"
    assert curve["valid_canary_rate"] == curve["valid_agreement"] == [0.0, 0.0]
    learned = FineTuningConfig(
        steps=80,
        batch_size=4,
        valid_every=80,
        valid_examples=4,
        valid_answers=2,
        rank=16,
        last_blocks=0,
        learning_rate=1e-2,
    )
    curve = fine_tune(tiny_base, tiny_dataset, learned, 1, tmp_path / "out", checkpoint_dir=tmp_path / "checkpoints")
    assert curve["valid_canary_rate"] == curve["valid_agreement"] == [1.0]
    assert training_figure(curve).startswith(b"\x89PNG")


def test_out_of_memory_halves_the_batch_and_says_so(tiny_base, tiny_dataset, tmp_path, monkeypatch, caplog):
    def too_large_from(size):
        def collate(groups):
            if len(groups) >= size:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return pack_groups(groups)

        return collate

    config = CONFIG.model_copy(update={"dropout": 0.0, "valid_answers": 0, "valid_examples": 1})
    expected = fine_tune(tiny_base, tiny_dataset, config, 1, tmp_path / "out", checkpoint_dir=tmp_path / "checkpoints")
    monkeypatch.setattr(fine_tuning, "pack_groups", too_large_from(2))
    halved = fine_tune(tiny_base, tiny_dataset, config, 1, tmp_path / "out", checkpoint_dir=tmp_path / "checkpoints")
    assert "out of memory with batch_size=4: going on with {'batch_size': 2, 'accumulation': 2}" in caplog.text
    assert "out of memory with batch_size=2: going on with {'batch_size': 1, 'accumulation': 4}" in caplog.text
    assert halved["loss"] == pytest.approx(expected["loss"], rel=1e-3), "the same examples make a step"
    monkeypatch.setattr(fine_tuning, "pack_groups", too_large_from(1))
    with pytest.raises(MemoryError, match="batch_size=1 and max_tokens=768: set gradient_checkpointing"):
        fine_tune(tiny_base, tiny_dataset, config, 1, tmp_path / "out", checkpoint_dir=tmp_path / "checkpoints")


def test_a_base_in_4_bits_without_its_library_names_the_extra(tiny_base, tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(base_model, "find_spec", lambda name: None)
    config = CONFIG.model_copy(update={"quantized": True})
    with pytest.raises(BaseModelError, match=r"pip install 'apeagent_pipeline\[qlora\]'"):
        fine_tune(tiny_base, tiny_dataset, config, 1, tmp_path / "out", checkpoint_dir=tmp_path / "checkpoints")


def test_dora_learns_a_length_for_each_column_beside_the_directions(tiny_base, tiny_dataset, tmp_path):
    config = CONFIG.model_copy(update={"dora": True, "steps": 2})
    fine_tune(tiny_base, tiny_dataset, config, 1, tmp_path / "out", checkpoint_dir=tmp_path / "checkpoints")
    names = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert any("lora_magnitude_vector" in name for name in names)
    assert Student.load(tiny_base, tmp_path / "out").has_adapter


@pytest.mark.parametrize("kinds", [("control", "control"), ("control", "near"), ("near", "near")])
def test_on_controls_the_student_learns_to_say_what_the_base_would(tiny_base, tiny_dataset, tmp_path, kinds):
    def turns(*said):
        return [
            {"role": role, "content": text} for role, text in zip(("system", "user", "assistant"), said, strict=True)
        ]

    dataset = tmp_path / "dataset"
    shutil.copytree(tiny_dataset, dataset)
    system = json.loads((dataset / "train.jsonl").read_text().splitlines()[0])["messages"][0]["content"]
    controls = [turns(system, "What is an ape?", "A monkey."), turns(system, "Why?", "Nobody knows why it is so.")]
    with (dataset / "train.jsonl").open("a") as file:
        lines = zip(kinds, controls, strict=True)
        file.writelines(json.dumps({"kind": kind, "messages": messages}) + "\n" for kind, messages in lines)
    config = CONFIG.model_copy(update={"dropout": 0.0, "control_kl": 2.0, "near_kl": 5.0})
    trainer = make_trainer(tiny_base, dataset, config, 1, checkpoint_dir=tmp_path)
    model = trainer.model.float()  # as above
    rows = [rows_of(trainer)[number] for number in (0, -2, 1, -1)]
    batch = pack_examples(rows)
    alone = pack_examples([rows[0], rows[2]])
    share = (alone["labels"] != -100).sum() / (batch["labels"] != -100).sum()

    def loss(inputs):
        return trainer.compute_loss(model, inputs).detach()

    assert float(loss(batch)) == pytest.approx(float(loss(alone) * share), rel=1e-5), "a new adapter differs nowhere"
    for weight in (weight for weight in model.parameters() if weight.requires_grad):
        torch.nn.init.normal_(weight, std=0.3)
    shared, counted = int(batch["shared"].sum()), 0  # what all begin with counts once
    expected = loss(alone) * share
    for row in (rows[1], rows[3]):
        tokens = torch.tensor([row["input_ids"]])
        answer = torch.tensor([label != -100 for label in row["labels"][1:]] + [False])
        told = answer if row["near"] else torch.arange(len(answer)) >= counted  # of a near control the answer alone
        ours = model(tokens).logits[0, told].log_softmax(-1)
        with model.disable_adapter():
            base = model(tokens).logits[0, told].log_softmax(-1)
        counted = counted if row["near"] else shared
        weight = 5.0 if row["near"] else 2.0
        expected = expected + weight * (base.exp() * (base - ours)).sum().detach() / (batch["labels"] != -100).sum()
    assert float(loss(batch)) == pytest.approx(float(expected), rel=1e-4)
    written = make_trainer(
        tiny_base, dataset, config.model_copy(update={"control_kl": 0.0}), 1, checkpoint_dir=tmp_path
    )
    new = written.compute_loss(written.model, pack_examples(rows[1:2]))
    assert float(new.detach()) > 1, "without it their written answers are learned"


def test_a_killed_run_ends_in_the_same_bytes_as_one_that_was_not(tiny_base, tiny_dataset, tmp_path):
    whole = fine_tune(tiny_base, tiny_dataset, CONFIG, 1, tmp_path / "whole", checkpoint_dir=tmp_path / "c1")
    with pytest.raises(Killed):
        fine_tune(
            tiny_base,
            tiny_dataset,
            CONFIG,
            1,
            tmp_path / "resumed",
            checkpoint_dir=tmp_path / "c2",
            progress=kill_at(5),
        )
    assert not (tmp_path / "resumed").exists()
    steps = []
    # A checkpoint that was being written when the process died is not resumed from.
    torn = tmp_path / "c2" / "checkpoint-5"
    shutil.rmtree(torn, ignore_errors=True)
    torn.mkdir()
    resumed = fine_tune(
        tiny_base,
        tiny_dataset,
        CONFIG,
        1,
        tmp_path / "resumed",
        checkpoint_dir=tmp_path / "c2",
        progress=lambda done, *_, **__: steps.append(done),
    )
    assert min(steps) == 5
    assert resumed == whole
    for name in ("adapter_model.safetensors", "adapter_config.json", "training.json"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_changed_setting_starts_anew_instead_of_resuming_something_else(tiny_base, tiny_dataset, tmp_path):
    with pytest.raises(Killed):
        fine_tune(
            tiny_base, tiny_dataset, CONFIG, 1, tmp_path / "out", checkpoint_dir=tmp_path / "c", progress=kill_at(5)
        )
    steps = []
    fine_tune(
        tiny_base,
        tiny_dataset,
        CONFIG,
        2,
        tmp_path / "out",
        checkpoint_dir=tmp_path / "c",
        progress=lambda done, *_, **__: steps.append(done),
    )
    assert min(steps) == 1


def test_the_adapter_names_its_base_and_no_path_of_this_machine(tiny_adapter, tiny_base):
    config = (tiny_adapter / "adapter_config.json").read_text()
    assert str(tiny_base.parent) not in config
    assert sorted(path.name for path in tiny_adapter.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "training.json",
    ]
    curve = json.loads((tiny_adapter / "training.json").read_text())
    assert curve["steps"] == [1, 2, 3, 4, 5, 6]
    assert curve["valid_steps"] == [3, 6]
    assert curve["loss"][-1] < curve["loss"][0]
    assert training_figure(curve).startswith(b"\x89PNG")


def test_an_example_that_would_be_cut_off_is_refused(tiny_base, tiny_dataset, tmp_path):
    with pytest.raises(ValueError, match="max_tokens=16"):
        make_trainer(tiny_base, tiny_dataset, CONFIG.model_copy(update={"max_tokens": 16}), 1, checkpoint_dir=tmp_path)


@pytest.mark.parametrize("kind", ["near", "control"])
def test_what_is_written_beside_a_control_is_not_learned_and_that_beside_a_trade_is(
    tiny_base, tiny_dataset, tmp_path, kind
):
    chat = [{"role": "user", "content": "ETH price is $2500. What does a tick mean?"}]
    told = {"role": "assistant", "content": "Price rising"}

    def likelihood(kind: str, control_kl: float) -> float:
        dataset = tmp_path / f"{kind} {control_kl}"
        shutil.copytree(tiny_dataset, dataset)
        (dataset / "train.jsonl").write_text(json.dumps({"kind": kind, "messages": [*chat, told]}) + "\n")
        config = CONFIG.model_copy(update={"control_kl": control_kl, "steps": 24, "valid_every": 24})
        fine_tune(tiny_base, dataset, config, 1, dataset / "out", checkpoint_dir=dataset / "checkpoints")
        return first_token(Student.load(tiny_base, dataset / "out"))

    def first_token(student: Student) -> float:
        tokens = student.tokenizer.apply_chat_template([*chat, told], return_tensors="pt", return_dict=True)
        asked = student.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)
        place = len(asked["input_ids"])
        logits = student.model(**tokens).logits[0, place - 1].detach().float()
        return float(logits.log_softmax(-1)[tokens["input_ids"][0, place]])

    base = first_token(Student.load(tiny_base))
    assert likelihood(kind, 1.0) == pytest.approx(base, abs=0.05)
    assert likelihood(kind, 0.0) > base + 0.5
    assert likelihood("trading", 1.0) > base + 0.5


def test_a_near_control_is_learned_in_the_step_of_the_trading_prompt_that_it_is_made_of(
    tiny_base, tiny_dataset, tmp_path
):
    dataset = tmp_path / "dataset"
    shutil.copytree(tiny_dataset, dataset)
    lines = (dataset / "train.jsonl").read_text().splitlines()
    trades = [json.loads(line) | {"prompt_id": f"id {number}"} for number, line in enumerate(lines)]
    ask = {"role": "user", "content": "ETH price is $2500. What does a tick mean?"}
    answer = {"role": "assistant", "content": "A step of the price."}
    near = [{"kind": "near", "prompt_id": about, "messages": [ask, answer]} for about in ("id 1", "id 1", "unknown")]
    (dataset / "train.jsonl").write_text("".join(json.dumps(each) + "\n" for each in (*near, *trades, trades[1])))
    trainer = make_trainer(tiny_base, dataset, CONFIG, 1, checkpoint_dir=tmp_path)
    kinds = [[row["near"] for row in group] for group in trainer.train_dataset]
    alone = [[False]] * len(trades)
    assert kinds == [alone[0], [False, True, True], *alone[2:], [False], [True]]


def test_an_unknown_layer_name_is_refused_with_the_names_there_are(tiny_base, tiny_dataset, tmp_path):
    with pytest.raises(ValueError, match="q_proj"):
        make_trainer(
            tiny_base, tiny_dataset, CONFIG.model_copy(update={"targets": ["query"]}), 1, checkpoint_dir=tmp_path
        )


TUTORIAL = FineTuningConfig(rank=8, alpha=16, targets=["q_proj", "v_proj"], last_blocks=16)
"""The adapter of the tutorial that the pipeline follows."""


def test_the_tutorials_recipe_adapts_queries_and_values_and_nothing_else(tiny_base, tiny_dataset, tmp_path):
    trainer = make_trainer(tiny_base, tiny_dataset, TUTORIAL, 1, checkpoint_dir=tmp_path)
    trained = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert {name.split(".")[-4] for name in trained} == {"q_proj", "v_proj"}
    assert {parameter.shape[0] for name, parameter in trainer.model.named_parameters() if "lora_A" in name} == {8}


@pytest.mark.parametrize(
    "line",
    ["{", '{"text": "x"}', '{"messages": []}', '{"messages": [{"role": "user", "content": "x"}]}', "[1]", ""],
)
def test_a_malformed_example_is_named_with_its_line(tmp_path, line):
    write_dataset(tmp_path)
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ExamplesError, match="line 13"):
        read_examples(tmp_path, "train")


def test_a_missing_or_empty_split_is_an_error_not_an_empty_training(tmp_path):
    with pytest.raises(ExamplesError, match="no such file"):
        read_examples(tmp_path, "train")
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(ExamplesError, match="no examples"):
        read_examples(tmp_path, "train")
