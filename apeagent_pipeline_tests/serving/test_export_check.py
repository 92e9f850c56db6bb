"""`apeagent export --check` notices a form that answers otherwise, and passes over readers that are not there."""

import pytest

from apeagent_pipeline.distillation.chain_of_draft import student_chat
from apeagent_pipeline.serving import export_check
from apeagent_pipeline.serving.export_check import FormCheck, questions
from apeagent_pipeline.student.export import fuse
from apeagent_pipeline.student.generation import Student
from apeagent_pipeline_tests.student.conftest import one_thread, tiny_adapter, tiny_base, tiny_dataset  # noqa: F401
from apeagent_pipeline_tests.student.tiny_qwen2 import build_tiny_qwen2


@pytest.mark.slow
def test_a_form_that_answers_otherwise_or_cannot_be_loaded_fails_and_a_missing_reader_does_not(
    tiny_base,  # noqa: F811
    tiny_adapter,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    monkeypatch.setattr(export_check, "_TOKENS", 6)
    chats = [student_chat(question) for question in questions()][:4]
    answers = Student.load(tiny_base, tiny_adapter, dtype="float32").answers(chats, max_new_tokens=6)
    expected = [answer.text.strip() for answer in answers]
    form = export_check._Form("fused", "transformers", "fused", export_check._with_transformers)

    def check(export, of=form):
        return export_check._check(of, export, tiny_base, chats, expected)

    fuse(tiny_base, tiny_adapter, tmp_path / "fused")
    assert check(tmp_path).passed
    assert check(tmp_path).asked == 4
    assert check(tmp_path / "nothing").is_missing
    assert check(tmp_path, export_check._Form("mlx", "no_such_reader", "fused", form.answers)).passed
    build_tiny_qwen2(tmp_path / "wrong/fused", seed=1)
    assert not check(tmp_path / "wrong").passed
    (tmp_path / "wrong/fused/model.safetensors").write_bytes(b"broken")
    broken = check(tmp_path / "wrong")
    assert broken.problem
    assert not broken.passed


def test_nine_of_ten_equal_actions_pass_and_eight_do_not():
    assert FormCheck("fused", "x", 7, 9, 10).passed
    assert not FormCheck("fused", "x", 8, 8, 10).passed


def test_the_ten_questions_are_of_every_trend_and_differ():
    asked = questions()
    assert len(set(asked)) == 10
    assert all(word in " ".join(asked) for word in ("up strong", "up weak", "flat", "down weak", "down strong"))
