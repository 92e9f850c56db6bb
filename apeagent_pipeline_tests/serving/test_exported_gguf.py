"""Exported GGUF files in llama.cpp itself: merged and with `--lora`, what they say of themselves, and who may ask."""

import json
import shutil

import pytest
import requests

from apeagent_pipeline.distillation.chain_of_draft import student_chat
from apeagent_pipeline.serving import export_check
from apeagent_pipeline.serving.engines import EngineError, LlamaCppEngine
from apeagent_pipeline.serving.export_check import check_export, questions
from apeagent_pipeline.settings import SMOLLM2
from apeagent_pipeline.student.export import export_folder
from apeagent_pipeline.student.generation import Student
from apeagent_pipeline.student.gguf import ExportConfig, ExportError, convert_base, resolve_converter
from apeagent_pipeline_tests.student.conftest import one_thread, tiny_adapter, tiny_base, tiny_dataset  # noqa: F401

pytestmark = pytest.mark.slow
TOKENS = 12


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    pytest.importorskip("xllamacpp", reason="llama.cpp's server has no wheel for this platform")
    folder = tmp_path_factory.getbasetemp().parent / "converter"  # shared by the test processes of one user
    try:
        resolve_converter(folder)
    except ExportError as error:
        pytest.skip(f"the source package cannot be fetched here: {error}")
    return folder


@pytest.fixture(scope="module")
def exported(tiny_base, tiny_adapter, cache, tmp_path_factory):  # noqa: F811
    """A complete export of an adapter that names the embedded base, and that adapter."""
    adapter, out = tmp_path_factory.mktemp("named") / "adapter", tmp_path_factory.mktemp("exported") / "ape"
    shutil.copytree(tiny_adapter, adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": SMOLLM2}))
    # Digits alone, then as GPT-2: the rule of SmolLM2 and of the tiny tokenizer.
    export_folder(tiny_base, adapter, out, ExportConfig(quantizations=["f16"], pre_tokenizer="smollm"), cache)
    return out, adapter


def test_every_form_that_can_be_loaded_here_answers_as_the_project_and_the_base_alone_does_not(
    exported,
    tiny_base,  # noqa: F811
    cache,
    tmp_path,
    monkeypatch,
):
    monkeypatch.setattr(export_check, "_TOKENS", TOKENS)
    out, adapter = exported
    loaded = [each for each in check_export(out, tiny_base, adapter, cache) if not each.is_missing]
    forms = {"fused", "adapter", "adapter by hub id", "apeagent-f16.gguf", "base with --lora"}
    assert {each.form for each in loaded} >= forms
    assert all(each.passed and each.equal >= 9 for each in loaded if each.form in forms), loaded
    # The control: without the adapter the same base says other things.
    convert_base(tiny_base, tmp_path / "base.gguf", cache, "smollm")
    chats = [student_chat(question) for question in questions()]
    answers = Student.load(tiny_base, adapter, dtype="float32").answers(chats, max_new_tokens=TOKENS)
    engine = LlamaCppEngine(tmp_path / "base.gguf")
    alone = ["".join(engine.stream(chat, TOKENS)).strip() for chat in chats]
    assert sum(a == b.text.strip() for a, b in zip(alone, answers, strict=True)) <= 5
    with pytest.raises(EngineError, match=r"model\.safetensors"):
        LlamaCppEngine(tmp_path / "base.gguf", lora=tiny_base / "model.safetensors")


def test_both_files_name_the_licence_and_the_base_model(exported):
    from gguf import GGUFReader

    for name, title in (("apeagent-f16.gguf", "Apeagent"), ("apeagent-adapter-f16.gguf", "Apeagent Adapter")):
        reader = GGUFReader(exported[0] / name)
        fields = {key: field.contents() for key, field in reader.fields.items() if key.startswith("general.")}
        assert fields["general.name"] == title
        assert fields["general.license"] == "apache-2.0"
        assert fields["general.base_model.0.repo_url"] == "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct"
        assert fields["general.base_model.0.organization"] == "HuggingFaceTB"


def test_another_user_of_this_machine_cannot_ask_llama_cpps_own_port_past_the_check(exported):
    engine = LlamaCppEngine(exported[0] / "apeagent-f16.gguf")
    url = engine._server.listening_address
    chat = {"messages": [{"role": "user", "content": "a"}], "prompt": "a", "content": "a", "input": "a", "tokens": [1]}
    posted = (
        "/v1/chat/completions", "/chat/completions", "/api/chat", "/v1/completions", "/completion", "/completions",
        "/infill", "/v1/embeddings", "/embedding", "/v1/messages", "/v1/responses", "/tokenize", "/detokenize",
        "/apply-template", "/lora-adapters", "/props", "/slots/0?action=erase",
    )  # fmt: skip
    for headers in ({}, {"Authorization": "Bearer guessed"}, {"X-Api-Key": ""}, {"Authorization": "Bearer "}):
        for path in posted:
            found = requests.post(url + path, json=chat, headers=headers, timeout=10)
            assert found.status_code in (401, 404), path
        for path in ("/slots", "/props", "/lora-adapters", "/metrics"):
            assert requests.get(url + path, headers=headers, timeout=10).status_code in (401, 404, 501), path
    assert requests.post(url + posted[0], json=chat, timeout=10).status_code == 401
    # The engine itself needs no port and still answers.
    assert isinstance("".join(engine.stream([{"role": "user", "content": "a"}], 2)), str)


def test_a_base_that_names_another_end_token_still_ends_in_llama_cpp_where_the_chat_template_does(
    tiny_base,  # noqa: F811
    tiny_adapter,  # noqa: F811
    cache,
    tmp_path,
):
    from gguf import GGUFReader

    base, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(tiny_base, base)
    for name, key, value in (
        ("tokenizer_config.json", "eos_token", "<|endoftext|>"),
        ("config.json", "eos_token_id", 0),
    ):
        content = json.loads((base / name).read_text())
        assert content[key] != value
        (base / name).write_text(json.dumps({**content, key: value}))
    export_folder(base, tiny_adapter, out, ExportConfig(quantizations=["f16"], pre_tokenizer="smollm"), cache)
    turn = Student.load(tiny_base).tokenizer.convert_tokens_to_ids("<|im_end|>")
    field = GGUFReader(out / "apeagent-f16.gguf").get_field("tokenizer.ggml.eos_token_id")
    assert field.contents() == turn
    engine = LlamaCppEngine(out / "apeagent-f16.gguf")
    chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 6, "temperature": 0}

    def finish(token):
        return engine._server.handle_chat_completions({**chat, "logit_bias": [[token, 1000]]})["choices"][0]

    assert finish(turn)["finish_reason"] == "stop"
    assert finish(turn + 5)["finish_reason"] == "length"  # the control
