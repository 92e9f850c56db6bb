import json

import pytest
import torch

from apeagent_pipeline.distillation.chain_of_draft import STUDENT_SYSTEM_PROMPT
from apeagent_pipeline.student import export, gguf
from apeagent_pipeline.student.export import fuse
from apeagent_pipeline.student.generation import Student
from apeagent_pipeline.student.gguf import ExportConfig, ExportError, export_gguf, resolve_converter
from apeagent_pipeline.student.pinned_package import PinnedPackageError
from apeagent_pipeline_tests.distillation.llama_server import llama_server, served_answers

PROMPTS = [[{"role": "user", "content": "ETH price is $2510. What should I do?"}]]


@pytest.fixture(scope="module")
def fused(tiny_base, tiny_adapter, tmp_path_factory):
    out = tmp_path_factory.mktemp("fused")
    difference = fuse(tiny_base, tiny_adapter, out)
    check = json.loads((out / "fuse_check.json").read_text())
    assert check["stored_difference"] == difference
    return out


def test_the_fused_model_decides_as_base_and_adapter_do(fused, tiny_base, tiny_adapter):
    check = json.loads((fused / "fuse_check.json").read_text())
    assert check["merge_difference"] < 1e-4
    both = Student.load(tiny_base, tiny_adapter, dtype="float32").logits(PROMPTS)
    alone = Student.load(fused, dtype="float32").logits(PROMPTS)
    bare = Student.load(tiny_base, dtype="float32").logits(PROMPTS)
    assert torch.equal(both.argmax(-1), alone.argmax(-1))
    # Storing in bf16 rounds the weights; that must stay far below what the adapter changed.
    assert (both - alone).abs().max() < 0.1 * (both - bare).abs().max()
    assert (fused / "tokenizer.json").is_file()
    assert not (fused / ".partial").exists()


def test_a_merge_that_changes_the_logits_is_refused_and_nothing_is_written(
    tiny_base, tiny_adapter, tmp_path, monkeypatch
):
    monkeypatch.setattr(export, "_largest_difference", lambda expected, found: 0.5)
    with pytest.raises(ExportError, match=r"differ by 5\.00e-01"):
        fuse(tiny_base, tiny_adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_modelfile_serves_the_model_as_it_was_trained(fused, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "resolve_converter", lambda cache: tmp_path)
    monkeypatch.setattr(gguf, "_convert", lambda script, arguments, target, rule: target.write_bytes(b"GGUF"))
    files = export_gguf(fused, tmp_path / "out", ExportConfig(quantizations=["q8_0", "f16"]), tmp_path)
    assert [path.name for path in files] == ["apeagent-q8_0.gguf", "apeagent-f16.gguf", "Modelfile"]
    modelfile = files[-1].read_text()
    assert modelfile.startswith("FROM ./apeagent-q8_0.gguf\n")
    assert "<|im_start|>assistant" in modelfile
    assert f'SYSTEM """{STUDENT_SYSTEM_PROMPT}"""' in modelfile
    for parameter in ("temperature 0", "stop <|im_end|>", "repeat_penalty 1.0"):
        assert f"PARAMETER {parameter}\n" in modelfile


def test_an_export_is_whole_or_not_there_and_never_replaces_what_it_did_not_write(
    tiny_base, tiny_adapter, tmp_path, monkeypatch
):
    monkeypatch.setattr(gguf, "resolve_converter", lambda cache: tmp_path)
    monkeypatch.setattr(gguf, "_convert", lambda script, arguments, target, rule: target.write_bytes(b"GGUF"))
    out, told = tmp_path / "mine", []

    def write(progress=lambda *_, **__: None):
        export.export_folder(tiny_base, tiny_adapter, out, ExportConfig(), tmp_path / "cache", progress)

    def kill(done, total, **_):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(kill)
    assert list(tmp_path.iterdir()) == []
    write(lambda *done, **_: told.append(done))
    assert told[-1][0] == told[-1][1]
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert {"adapter/adapter_model.safetensors", "fused/config.json", "Modelfile", "README.md"} <= names
    assert {"apeagent-q8_0.gguf", "apeagent-f16.gguf", "apeagent-adapter-f16.gguf"} <= names
    card = (out / "README.md").read_text()
    assert "APE NEUTRAL" in card
    assert STUDENT_SYSTEM_PROMPT in card
    assert str(tmp_path) not in card
    (out / "stale.txt").touch()
    write()  # an earlier export is replaced
    assert not (out / "stale.txt").exists()
    (out / "apeagent-export.json").unlink()
    with pytest.raises(ExportError, match="no export of apeagent"):
        write()
    assert (out / "README.md").read_text() == card
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_converter_that_fails_or_cannot_be_had_says_why(tmp_path, monkeypatch):
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text("raise SystemExit('unknown tokenizer')")
    with pytest.raises(ExportError, match="unknown tokenizer"):
        gguf._convert(script, [], tmp_path / "a.gguf", "")
    assert not (tmp_path / "a.gguf").exists()

    def offline(package, folder):
        raise PinnedPackageError("pip could not download")

    monkeypatch.setattr(gguf, "fetch", offline)
    with pytest.raises(ExportError, match="pip could not download"):
        resolve_converter(tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"] == []


@pytest.mark.slow
def test_the_gguf_of_llama_cpps_own_converter_answers_as_transformers_do_when_a_real_server_serves_it(
    fused, tiny_base, tiny_adapter, tmp_path, tmp_path_factory
):
    from gguf import GGUFReader

    pytest.importorskip("xllamacpp", reason="llama.cpp's server has no wheel for this platform")
    cache = tmp_path_factory.getbasetemp().parent / "converter"  # shared by the test processes of one user
    try:
        resolve_converter(cache)
    except ExportError as error:
        pytest.skip(f"the source package cannot be fetched here: {error}")
    # Digits alone, then as GPT-2: the rule of SmolLM2 and of the tiny tokenizer.
    config = ExportConfig(quantizations=["f16"], pre_tokenizer="smollm")
    files = export_gguf(fused, tmp_path, config, cache, base=tiny_base, adapter=tiny_adapter)
    assert [path.name for path in files] == ["apeagent-f16.gguf", "apeagent-adapter-f16.gguf", "Modelfile"]
    model, adapter = GGUFReader(files[0]), GGUFReader(files[1])
    assert model.get_field("general.architecture").contents() == "qwen2"
    # Not the folder's: that of an artifact is another each time.
    assert [each.get_field("general.name").contents() for each in (model, adapter)] == ["Apeagent", "Apeagent Adapter"]
    assert len(model.tensors) > 20
    assert any("lora_a" in tensor.name for tensor in adapter.tensors)

    student = Student.load(fused, dtype="float32")
    chats = [[{"role": "user", "content": f"ETH price is ${2500 + n}. What should I do?"}] for n in range(8)]
    expected = [answer.text.strip() for answer in student.answers(chats, max_new_tokens=16)]
    with llama_server(files[0]) as url:
        said = [text.strip() for text in served_answers(url, chats, 16)]
    assert sum(a == b for a, b in zip(said, expected, strict=True)) >= 7, (said, expected)
