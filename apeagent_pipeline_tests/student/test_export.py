import json
import os
import shutil
import subprocess
import sys

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


def test_by_default_the_modelfile_and_the_server_take_the_file_whose_weights_are_not_rounded(
    fused, tmp_path, monkeypatch
):
    from apeagent_pipeline.defs.profiles import PROFILES

    monkeypatch.setattr(gguf, "resolve_converter", lambda cache: tmp_path)
    monkeypatch.setattr(gguf, "_convert", lambda script, arguments, target, rule: target.write_bytes(b"GGUF"))
    for config in (ExportConfig(), *(profile.ollama_model for profile in PROFILES.values())):
        *_, modelfile = export_gguf(fused, tmp_path / "out", config, tmp_path)
        assert modelfile.read_text().startswith("FROM ./apeagent-f16.gguf\n")


def test_an_export_is_whole_or_not_there_and_never_replaces_what_it_did_not_write(
    tiny_base, tiny_adapter, tmp_path, monkeypatch
):
    monkeypatch.setattr(gguf, "resolve_converter", lambda cache: tmp_path)
    monkeypatch.setattr(gguf, "_convert", lambda script, arguments, target, rule: target.write_bytes(b"GGUF"))
    out, told = tmp_path / "mine", []

    def write(progress=lambda *_, **__: None):
        export.export_folder(tiny_base, tiny_adapter, out, ExportConfig(), tmp_path / "cache", progress=progress)

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
    with pytest.raises(ExportError, match="`apeagent export` did not write"):
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


@pytest.fixture(scope="module")
def written(tiny_base, tiny_adapter, tiny_dataset, tmp_path_factory):
    """An export without the converter, whose GGUF files are not looked at here."""
    patch = pytest.MonkeyPatch()
    patch.setattr(gguf, "resolve_converter", lambda cache: cache)
    patch.setattr(gguf, "_convert", lambda script, arguments, target, rule: target.write_bytes(b"GGUF"))
    out = tmp_path_factory.mktemp("written") / "ape"
    metrics = {"agreement": 0.99, "feasible_rate": 0.94}
    export.export_folder(
        tiny_base, tiny_adapter, out, ExportConfig(), out.parent, metrics=metrics, dataset=tiny_dataset
    )
    patch.undo()
    return out


@pytest.fixture
def written_privately(tiny_base, tiny_adapter, tiny_dataset, tmp_path, monkeypatch):
    """An export by somebody whose new files nobody else may read."""
    monkeypatch.setattr(gguf, "resolve_converter", lambda cache: cache)
    monkeypatch.setattr(gguf, "_convert", lambda script, arguments, target, rule: target.write_bytes(b"GGUF"))
    before = os.umask(0o077)
    try:
        export.export_folder(tiny_base, tiny_adapter, tmp_path / "ape", ExportConfig(), tmp_path, dataset=tiny_dataset)
        (tmp_path / "private").write_text("the control")
    finally:
        os.umask(before)
    return tmp_path / "ape"


def test_everybody_may_read_an_export_whatever_the_exporters_umask_is(written_privately):
    assert (written_privately.parent / "private").stat().st_mode & 0o777 == 0o600
    for path in [written_privately, *written_privately.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path


_READ_AS_ANOTHER = """
import os, sys
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
def count(folder):
    read = 0
    for name in os.listdir(folder):
        opened = os.open(name, os.O_RDONLY, dir_fd=folder)
        read += count(opened) if os.path.isdir(f"/proc/self/fd/{opened}") else bool(os.read(opened, 1))
        os.close(opened)
    return read
print(count(int(sys.argv[1])))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_another_user_reads_every_file_of_an_export_to_its_first_byte(written_privately):
    folder = os.open(written_privately, os.O_RDONLY)  # the folders above it belong to the test alone
    command = [sys.executable, "-I", "-S", "-c", _READ_AS_ANOTHER, str(folder)]

    def read():
        return subprocess.run(command, pass_fds=[folder], capture_output=True, text=True, check=False)

    try:
        found = read()
        assert found.returncode == 0, found.stderr
        assert int(found.stdout) == len([path for path in written_privately.rglob("*") if path.is_file()])
        (written_privately / "fused/model.safetensors").chmod(0o600)  # the control: as safetensors writes it
        assert "PermissionError" in read().stderr
    finally:
        os.close(folder)


def test_old_readers_find_the_rotary_base_a_tokenizer_class_they_know_and_the_end_of_an_answer(written):
    config = json.loads((written / "fused/config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10_000.0
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    for folder in ("fused", "adapter"):
        tokenizer = json.loads((written / folder / "tokenizer_config.json").read_text())
        assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert tokenizer["model_input_names"] == ["input_ids", "attention_mask"]
        assert tokenizer["eos_token"] == "<|im_end|>"
        assert "<|im_start|>" in tokenizer["chat_template"]
        assert not {"backend", "is_local", "local_files_only"} & set(tokenizer)


def test_a_base_that_ends_with_another_token_still_ends_its_answers_where_the_chat_template_does(
    tiny_base, tiny_adapter, tmp_path
):
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    for name, key, value in (
        ("tokenizer_config.json", "eos_token", "<|endoftext|>"), ("config.json", "eos_token_id", 0),
        ("generation_config.json", "eos_token_id", 0),
    ):  # fmt: skip
        content = json.loads((base / name).read_text())
        assert content[key] != value
        (base / name).write_text(json.dumps({**content, key: value}))
    student = Student.load(base)
    turn = student.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert student.end_tokens == sorted({0, turn})
    fuse(base, tiny_adapter, tmp_path / "fused")
    config, generation, tokenizer = (
        json.loads((tmp_path / "fused" / name).read_text())
        for name in ("config.json", "generation_config.json", "tokenizer_config.json")
    )
    assert (config["eos_token_id"], tokenizer["eos_token"]) == (turn, "<|im_end|>")
    assert generation["eos_token_id"] == [turn, 0]
    assert generation["repetition_penalty"] == 1.0
    assert generated_before(tmp_path / "fused", turn) == 3
    # The control: the same weights with the base's own idea of an end run into the next turn.
    shutil.copyfile(base / "generation_config.json", tmp_path / "fused/generation_config.json")
    assert generated_before(tmp_path / "fused", turn) == 12


def generated_before(folder, token):
    """How many tokens transformers' ``generate`` gives by the folder's own settings if the third is a given one."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    asked = tokenizer.apply_chat_template(PROMPTS[0], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    length = asked["input_ids"].shape[1]
    word = tokenizer.convert_tokens_to_ids("a")

    def allowed(_, ids):
        return [token if len(ids) == length + 2 else word]

    found = model.generate(**asked, max_new_tokens=12, prefix_allowed_tokens_fn=allowed)
    return found.shape[1] - length


def test_every_card_has_front_matter_that_the_hub_reads_and_an_example(written):
    from huggingface_hub import DatasetCard, ModelCard

    for folder, library, relation in (
        (".", "transformers", "finetune"), ("adapter", "peft", "adapter"), ("fused", "transformers", "finetune"),
        ("mlx", "mlx", "adapter"),
    ):  # fmt: skip
        card = ModelCard.load(written / folder / "README.md")
        data = card.data.to_dict()
        assert (data["library_name"], data["base_model_relation"]) == (library, relation)
        assert (data["pipeline_tag"], data["license"]) == ("text-generation", "other")
        assert data["datasets"]
        assert data["license_name"]
        values = {result.metric_type: result.metric_value for result in card.data.eval_results}
        assert values == {"agreement": 0.99, "feasible_rate": 0.94}
        assert ("```python" in card.text) == (folder != ".")
        assert str(written.parent) not in card.text
    dataset = DatasetCard.load(written / "dataset/README.md")
    files = {each["split"]: each["path"] for each in dataset.data.to_dict()["configs"][0]["data_files"]}
    assert files == {"train": "train.jsonl", "validation": "valid.jsonl", "test": "test.jsonl"}
    assert all((written / "dataset" / name).is_file() for name in files.values())


@pytest.mark.slow
def test_the_examples_of_the_cards_run_as_they_are_printed(written, tmp_path):
    import re

    code = re.search(r"```python\n(.*?)```", (written / "fused/README.md").read_text(), re.DOTALL)[1]
    code = code.replace("max_new_tokens=96", "max_new_tokens=2")
    subprocess.run([sys.executable, "-c", code], cwd=written / "fused", capture_output=True, check=True)


def test_an_adapter_of_the_embedded_base_names_the_published_model_and_what_is_unknown(
    tiny_base, tiny_adapter, tmp_path
):
    from apeagent_pipeline.settings import SMOLLM2
    from apeagent_pipeline.student.base_identity import BaseIdentity

    adapter = tmp_path / "adapter"
    shutil.copytree(tiny_adapter, adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": SMOLLM2}))
    export._write_adapter(tiny_base, adapter, tmp_path / "out", {})
    written = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert len(written["revision"]) == 40
    card = (tmp_path / "out/README.md").read_text()
    assert "license: apache-2.0" in card
    assert "published weights was not measured" in card
    of_hub = BaseIdentity.of("Qwen/Qwen2.5-3B@main", tmp_path / "snapshots" / "abc")
    assert (of_hub.hub_id, of_hub.revision, of_hub.license) == ("Qwen/Qwen2.5-3B", "abc", "other")


def test_the_mlx_form_holds_the_same_matrices_transposed_and_the_scale_of_peft(written, tiny_adapter):
    from safetensors.torch import load_file

    ours = load_file(tiny_adapter / "adapter_model.safetensors")
    mlx = load_file(written / "mlx/adapters.safetensors")
    config = json.loads((written / "mlx/adapter_config.json").read_text())
    assert len(mlx) == len(ours)
    name = "model.layers.1.self_attn.q_proj"
    assert torch.equal(mlx[f"{name}.lora_a"], ours[f"base_model.model.{name}.lora_A.weight"].T)
    assert torch.equal(mlx[f"{name}.lora_b"], ours[f"base_model.model.{name}.lora_B.weight"].T)
    assert (config["num_layers"], config["lora_parameters"]["scale"]) == (1, 2.0)
    assert "self_attn.q_proj" in config["lora_parameters"]["keys"]


def test_a_dora_adapter_is_exported_merged_and_the_card_says_why(tiny_base, tiny_dataset, tmp_path, monkeypatch):
    from apeagent_pipeline.student.fine_tuning import FineTuningConfig, fine_tune

    config = FineTuningConfig(steps=2, valid_every=2, valid_examples=2, last_blocks=1, dora=True, warmup_steps=0)
    fine_tune(tiny_base, tiny_dataset, config, 3, tmp_path / "dora", checkpoint_dir=tmp_path / "checkpoints")
    monkeypatch.setattr(gguf, "resolve_converter", lambda cache: tmp_path)
    monkeypatch.setattr(gguf, "_convert", lambda script, arguments, target, rule: target.write_bytes(b"GGUF"))
    export.export_folder(tiny_base, tmp_path / "dora", tmp_path / "out", ExportConfig(), tmp_path)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"fused", "adapter", "apeagent-q8_0.gguf"} <= names
    assert not {"mlx", "apeagent-adapter-f16.gguf"} & names
    assert "This is a DoRA adapter" in (tmp_path / "out/README.md").read_text()
    # What is merged is DoRA, its magnitudes included: without them the same adapter says other things.
    both, alone = (
        Student.load(*folders, dtype="float32").logits(PROMPTS)
        for folders in ((tiny_base, tmp_path / "dora"), (tmp_path / "out/fused",))
    )
    plain = tmp_path / "plain"
    shutil.copytree(tmp_path / "dora", plain)
    settings = json.loads((plain / "adapter_config.json").read_text())
    (plain / "adapter_config.json").write_text(json.dumps({**settings, "use_dora": False}))
    as_lora = Student.load(tiny_base, plain, dtype="float32").logits(PROMPTS)
    assert (both - alone).abs().max() < 0.1 * (both - as_lora).abs().max()


def test_the_modelfile_limits_answers_names_the_licence_and_has_no_windows_line_ends(written):
    raw = (written / "Modelfile").read_bytes()
    assert b"\r" not in raw
    text = raw.decode()
    for line in ("PARAMETER num_ctx 1024", "PARAMETER num_predict 256", 'LICENSE """'):
        assert f"\n{line}" in text


def rounded_to_four_bits(base, folder):
    """The base with its linear weights rounded to 16 levels a row, as a reader of a quantised base sees them."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, folder)
    weights = load_file(base / "model.safetensors")
    for name, weight in weights.items():
        if "_proj" in name and weight.ndim == 2:
            step = weight.abs().amax(1, keepdim=True).float() / 7
            weights[name] = ((weight.float() / step).round() * step).to(weight.dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("with_bitsandbytes", [False, True])
def test_an_adapter_that_was_trained_on_a_quantised_base_is_exported_from_the_plain_base(
    tiny_base, tiny_dataset, tmp_path, monkeypatch, with_bitsandbytes
):
    from safetensors.torch import load_file

    from apeagent_pipeline.student.fine_tuning import FineTuningConfig, fine_tune

    if with_bitsandbytes:
        pytest.importorskip("bitsandbytes", reason="the extra qlora is not installed")
    config = FineTuningConfig(
        steps=2, valid_every=2, valid_examples=2, last_blocks=1, warmup_steps=0, learning_rate=3e-2,
        quantized=with_bitsandbytes,
    )  # fmt: skip
    trained_on = tiny_base if with_bitsandbytes else rounded_to_four_bits(tiny_base, tmp_path / "rounded")
    fine_tune(trained_on, tiny_dataset, config, 3, tmp_path / "adapter", checkpoint_dir=tmp_path / "checkpoints")
    monkeypatch.setattr(gguf, "resolve_converter", lambda cache: tmp_path)
    monkeypatch.setattr(gguf, "_convert", lambda script, arguments, target, rule: target.write_bytes(b"GGUF"))
    export.export_folder(tiny_base, tmp_path / "adapter", tmp_path / "out", ExportConfig(), tmp_path)

    check = json.loads((tmp_path / "out/fused/fuse_check.json").read_text())
    assert check["merge_difference"] < 1e-4
    plain, fused = load_file(tiny_base / "model.safetensors"), load_file(tmp_path / "out/fused/model.safetensors")
    assert {name: weight.dtype for name, weight in fused.items()} == {name: w.dtype for name, w in plain.items()}
    lora = load_file(tmp_path / "out/adapter/adapter_model.safetensors")
    scale = config.alpha / config.rank
    for name, weight in plain.items():
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        added = scale * lora[f"{key}B.weight"] @ lora[f"{key}A.weight"] if f"{key}A.weight" in lora else 0.0
        assert torch.allclose(fused[name].float(), weight.float() + added, atol=1e-3, rtol=8e-3), name
    if not with_bitsandbytes:  # the control: the base of the training is farther away than the tolerance
        name = "model.layers.0.self_attn.q_proj.weight"
        seen = load_file(trained_on / "model.safetensors")[name]
        assert not torch.allclose(fused[name].float(), seen.float(), atol=1e-3, rtol=8e-3)
    for path in ("fused/config.json", "adapter/adapter_config.json"):
        assert "bits" not in (tmp_path / "out" / path).read_text()
    assert {"mlx", "apeagent-adapter-f16.gguf", "Modelfile"} <= {path.name for path in (tmp_path / "out").iterdir()}
