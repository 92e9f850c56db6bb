import shutil

import pytest
import torch

from apeagent_pipeline.student import generation
from apeagent_pipeline.student.generation import AdapterError, Student, ask

PROMPTS = [[{"role": "user", "content": "ETH price is $2510. What should I do?" * n}] for n in (3, 1, 2)]


def test_switching_the_adapter_off_gives_the_base_model(tiny_base, tiny_adapter):
    base, student = Student.load(tiny_base), Student.load(tiny_base, tiny_adapter)
    expected = base.logits(PROMPTS)
    assert (student.logits(PROMPTS) - expected).abs().max() > 1e-3
    with student.adapter_off():
        # Same weights, but not in the same place: on some processors that decides the last bit of a matrix product.
        torch.testing.assert_close(student.logits(PROMPTS), expected, rtol=0, atol=1e-6)
        off = student.answers(PROMPTS, max_new_tokens=8)
    assert off == base.answers(PROMPTS, max_new_tokens=8)
    assert (student.logits(PROMPTS) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_an_adapter_answers_in_the_number_format_of_its_base_and_is_trained_in_float32(tiny_base, tiny_adapter, dtype):
    def formats(student):
        return {weight.dtype for name, weight in student.model.named_parameters() if "lora" in name}

    assert formats(Student.load(tiny_base, tiny_adapter, dtype=dtype)) == {getattr(torch, dtype)}
    trained = Student.load(tiny_base, tiny_adapter, dtype=dtype, trainable=True)
    assert formats(trained) == {torch.float32}
    learned = {name for name, weight in trained.model.named_parameters() if weight.requires_grad}
    assert learned
    assert all("lora" in name for name in learned)


def test_answers_come_back_in_the_order_of_the_prompts_and_padding_changes_nothing(tiny_base):
    student = Student.load(tiny_base, dtype="float32")
    together = student.answers(PROMPTS, max_new_tokens=6, batch_size=3)
    alone = [student.answers([prompt], max_new_tokens=6)[0] for prompt in PROMPTS]
    assert together == alone
    assert all(answer.tokens <= 6 for answer in together)
    assert student.answers([], max_new_tokens=6) == []


def test_the_stream_says_the_same_as_the_batch(tiny_base, tiny_adapter):
    pieces = list(ask(tiny_base, tiny_adapter, PROMPTS[0][0]["content"], system=None, max_new_tokens=12))
    whole = Student.load(tiny_base, tiny_adapter).answers([PROMPTS[0]], max_new_tokens=12)[0]
    assert whole.text.startswith("".join(pieces))
    assert pieces


def test_an_answer_ends_after_its_action_and_says_how(tiny_base):
    student = Student.load(tiny_base)

    def tokens(text):
        return student.tokenizer(text, add_special_tokens=False)["input_ids"]

    ended = student._answer([*tokens("Wait\n####\nAPE NEUTRAL"), *student.end_tokens, *tokens("more")])
    assert (ended.text, ended.ending) == ("Wait\n####\nAPE NEUTRAL", "end_token")
    stopped = student._answer(tokens("Wait\n####\nAPE NEUTRAL\nand then"))
    assert (stopped.text, stopped.ending) == ("Wait\n####\nAPE NEUTRAL", "action")
    cut = student._answer(tokens("Wait\n####\nAPE NEU"))
    assert (cut.text, cut.ending) == ("Wait\n####\nAPE NEU", "length")


def test_what_all_prompts_begin_with_is_computed_once_and_changes_no_answer(tiny_base, tiny_adapter, monkeypatch):
    student = Student.load(tiny_base, tiny_adapter, dtype="float32")
    together = student.answers(PROMPTS, max_new_tokens=9)
    monkeypatch.setattr(generation, "shared_length", lambda ids: 0)
    assert student.answers(PROMPTS, max_new_tokens=9) == together
    plain = student.model.generate(
        **student.tokenizer(student.render(PROMPTS[0]), return_tensors="pt", add_special_tokens=False),
        max_new_tokens=9, do_sample=False, eos_token_id=student.end_tokens, pad_token_id=0,
    )[0].tolist()  # fmt: skip
    assert student.tokenizer.decode(plain, skip_special_tokens=True).endswith(together[0].text)


def test_sampled_answers_differ_by_seed_and_repeat_with_it(tiny_base):
    student = Student.load(tiny_base)
    first, again, other = (student.answers(PROMPTS, max_new_tokens=8, temperature=1.0, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_folder_without_an_adapter_or_with_a_foreign_one_is_refused(tiny_base, tiny_adapter, tmp_path):
    with pytest.raises(AdapterError, match=r"no adapter_config\.json"):
        Student.load(tiny_base, tmp_path)
    shutil.copytree(tiny_adapter, tmp_path / "foreign")
    config = tmp_path / "foreign" / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 8', '"r": 4'))
    with pytest.raises(AdapterError, match="not an adapter of this base model"):
        Student.load(tiny_base, tmp_path / "foreign")
